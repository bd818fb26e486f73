"""A rotated model computes the same function, and its matrices are orthogonal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mindone.models.share4v.checkpoint.packed import pack
from mindone.models.share4v.configuration import Share4VConfig, TextConfig
from mindone.models.share4v.kernels.blocks import BlockPlan
from mindone.models.share4v.language.weights import down_hadamard, language_plans, language_shapes
from mindone.models.share4v.rounding.kernel_layers import run_model
from mindone.models.share4v.rounding.reference import run_layer
from mindone.models.share4v.rounding.rotation import RotatedWeights, Rotation, hadamard_rows

# Grouped-query attention, biases, a tied head; hidden sizes that are and are not powers of two; an inner size that is
# not a multiple of 256, as that of the 7B (43 * 256) is, one that is, and an odd one.
MODELS = {
    "grouped": TextConfig(90, 96, 160, 2, 6, 2, max_position_embeddings=64),
    "biased": TextConfig(70, 64, 512, 2, 4, 4, max_position_embeddings=64, attention_bias=True, mlp_bias=True),
    "tied": TextConfig(50, 80, 97, 2, 5, 5, max_position_embeddings=64, tie_word_embeddings=True),
}


def weights_of(text: TextConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights whose norms differ from one."""
    rng, weights = np.random.default_rng(seed), {}
    for name, shape in language_shapes(text).items():
        scale = 1.0 if len(shape) == 1 or "embed" in name else shape[1] ** -0.5
        weights[name] = (rng.standard_normal(shape) * scale + (1.0 if "norm" in name else 0.0)).astype(np.float32)
    return weights


def rotated_plan(plan: BlockPlan, text: TextConfig) -> BlockPlan:
    """Return a plan of float32 for rotated weights."""
    if not plan.spec.heads:
        return plan
    *others, down = plan.spec.matrices
    matrices = (*others, replace(down, hadamard=down_hadamard(text)))
    return replace(plan, spec=replace(plan.spec, matrices=matrices, is_rotated=plan.spec.cache_layer == 0))


@pytest.mark.parametrize("name", MODELS)
def test_a_rotated_float_model_equals_the_plain_one(name: str) -> None:
    text = MODELS[name]
    weights, ids = weights_of(text), np.random.default_rng(1).integers(0, text.vocab_size, 40)
    plans = language_plans(replace(Share4VConfig(), text_config=text), "float32")
    plain = run_model(text, [pack(plan, weights.__getitem__) for plan in plans], ids)
    turned = RotatedWeights(weights.__getitem__, text, Rotation.random(text.hidden_size))
    blocks = [pack(rotated_plan(plan, text), turned.reader(plan)) for plan in plans]
    assert np.abs(run_model(text, blocks, ids) - plain).max() <= 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_in_numpy_are_those_of_the_kernels(name: str) -> None:
    text = MODELS[name]
    weights, ids = weights_of(text), np.random.default_rng(2).integers(0, text.vocab_size, 30)
    plans = language_plans(replace(Share4VConfig(), text_config=text), "float32")
    kernels = run_model(text, [pack(plan, weights.__getitem__) for plan in plans], ids)
    x, seen = weights["language_model.model.embed_tokens.weight"][ids], []
    for plan in plans[1:-1]:
        x = run_layer(text, plan.name, weights.__getitem__, x, lambda number, inputs: seen.append(inputs.shape))
    normal = x / np.sqrt((x**2).mean(-1, keepdims=True) + text.rms_norm_eps)
    head = weights.get("language_model.lm_head.weight", weights["language_model.model.embed_tokens.weight"])
    logits = (normal * weights["language_model.model.norm.weight"]) @ head.T
    assert np.abs(logits - kernels).max() <= 1e-5 * np.abs(kernels).max()
    wide = text.num_attention_heads * text.head_size
    assert seen == [(30, text.hidden_size), (30, wide), (30, text.hidden_size), (30, text.intermediate_size)] * 2


@pytest.mark.parametrize("size", [1, 7, 64, 96, 576, 5120 // 4])
def test_rotations_are_orthogonal_and_repeatable(size: int) -> None:
    matrix = Rotation.random(size).rows(np.eye(size, dtype=np.float32)).astype(np.float64)
    assert np.allclose(matrix @ matrix.T, np.eye(size), atol=2e-6)
    assert np.array_equal(Rotation.random(size).table, Rotation.random(size).table)
    weight = np.random.default_rng(0).standard_normal((size, 5)).astype(np.float32)
    assert np.allclose(Rotation.random(size).outputs(weight.copy()), matrix.T @ weight, atol=1e-5)


@pytest.mark.parametrize("size", [2, 16, 256])
def test_the_hadamard_transform_is_its_own_inverse(size: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, 2 * size)).astype(np.float32)
    turned = hadamard_rows(x, size)
    assert np.allclose(hadamard_rows(turned, size), x, atol=1e-5)
    assert np.allclose(np.square(turned).sum(), np.square(x).sum(), rtol=1e-5)
    assert not np.allclose(turned, x)


def test_a_rotation_spreads_an_outlier() -> None:
    x = np.full((1, 4096), 0.01, np.float32)
    x[0, 1234] = 50
    turned = Rotation.random(4096).rows(x)
    assert np.abs(turned).max() < 2 < 50


@pytest.mark.parametrize(("hidden", "inner"), [(4096, 11008), (5120, 13824)], ids=["7b", "13b"])
def test_the_widths_of_the_published_models(hidden: int, inner: int) -> None:
    """Products of rows are kept, and the transform before the down projections takes blocks of 256."""
    text = TextConfig(32, hidden, inner, 1, hidden // 128, hidden // 128)
    assert down_hadamard(text) == 256
    rng = np.random.default_rng(0)
    for width, turn in ((hidden, Rotation.random(hidden).rows), (inner, lambda x: hadamard_rows(x, 256))):
        x = rng.standard_normal((4, width)).astype(np.float32)
        assert np.allclose(turn(x) @ turn(x).T, x @ x.T, atol=1e-5 * width)
        assert np.abs(turn(x) - x).max() > 0.1
