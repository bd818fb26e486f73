"""Invalid arguments are rejected before anything is read or written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from helpers.kernel_layers import CLIP, LLAMA, Layer
from helpers.kernels import causal, linear_block, normals, rows_of

from mindone.models.share4v.kernels.cache_memory import CacheMemory
from mindone.models.share4v.kernels.library import KernelError, Library
from mindone.models.share4v.kernels.packing import BlockSpec, BlockWriter, MatrixSpec

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays], object]


def refused(kernels: Library, function: str, arrays: Arrays, change: Change) -> None:
    """Make a valid call, then one with a changed argument, which must raise and leave the output unchanged."""
    *inputs, output = arrays.values()
    kernels.call(function, inputs, output)
    change(arrays)
    *inputs, output = arrays.values()
    output.view(np.uint8)[:] = 7
    with pytest.raises(KernelError, match=f"{function} rejected its arguments"):
        kernels.call(function, inputs, output)
    assert (output.view(np.uint8) == 7).all()


def put(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Replace an argument by a modified copy."""
    return lambda arrays: arrays.update({name: np.ascontiguousarray(make(arrays[name]))})


def first_row(*row: int) -> Change:
    """Replace the first row of a layer's call."""
    return put("rows", lambda rows: np.concatenate((rows_of(row), rows[1:])))  # type: ignore[arg-type]


def other_magic(block: np.ndarray) -> np.ndarray:
    changed = block.copy()
    changed[7] ^= 1
    return changed


BLOCKS: dict[str, Change] = {
    "block of another magic": put("block", other_magic),
    "block that is cut": put("block", lambda block: block[:-1]),
    "block without the whole header": put("block", lambda block: block[:1023]),
    "no block": put("block", lambda block: block[:0]),
    "block of zeros": put("block", np.zeros_like),
}

LINEAR: dict[str, Change] = {
    **BLOCKS,
    "x too narrow": put("x", lambda x: x[:, :-1]),
    "x too wide": put("x", lambda x: np.pad(x, ((0, 0), (0, 1)))),
    "x of three dimensions": put("x", lambda x: x[None]),
    "x of one dimension": put("x", lambda x: x.ravel()),
    "x float64": put("x", lambda x: x.astype(np.float64)),
    "x float16": put("x", lambda x: x.astype(np.float16)),
    "index beyond x": put("index", lambda index: np.array([0, 6, 1], np.int32)),
    "x without rows": put("x", lambda x: x[:0]),
    "index int64": put("index", lambda index: index.astype(np.int64)),
    "index longer than y": put("index", lambda index: np.zeros(4, np.int32)),
    "index shorter than y": put("index", lambda index: np.zeros(2, np.int32)),
    "index of two dimensions": put("index", lambda index: index[None]),
    "y too narrow": put("y", lambda y: y[:, :-1]),
    "y too wide": put("y", lambda y: np.pad(y, ((0, 0), (0, 1)))),
    "y of one dimension": put("y", lambda y: y.ravel()),
    "y float16": put("y", lambda y: y.astype(np.float16)),
    "an argument missing": lambda arrays: arrays.pop("index"),
    "an argument too many": lambda arrays: arrays.update(y2=arrays["y"].copy()),
}


@pytest.mark.parametrize("change", LINEAR.values(), ids=LINEAR)
def test_linear(kernels: Library, rng: np.random.Generator, change: Change) -> None:
    block, _ = linear_block(rng, normals(rng, 20, 40), "int8")
    arrays = {"x": normals(rng, 6, 40), "index": np.array([0, 5, -1], np.int32), "block": block}
    refused(kernels, "share4v_linear", {**arrays, "y": np.zeros((3, 20), np.float32)}, change)


