"""A model of a named shape with random weights, and a Runner that measures the phases of a caption on it."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import numpy as np
from limits import limits
from mindspore import Tensor
from shapes import SHAPES

from mindone.models.share4v import ProjectorConfig, Share4V, Share4VConfig, TextConfig, VisionConfig
from mindone.models.share4v.bfloat16 import to_bfloat16
from mindone.models.share4v.kernels.blocks import BlockPlan
from mindone.models.share4v.kernels.library import library
from mindone.models.share4v.kernels.packing import GROUP, LANES, BlockWriter, MatrixSpec
from mindone.models.share4v.quantization import CONVERTED_LAYOUTS
from mindone.models.share4v.rounding.rotation import Rotation

PIECE = 1 << 24  # bytes; generated once per matrix and repeated, since random numbers are slow


def config_of(shape: str) -> Share4VConfig:
    """Return the config of a named shape."""
    sizes = SHAPES[shape]
    text, vision = TextConfig(**asdict(sizes.language)), VisionConfig(**asdict(sizes.vision))
    return Share4VConfig(vision, ProjectorConfig("mlp2x_gelu"), text, image_aspect_ratio="pad")


def random_block(plan: BlockPlan, generator: np.random.Generator) -> np.ndarray:
    """Return a block with weights of about 0.02; integer weights are random bits with one scale, without rounding."""
    writer = BlockWriter(plan.spec)
    for number, matrix in enumerate(plan.spec.matrices):
        data, scales = writer.matrix_bytes(number)
        if matrix.dtype in ("float32", "float16"):
            values = (generator.standard_normal(PIECE // 4, np.float32) * 0.02).astype(matrix.dtype).view(np.uint8)
        elif matrix.dtype == "bfloat16":
            values = to_bfloat16(generator.standard_normal(PIECE // 4, np.float32) * np.float32(0.02)).view(np.uint8)
        else:
            values = generator.integers(0, 256, PIECE, np.uint8)
            if matrix.dtype.startswith("int8"):
                values[values == 128] = 0  # int8 weights are -127 to 127
            _fill_scales(matrix, scales)
        for start in range(0, data.size, values.size):
            data[start : start + values.size] = values[: data.size - start]
    if plan.spec.is_rotated:
        writer.rotation(Rotation.random(plan.spec.norms[0].size).table)
    for number, norm in enumerate(plan.spec.norms):
        writer.vector("norms", number, "weight", np.ones(norm.size, np.float32))
    return writer.block


def _fill_scales(matrix: MatrixSpec, scales: np.ndarray) -> None:
    """Write scales, uint8, with which random integers have a standard deviation of about 0.02."""
    if matrix.dtype != "int4-256":
        scales.view(np.float16)[:] = {"int8": 0.0003, "int8-256": 0.0003, "int4": 0.004}[matrix.dtype]
        return
    panels = scales.reshape(-1, matrix.scale_bytes)  # of each: a float16 per super-block and row, then pairs
    pairs = -(-matrix.columns // GROUP) * LANES * 2
    panels[:, :-pairs] = np.frombuffer(np.float16(0.0005).tobytes() * ((matrix.scale_bytes - pairs) // 2), np.uint8)
    panels[:, -pairs:] = np.tile(np.array([8, 0], np.uint8), pairs // 2)  # scale and offset of a group


def random_model(shape: str, dtype: str, kv_cache_dtype: str | None = None, is_converted: bool = False) -> Share4V:
    """Return a model with random weights, which take the same memory and time as those of a real model.

    `is_converted` gives integers the layout that `share4v convert` writes, and not the one of loading.
    """
    generator, config = np.random.default_rng(0), config_of(shape)
    if is_converted:
        config = replace(config, quantization=dtype, quantization_layout=CONVERTED_LAYOUTS[dtype])
    model = Share4V(config, dtype, "kernels", "kernels", kv_cache_dtype)
    for component in model.packed_components():
        for plan in component.plans:
            component.put(plan.name, random_block(plan, generator))
        for name, size in component.plain.items():
            component.put(name, np.full(size, 0.01, np.float32))
    model.set_train(False)
    return model


class Runner:
    """Measures phases; each method does the work once and returns the seconds."""

    def __init__(self, model: Share4V) -> None:
        self.model = model
        self.text = model.config.text_config
        self.generator = np.random.default_rng(1)
        self._caches: dict[int, object] = {}

    def _cache(self, batch: int):
        if batch not in self._caches:
            self._caches = {batch: self.model.language_model.new_cached(batch, self.text.max_position_embeddings)}
        return self._caches[batch]

    def cache_bytes(self) -> int:
        """Return the bytes of the KV cache that are in use, for the last batch size and the longest sequence so far."""
        total = 0
        for cached in self._caches.values():
            memory = cached.cache
            slots = memory.values.shape[3]
            total += int((memory.keys.nbytes + memory.values.nbytes) * cached.used / slots)
        return total

    def weight_bytes(self) -> int:
        """Return the bytes of the language model that a decode step reads: all but the embedding table."""
        component = self.model.language_model
        return sum(component.array(name).size for name in component.names[1:])

    def matrix_operations(self, tokens: int) -> float:
        """Return the operations of the language model's layers on `tokens` tokens, without attention."""
        plans = self.model.language_model.plans[1:-1]
        return 2.0 * tokens * sum(m.rows * m.columns for plan in plans for m in plan.spec.matrices)

    def encode_operations(self) -> float:
        """Return the operations of the matrix products that encode one image, without attention."""
        vision = self.model.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        parts = self.model.packed_components()
        plans = [plan for part in parts if part is not self.model.language_model for plan in part.plans]
        return 2.0 * patches * sum(m.rows * m.columns for plan in plans for m in plan.spec.matrices)

    def limits(self) -> dict[str, float]:
        """Return the limits of the machine."""
        return limits()

    def encode(self, images: int = 1) -> float:
        """Encode images with the vision tower and the projector."""
        vision = self.model.config.vision_config
        pixels = self.generator.standard_normal((images, 3, vision.image_size, vision.image_size)).astype(np.float32)
        start = time.perf_counter()
        self.model.encode_images(pixels).asnumpy()
        return time.perf_counter() - start

    def prefill(self, tokens: int = 512, batch: int = 1) -> float:
        """Process a prompt of `tokens` embeddings with an empty cache, up to the logits of the last token."""
        cache = self._cache(batch)
        embeds = Tensor(
            self.generator.standard_normal((batch, tokens, self.text.hidden_size)).astype(np.float32) * 0.02
        )
        start = time.perf_counter()
        for first in range(0, tokens, cache.chunk):
            positions = np.arange(first, first + cache.chunk)
            part = embeds[:, first : first + cache.chunk]
            if part.shape[1] < cache.chunk:
                padded = np.zeros((batch, cache.chunk, self.text.hidden_size), np.float32)
                padded[:, : part.shape[1]] = part.asnumpy()
                part = Tensor(padded)
            placed = np.broadcast_to(np.where(positions < tokens, positions, -1), (batch, cache.chunk))
            last = np.full(batch, min(tokens - 1 - first, cache.chunk - 1))
            logits = cache.prefill(part, placed, np.full(batch, tokens), last)
        logits.asnumpy()
        return time.perf_counter() - start

    def decode(self, tokens: int = 16, context: int = 512, batch: int = 1) -> float:
        """Generate `tokens` tokens for each sequence of a batch after `context` others; returns the mean per step."""
        cache = self._cache(batch)
        ids = self.generator.integers(3, self.text.vocab_size, batch)
        start = time.perf_counter()
        for step in range(tokens):
            ids = cache.decode(ids, np.full(batch, context + step)).asnumpy().argmax(-1)
        return (time.perf_counter() - start) / tokens

    def caption(self, tokens: int) -> tuple[float, float]:
        """Caption an image through `generate`; returns the seconds to the first token, and to all `tokens`."""
        config, times = self.model.config, []
        pixels = self.generator.standard_normal((1, 3, *[config.vision_config.image_size] * 2)).astype(np.float32)
        ids = _prompt(50, config.image_token_id)
        for count in (1, tokens):
            start = time.perf_counter()
            self.model.generate(ids, pixels, max_new_tokens=count, min_new_tokens=count)
            times.append(time.perf_counter() - start)
            pixels = pixels + 1  # another image, so that only the system prompt is reused from the cache
        return times[0], times[1]

    def batch_decode(self, batch: int = 8, tokens: int = 16, context: int = 512) -> float:
        """Return the mean seconds of a decode step of a batch."""
        return self.decode(tokens, context, batch)


def _prompt(text: int, image: int) -> np.ndarray:
    """Return the ids of a captioning prompt, about as long as that of vicuna_v1, with one image."""
    return np.concatenate((np.arange(3, 3 + text - 10), [image], np.arange(100, 110)))[None]


def make_model(
    shape: str, dtype: str, threads: int = 0, kv_cache_dtype: str | None = None, is_converted: bool = False
) -> Runner:
    """Return a runner for a shape of SHAPES; `threads` 0 means all CPUs; `is_converted` as in `random_model`."""
    library().threads = threads
    return Runner(random_model(shape, dtype, kv_cache_dtype, is_converted))
