"""GPTQ over whole matrices: less error of the outputs than rounding alone, and blocks that run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mindone.models.share4v.checkpoint.packed import pack, packer, write_vectors
from mindone.models.share4v.configuration import Share4VConfig, TextConfig
from mindone.models.share4v.kernels.packing import BlockSpec, BlockWriter, MatrixSpec, RoundedRows, unpack_matrix
from mindone.models.share4v.language.weights import language_plans, language_shapes
from mindone.models.share4v.rounding.gptq import DAMPING, gptq
from mindone.models.share4v.rounding.gptq_layers import LayerRounder
from mindone.models.share4v.rounding.importance import Importance, normalized
from mindone.models.share4v.rounding.kernel_layers import run_model
from mindone.models.share4v.rounding.moments import Moments
from mindone.models.share4v.rounding.reference import Multiply, ReferenceLayer
from mindone.models.share4v.rounding.rotation import RotatedWeights, Rotation


def dequantized(rounded: RoundedRows) -> np.ndarray:
    spec = BlockSpec((MatrixSpec(*rounded.codes.shape, "int4-256"),))
    writer = BlockWriter(spec)
    writer.codes(0, rounded)
    return unpack_matrix(writer.block, spec, 0)


def correlated(rng: np.random.Generator, columns: int) -> np.ndarray:
    """Return inputs [3000, columns] that are correlated, as a network's are."""
    inputs = (rng.standard_normal((3000, 24)) @ rng.standard_normal((24, columns))).astype(np.float32)
    return inputs + 0.3 * rng.standard_normal(inputs.shape).astype(np.float32)


def moments_of(inputs: np.ndarray) -> Moments:
    moments = Moments(inputs.shape[1])
    for part in range(2):  # as two sequences
        moments.add(inputs[part::2])
    return moments


@pytest.mark.parametrize("columns", [40, 576, 800])
def test_outputs_are_nearer_than_by_rounding_alone(columns: int) -> None:
    rng = np.random.default_rng(columns)
    weight = rng.standard_normal((48, columns)).astype(np.float32)
    inputs = correlated(rng, columns)
    rounded = dequantized(gptq(weight, moments_of(inputs)))
    spec = BlockSpec((MatrixSpec(48, columns, "int4-256"),))
    plain = BlockWriter(spec)
    plain.matrix(0, weight, importance=(inputs**2).mean(0))
    errors = [((inputs @ (one - weight).T) ** 2).mean() for one in (rounded, unpack_matrix(plain.block, spec, 0))]
    assert errors[0] < 0.5 * errors[1]