EMBEDDING: dict[str, Change] = {
    **BLOCKS,
    "id beyond the table": put("ids", lambda ids: np.array([0, 50, 1], np.int32)),
    "id below zero": put("ids", lambda ids: np.array([0, -1, 1], np.int32)),
    "ids int64": put("ids", lambda ids: ids.astype(np.int64)),
    "more ids than y has rows": put("ids", lambda ids: np.zeros(4, np.int32)),
    "fewer ids than y has rows": put("ids", lambda ids: np.zeros(2, np.int32)),
    "y too narrow": put("y", lambda y: y[:, :-1]),
    "y too wide": put("y", lambda y: np.pad(y, ((0, 0), (0, 1)))),
    "y of one dimension": put("y", lambda y: y.ravel()),
    "y float16": put("y", lambda y: y.astype(np.float16)),
    "an argument missing": lambda arrays: arrays.pop("ids"),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("change", EMBEDDING.values(), ids=EMBEDDING)
def test_embedding(kernels: Library, rng: np.random.Generator, dtype: str, change: Change) -> None:
    writer = BlockWriter(BlockSpec((MatrixSpec(50, 24, dtype),), is_table=True))
    writer.matrix(0, normals(rng, 50, 24))
    arrays = {"ids": np.array([3, 49, 0], np.int32), "block": writer.block, "y": np.zeros((3, 24), np.float32)}
    refused(kernels, "share4v_embedding", arrays, change)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_embedding_of_integers(kernels: Library, rng: np.random.Generator, dtype: str) -> None:
    """Integer matrices are stored in panels, from which single rows cannot be gathered."""
    block, _ = linear_block(rng, normals(rng, 50, 24), dtype)
    with pytest.raises(KernelError):
        kernels.call("share4v_embedding", [np.zeros(3, np.int32), block], np.zeros((3, 24), np.float32))


def cache_of(**changes: int) -> Change:
    """Replace the cache with one of another shape."""
    shape = {"layers": 2, "texts": 2, "kv_heads": 2, "head_dim": 12, "capacity": 32, **changes}
    return put("cache", lambda cache: CacheMemory(*shape.values(), "float16").memory)


LAYER: dict[str, Change] = {
    **BLOCKS,
    "x too narrow": put("x", lambda x: x[:, :-1]),
    "x of one dimension": put("x", lambda x: x.ravel()),
    "x float64": put("x", lambda x: x.astype(np.float64)),
    "fewer rows than x": put("rows", lambda rows: rows[:-1]),
    "more rows than x": put("rows", lambda rows: np.concatenate((rows, rows))),
    "rows of three numbers": put("rows", lambda rows: rows[:, :3]),
    "rows of one dimension": put("rows", lambda rows: rows.ravel()),
    "rows int64": put("rows", lambda rows: rows.astype(np.int64)),
    "text beyond": first_row(2, 0, 0, 1),
    "text below zero": first_row(-1, 0, 0, 1),
    "slot beyond": first_row(0, 32, 0, 1),
    "end beyond": first_row(0, 0, 0, 33),
    "begin below zero": first_row(0, 0, -1, 1),
    "begin at end": first_row(0, 3, 3, 3),
    "begin after end": first_row(0, 3, 4, 3),
    "begin and end beyond": first_row(0, 3, 40, 41),
    "cos too narrow": put("cos", lambda cos: cos[:, :-1]),
    "cos too short": put("cos", lambda cos: cos[:-1]),
    "sin too narrow": put("sin", lambda sin: sin[:, :-1]),
    "sin too short": put("sin", lambda sin: sin[:-1]),
    "sin of one dimension": put("sin", lambda sin: sin.ravel()),
    "cos float64": put("cos", lambda cos: cos.astype(np.float64)),
    "y too narrow": put("y", lambda y: y[:, :-1]),
    "y too short": put("y", lambda y: y[:-1]),
    "y of one dimension": put("y", lambda y: y.ravel()),
    "y float16": put("y", lambda y: y.astype(np.float16)),
    "cache of another magic": put("cache", other_magic),
    "cache that is cut": put("cache", lambda cache: cache[:-1]),
    "no cache": put("cache", lambda cache: cache[:0]),
    "cache of fewer layers": cache_of(layers=1),
    "cache of other heads": cache_of(kv_heads=3),
    "cache of another head_dim": cache_of(head_dim=16),
    "a block for the cache": lambda arrays: arrays.update(cache=arrays["block"]),
    "a cache for the block": lambda arrays: arrays.update(block=arrays["cache"]),
    "an argument missing": lambda arrays: arrays.pop("sin"),
}


def layer_arrays(rng: np.random.Generator) -> Arrays:
    layer, rows = Layer.random(rng, LLAMA, "int4", cache_layer=1), causal(1, 0, 5)
    cos, sin = layer.tables(rows)
    x = normals(rng, 5, LLAMA.hidden)
    memory = layer.cache(2, 32, "float16").memory
    arrays = {"x": x, "block": layer.block, "cache": memory, "rows": rows, "cos": cos, "sin": sin}
    return {**arrays, "y": np.zeros_like(x)}


@pytest.mark.parametrize("change", LAYER.values(), ids=LAYER)
def test_layer(kernels: Library, rng: np.random.Generator, change: Change) -> None:
    refused(kernels, "share4v_layer", layer_arrays(rng), change)


def test_idle_rows_may_say_anything(kernels: Library, rng: np.random.Generator) -> None:
    arrays = layer_arrays(rng)
    arrays["rows"] = np.concatenate((arrays["rows"][:4], rows_of((99, -1, 50, -7))))
    before = arrays["cache"].copy()
    *inputs, output = arrays.values()
    whole = kernels.call("share4v_layer", inputs, output).copy()
    assert not np.array_equal(arrays["cache"], before)
    arrays["rows"][:4, 1] = -1
    written = arrays["cache"].copy()
    kernels.call("share4v_layer", [*inputs[:3], arrays["rows"], *inputs[4:]], output)
    assert np.array_equal(arrays["cache"], written)
    assert np.isfinite(whole[:4]).all()


def test_a_layer_without_rotary_embedding_needs_no_tables(kernels: Library, rng: np.random.Generator) -> None:
    layer, x, rows = Layer.random(rng, CLIP, "float32"), normals(rng, 3, CLIP.hidden), causal(0, 0, 3)
    none = np.zeros((0, 0), np.float32)
    y = kernels.call("share4v_layer", [x, layer.block, layer.cache(1, 3).memory, rows, none, none], np.zeros_like(x))
    assert np.array_equal(y, layer.run(kernels, layer.cache(1, 3), rows, x))


@pytest.mark.parametrize(
    "row", [(0, 16, 0, 1), (0, -1, 0, 1), (1, 0, 0, 1), (-1, 0, 0, 1), (0, 0, -1, 1), (0, 0, 1, 1), (0, 0, 0, 17)]
)
def test_attention(kernels: Library, rng: np.random.Generator, row: tuple[int, int, int, int]) -> None:
    cache = CacheMemory(1, 1, 2, 8, 16, "float32")
    inputs = normals(rng, 2, 4, 8), normals(rng, 2, 16), normals(rng, 2, 16)
    with pytest.raises(KernelError, match="attention rejected"):
        kernels.attention(cache.memory, 0, rows_of((0, 0, 0, 1), row), *inputs)
    assert not cache.keys.any()


def test_other_names_are_refused(kernels: Library) -> None:
    with pytest.raises(ValueError, match="kernels for 'sse' are not supported on this machine"):
        kernels.select("sse")
    with pytest.raises(ValueError, match="kv_cache_dtype 'int4' is not supported"):
        CacheMemory(1, 1, 1, 1, 1, "int4")
