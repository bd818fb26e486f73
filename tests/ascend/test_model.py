"""The whole model in half precision on fused operators, and on portable ones, against float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers.ascend import PORTABLE, STAND_INS, register
from helpers.paths import SCENE
from mindspore import Tensor

from mindone.models.share4v import ProjectorConfig, Share4V, Share4VConfig, Share4VProcessor, TextConfig, VisionConfig
from mindone.models.share4v.bfloat16 import from_bfloat16, to_bfloat16
from mindone.models.share4v.processing.image_loading import load_image

IS_ASCEND = ms.get_context("device_target") == "Ascend"
TEXT = TextConfig(500, 128, 192, 2, 4, 2, max_position_embeddings=512)  # heads of 32, two for each key
CONFIG = Share4VConfig(VisionConfig(64, 128, 2, 2, image_size=56, patch_size=14), ProjectorConfig("mlp2x_gelu"), TEXT)
CELLS = {"language_backend": "llama", "vision_backend": "clip"}
# Logits' errors, as a share of the largest logit: some units of the type for the rounding of each of the layers.
CLOSE = {"float16": 16 * 2.0**-11, "bfloat16": 16 * 2.0**-8}


def narrowed(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round to a type; as float32."""
    return from_bfloat16(to_bfloat16(values)) if dtype == "bfloat16" else values.astype(dtype).astype(np.float32)


def model_of(dtype: str, weights_of: str, backends: dict[str, str]) -> Share4V:
    """The same random weights, rounded to `weights_of`, in a model of type `dtype`."""
    model, rng = Share4V(CONFIG, dtype, **backends), np.random.default_rng(0)
    for name, parameter in model.parameters_and_names():
        scale = 1.0 / np.sqrt(parameter.shape[-1]) if len(parameter.shape) > 1 else 0.1
        values = rng.normal(0, scale, parameter.shape).astype(np.float32) + ("norm" in name and "bias" not in name)
        values = values if len(parameter.shape) == 1 else narrowed(values, weights_of)
        parameter.set_data(Tensor(values, parameter.dtype))
    return model


@pytest.fixture
def fused() -> dict[str, str]:
    """Arguments that give a model of the device's fused operators, or of what stands in for them."""
    register()
    return CELLS if IS_ASCEND else STAND_INS


def steps(model: Share4V) -> Iterator[np.ndarray]:
    """Logits of a prefill of three texts of unequal length, one with two images, then of steps with given tokens."""
    rng = np.random.default_rng(1)
    lengths = np.array([130, 3, 70])
    ids = rng.integers(3, 500, (3, 130))
    pixels = rng.normal(0, 1, (2, 3, 56, 56)).astype(np.float32)
    ids[0, [5, 100]] = -200
    mask = (np.arange(130) < lengths[:, None]).astype(np.int64)
    output = model(ids, pixels, mask)
    yield np.concatenate(
        [row[kept] for row, kept in zip(output.logits.asnumpy(), output.attention_mask > 0, strict=True)]
    )
    prompts = model.prepare_inputs(ids, pixels, mask)
    cached = model.language_model.new_cached(3, 256)
    totals = prompts.lengths
    for first in range(0, int(totals.max()), cached.chunk):
        positions = first + np.arange(cached.chunk)[None].repeat(3, 0)
        inside = positions < totals[:, None]
        index = np.take_along_axis(prompts.index, np.minimum(positions, prompts.index.shape[1] - 1), 1)
        embeds = prompts.table[Tensor(np.where(inside, index, 0).astype(np.int32))]
        last = np.clip(totals - 1 - first, 0, cached.chunk - 1)
        logits = cached.prefill(embeds, np.where(inside, positions, -1), totals, last).asnumpy()
        yield logits[(totals > first) & (totals <= first + cached.chunk)]
    for step in range(6):
        alive = np.array([True, True, step < 3])  # a text that is done stays idle
        positions = np.where(alive, totals + step, -1)
        yield cached.decode(rng.integers(3, 500, 3), positions).asnumpy()[alive]


def test_logits_are_those_of_float32(fused: dict[str, str], dtype: str) -> None:
    """Each path alone: that of fused operators has no larger error than the portable one is allowed."""
    wanted = list(steps(model_of("float32", dtype, PORTABLE)))
    for backends in (fused, PORTABLE):
        for ours, exact in zip(steps(model_of(dtype, dtype, backends)), wanted, strict=True):
            assert ours.dtype == np.float32 and ours.shape == exact.shape
            np.testing.assert_allclose(ours, exact, rtol=0, atol=CLOSE[dtype] * np.abs(exact).max())


def test_a_trained_model_says_the_same(fused: dict[str, str], dtype: str, tmp_path: Path) -> None:
    """sharegpt4v-tiny's caption of the README's scene; then again from what the model itself saves."""
    processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
    inputs = processor(images=[load_image(SCENE)], text="Describe this image")
    model = Share4V.from_pretrained("sharegpt4v-tiny", dtype=dtype, **fused)
    ids = model.generate(**inputs, max_new_tokens=64)
    assert processor.batch_decode(ids) == [
        "In the top left there are four small blue stars. In the bottom left there are two small yellow squares. "
        "In the bottom right there is a large red circle. The background is light blue."
    ]
    model.save_pretrained(tmp_path)
    again = Share4V.from_pretrained(tmp_path, dtype=dtype, **fused)
    for (name, ours), theirs in zip(model.parameters_and_names(), again.get_parameters(), strict=True):
        np.testing.assert_array_equal(ours.float().asnumpy(), theirs.float().asnumpy(), name)
    assert model.generate(**inputs, max_new_tokens=8) == [ids[0][:8]]