def test_columns_are_rounded_as_the_definition_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Column by column in float64, with the scales that were found."""
    rng = np.random.default_rng(4)
    weight, inputs = rng.standard_normal((20, 320)).astype(np.float32), correlated(rng, 320)
    refined = gptq(weight, moments_of(inputs))
    monkeypatch.setattr("mindone.models.share4v.rounding.gptq.SWEEPS", 0)
    rounded = gptq(weight, moments_of(inputs))
    moment = inputs.T.astype(np.float64) @ inputs
    moment /= np.diag(moment).mean()
    moment += DAMPING * 320 / len(inputs) * np.eye(320)
    lower = np.linalg.cholesky(moment)
    lower /= np.diag(lower)
    step, offset = (
        np.repeat(rounded.scales.astype(np.float64), 256, 1)[:, :320] * np.repeat(rounded.pairs[..., part], 32, 1)
        for part in (0, 1)
    )
    errors, codes = np.zeros((20, 320)), np.zeros((20, 320))
    for k in reversed(range(320)):
        target = weight[:, k] + errors[:, k + 1 :] @ lower[k + 1 :, k]
        codes[:, k] = np.clip(np.rint((target - offset[:, k]) / step[:, k]), -8, 7)
        errors[:, k] = weight[:, k] - (codes[:, k] * step[:, k] + offset[:, k])
    assert (codes + 8 == rounded.codes).mean() > 0.99  # a tie in float32 changes what follows
    left = weight - (refined.codes - 8.0) * step - offset
    assert np.einsum("nk,kj,nj->", left, moment, left) < 0.97 * np.einsum("nk,kj,nj->", errors, moment, errors)
    assert np.array_equal(refined.pairs, rounded.pairs) and np.array_equal(refined.scales, rounded.scales)
    gradient = left @ moment / np.diag(moment)  # the best change of each code by itself is less than half a step
    is_free = (refined.codes > 0) & (refined.codes < 15)
    assert (np.abs(gradient) < 0.51 * step)[is_free].mean() > 0.97


def test_inputs_that_are_always_zero_and_too_few_samples() -> None:
    rng = np.random.default_rng(0)
    weight, inputs = rng.standard_normal((20, 300)).astype(np.float32), np.zeros((8, 300), np.float32)
    inputs[:, :100] = rng.standard_normal((8, 100))
    for given in (inputs, np.zeros_like(inputs)):
        assert np.abs(dequantized(gptq(weight, moments_of(given))) - weight).mean() < 0.3


SMALL = TextConfig(300, 288, 544, 2, 6, 2, max_position_embeddings=128)


def small_model(text: TextConfig = SMALL) -> tuple[TextConfig, dict[str, np.ndarray]]:
    rng, weights = np.random.default_rng(5), {}
    for name, shape in language_shapes(text).items():
        scale = 1.0 if len(shape) == 1 or "embed" in name else shape[1] ** -0.5
        weights[name] = (rng.standard_normal(shape) * scale + (1.0 if "norm" in name else 0.0)).astype(np.float32)
    return text, weights


# With heads of 10 the first value is row 60 of the block, within a panel of 16 rows.
@pytest.mark.parametrize("text", [SMALL, replace(SMALL, num_attention_heads=3, num_key_value_heads=3, head_dim=10)])
def test_layers_rounded_in_sequence_make_a_model_near_the_plain_one(text: TextConfig) -> None:
    _, weights = small_model(text)
    config, read = replace(Share4VConfig(), text_config=text), weights.__getitem__
    ids = np.random.default_rng(6).integers(0, 300, (8, 100))
    plain = run_model(text, [pack(plan, read) for plan in language_plans(config, "float32")], ids[0])
    errors = []
    for layout in ("groups", "weighted", "rotated"):
        plans = language_plans(replace(config, quantization="int4", quantization_layout=layout), "int4")
        if layout == "rotated":
            turned = RotatedWeights(read, text, Rotation.random(288))
            table = weights["language_model.model.embed_tokens.weight"]
            rounder, sequences = LayerRounder(text, turned.layer, turned.rotation), list(table[ids[1:]])
            blocks = []
            for plan in plans:
                if plan.spec.heads:
                    writer = BlockWriter(plan.spec)
                    write_vectors(writer, plan, turned.layer)
                    blocks.append(rounder.block(plan, writer, sequences))
                else:
                    blocks.append(pack(plan, turned.reader(plan)))
        else:
            packed = packer(plans, text, read)
            blocks = [packed(plan) for plan in plans]
        errors.append(float(((run_model(text, blocks, ids[0]) - plain) ** 2).mean() / (plain**2).mean()))
    assert errors[1] < 0.9 * errors[0] and errors[2] < 0.9 * errors[0]
    assert max(errors) < 0.1


def test_averaged_inputs_are_what_the_values_of_a_head_are_made_of() -> None:
    text, weights = small_model()
    name, read = "language_model.model.layers.0", weights.__getitem__
    layer = ReferenceLayer(text, name, read)
    projections = [weights[f"{name}.self_attn.{part}_proj.weight"] for part in "qkv"]
    multiply: Multiply = lambda number, inputs: inputs @ np.concatenate(projections).T  # noqa: E731
    inputs = layer.attention_inputs(np.random.default_rng(8).standard_normal((20, 288), np.float32))
    attended = layer.attended(inputs, multiply).reshape(20, 6, 48)
    for first in (0, 4):
        averaged = layer.averaged(inputs, multiply, first)
        for t in range(20):
            head = (first + t) % 6
            value = projections[2][head // 3 * 48 :][:48]
            np.testing.assert_allclose(value @ averaged[t], attended[t, head], atol=1e-4)


def test_importance_is_positive_and_of_every_matrix() -> None:
    text, weights = small_model()
    plans = language_plans(replace(Share4VConfig(), text_config=text), "int4")
    importance = Importance(text, weights.__getitem__)
    found = [importance.of(plan) for plan in plans]
    assert [sorted(one) for one in found] == [[], [0, 1, 2, 3], [0, 1, 2, 3], []]
    assert [len(found[1][number]) for number in range(4)] == [288, 288, 288, 544]
    assert all((one > 0).all() and one.dtype == np.float32 for layer in found for one in layer.values())
    assert np.array_equal(normalized(np.zeros(4, np.float32)), np.ones(4, np.float32))
    assert np.array_equal(normalized(np.array([1, np.inf], np.float32)), np.ones(2, np.float32))


def test_a_weight_that_int4_cannot_hold_is_an_error() -> None:
    """Its super-block would be all zeros."""
    weight = np.full((16, 256), 0.02, np.float32)
    weight[3, 7] = -1e9
    with pytest.raises(OverflowError, match=r"up to 1e\+09 are too large for int4"):
        gptq(weight, moments_of(correlated(np.random.default_rng(0), 256)))
