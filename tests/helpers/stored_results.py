"""Results of the kernels that every CPU with fused multiply-adds must repeat to the bit: x86-64 and aarch64.

`cd tests && python -m helpers.stored_results` computes them here, with AVX2, and writes their digests to
stored_results.json beside the kernels' tests. The inputs are made of integers, because NumPy's other random numbers
depend on the machine's mathematical library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mindone.models.share4v.kernels.cache_memory import CacheMemory
from mindone.models.share4v.kernels.library import Library, library
from mindone.models.share4v.kernels.packing import NormSpec

from .kernel_layers import CLIP, LLAMA_BIAS, Layer, LayerShape
from .kernels import causal, linear_block, normals, rows_of, run_activation, run_linear, run_norm

STORED = Path(__file__).parents[1] / "models/share4v/kernels/stored_results.json"
DTYPES = ("float32", "float16", "bfloat16", "int8", "int4", "int8-256", "int4-256")
CACHE_DTYPES = ("float32", "float16", "int8")
HADAMARD = LayerShape(96, 3, 1, 32, 256, hadamard=64)
# The reference; the other fused kinds have its bits (test_bits.py).
REFERENCE = "avx2"
Results = list[np.ndarray]


class ExactGenerator:
    """np.random.Generator's normal values for the tests as sums of integers, which are the same on every machine."""

    def __init__(self, seed: int) -> None:
        self._integers = np.random.default_rng(seed)

    def normal(self, size: tuple[int, ...]) -> np.ndarray:
        """Return sums of four uniform numbers, with mean 0, a deviation of 1.15 and at most 23 bits each."""
        return self._integers.integers(-(2**20), 2**20, (4, *size)).sum(0) * 2.0**-20


def cases() -> Iterator[tuple[str, Callable[[Library], Results]]]:
    """Yield the name of each case, and a function that computes its results with the selected kernels."""
    for dtype in DTYPES:
        yield f"linear {dtype}", lambda kernels, dtype=dtype: _linear(kernels, dtype)
        for name, shape in (("llama", LLAMA_BIAS), ("llama with hadamard", HADAMARD), ("clip", CLIP)):
            yield f"{name} {dtype}", lambda kernels, dtype=dtype, shape=shape: _layer(kernels, dtype, shape)
    for dtype in CACHE_DTYPES:
        for size in (20, 128):
            yield (
                f"attention {dtype}, heads of {size}",
                lambda kernels, dtype=dtype, size=size: _attention(kernels, dtype, size),
            )
    yield "norms and activations", _row_operations


def digest(results: Results) -> str:
    """Return a digest of the arrays' bytes."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in results)).hexdigest()[:32]


def _linear(kernels: Library, dtype: str) -> Results:
    """As many rows as one, a few and many are computed by tiles of their own."""
    rng = ExactGenerator(1)
    block, _ = linear_block(rng, normals(rng, 75, 2120), dtype, True, NormSpec("rms", 2120, 1e-5), "quick_gelu")
    x = normals(rng, 67, 2120) * np.float32(3)
    return [block, *(run_linear(kernels, x[:rows], block, 75) for rows in (1, 2, 5, 13, 41, 67))]


def _layer(kernels: Library, dtype: str, shape: LayerShape) -> Results:
    """A prompt of 60 tokens, then one token."""
    rng = ExactGenerator(2)
    layer = Layer.random(rng, shape, dtype)
    cache, x = layer.cache(1, 61, "float16"), normals(rng, 61, layer.shape.hidden)
    rows = causal(0, 0, 61) if layer.shape.is_rotary else rows_of(*((0, slot, 0, 60) for slot in range(61)))
    prompt = layer.run(kernels, cache, rows[:60], x[:60])
    return [layer.block, prompt, layer.run(kernels, cache, rows[60:], x[60:]), cache.memory]


def _attention(kernels: Library, dtype: str, size: int) -> Results:
    rng, rows = ExactGenerator(3), np.concatenate([causal(0, 3, 77, 3), causal(1, 0, 19)])
    query, key, value = (normals(rng, len(rows), *shape) for shape in ((6, size), (2 * size,), (2 * size,)))
    cache = CacheMemory(1, 2, 2, size, 77, dtype)
    return [kernels.attention(cache.memory, 0, rows, query, key, value), cache.memory]


def _row_operations(kernels: Library) -> Results:
    """Without the exact GELU, whose error function is the C library's."""
    rng = ExactGenerator(4)
    x, weight, bias = normals(rng, 9, 75) + np.float32(0.5), normals(rng, 75), normals(rng, 75)
    specs = (NormSpec("rms", 75, 1e-5), NormSpec("layer", 75, 1e-5, bias=True))
    results = [run_norm(kernels, spec, weight, bias if spec.bias else None, x) for spec in specs]
    large = x * np.float32(30)
    return [*results, run_activation(kernels, "quick_gelu", large), run_activation(kernels, "gated_silu", large, x)]


def main() -> None:
    """Write the digests."""
    kernels = library()
    kernels.select(REFERENCE)
    kernels.threads = 1
    stored = {name: digest(compute(kernels)) for name, compute in cases()}
    STORED.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
