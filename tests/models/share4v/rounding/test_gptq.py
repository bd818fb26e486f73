"""GPTQ over whole matrices: less error of the outputs than rounding alone, and blocks that run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mindone.models.share4v.checkpoint.packed import pack, packer, write_vectors
from mindone.models.share4v.configuration import Share4VConfig, TextConfig
from mindone.models.share4v.kernels.packing import BlockSpec, BlockWriter, MatrixSpec, RoundedRows, unpack_matrix
from mindone.models.share4v.language.weights import language_plans, language_shapes
from mindone.models.share4v.rounding.gptq import gptq
from mindone.models.share4v.rounding.gptq_layers import LayerRounder
from mindone.models.share4v.rounding.importance import Importance, normalized
from mindone.models.share4v.rounding.kernel_layers import run_model
from mindone.models.share4v.rounding.rotation import RotatedWeights, Rotation


def dequantized(rounded: RoundedRows) -> np.ndarray:
    spec = BlockSpec((MatrixSpec(*rounded.codes.shape, "int4-256"),))
    writer = BlockWriter(spec)
    writer.codes(0, rounded)
    return unpack_matrix(writer.block, spec, 0)


@pytest.mark.parametrize("columns", [40, 576, 800])
def test_outputs_are_nearer_than_by_rounding_alone(columns: int) -> None:
    rng = np.random.default_rng(columns)
    weight = rng.standard_normal((48, columns)).astype(np.float32)
    inputs = (rng.standard_normal((3000, 24)) @ rng.standard_normal((24, columns))).astype(np.float32)
    inputs += 0.3 * rng.standard_normal(inputs.shape).astype(np.float32)  # correlated, as a network's are
    rounded = dequantized(gptq(weight, inputs.T @ inputs / 3000))
    spec = BlockSpec((MatrixSpec(48, columns, "int4-256"),))
    plain = BlockWriter(spec)
    plain.matrix(0, weight, importance=(inputs**2).mean(0))
    errors = [((inputs @ (one - weight).T) ** 2).mean() for one in (rounded, unpack_matrix(plain.block, spec, 0))]
    assert errors[0] < 0.5 * errors[1]


def test_inputs_that_are_always_zero_and_too_few_samples() -> None:
    rng = np.random.default_rng(0)
    weight, inputs = rng.standard_normal((20, 300)).astype(np.float32), np.zeros((8, 300), np.float32)
    inputs[:, :100] = rng.standard_normal((8, 100))
    for moment in (inputs.T @ inputs, np.zeros((300, 300), np.float32)):
        assert np.abs(dequantized(gptq(weight, moment)) - weight).mean() < 0.3


def small_model() -> tuple[TextConfig, dict[str, np.ndarray]]:
    text = TextConfig(300, 288, 544, 2, 6, 2, max_position_embeddings=128)
    rng, weights = np.random.default_rng(5), {}
    for name, shape in language_shapes(text).items():
        scale = 1.0 if len(shape) == 1 or "embed" in name else shape[1] ** -0.5
        weights[name] = (rng.standard_normal(shape) * scale + (1.0 if "norm" in name else 0.0)).astype(np.float32)
    return text, weights


def test_layers_rounded_in_sequence_make_a_model_near_the_plain_one() -> None:
    text, weights = small_model()
    config, read = replace(Share4VConfig(), text_config=text), weights.__getitem__
    ids = np.random.default_rng(6).integers(0, 300, (8, 100))
    plain = run_model(text, [pack(plan, read) for plan in language_plans(config, "float32")], ids[0])
    errors = []
    for layout in ("groups", "weighted", "rotated"):
        plans = language_plans(replace(config, quantization="int4", quantization_layout=layout), "int4")
        if layout == "rotated":
            turned = RotatedWeights(read, text, Rotation.random(288))
            table = weights["language_model.model.embed_tokens.weight"]
            rounder, blocks = LayerRounder(text, turned.layer, turned.rotation, [table[row] for row in ids[1:]]), []
            for plan in plans:
                if plan.spec.heads:
                    writer = BlockWriter(plan.spec)
                    write_vectors(writer, plan, turned.layer)
                    blocks.append(rounder.block(plan, writer))
                else:
                    blocks.append(pack(plan, turned.reader(plan)))
        else:
            packed = packer(plans, text, read)
            blocks = [packed(plan) for plan in plans]
        errors.append(float(((run_model(text, blocks, ids[0]) - plain) ** 2).mean() / (plain**2).mean()))
    assert errors[1] < 0.9 * errors[0] and errors[2] < 0.9 * errors[0]
    assert max(errors) < 0.1


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
