"""Headers of blocks and caches that do not describe the memory passed are rejected before anything is read or written.

A header comes from a file, which may be damaged, hostile, or changed while it is mapped. CI runs these tests under the
address sanitizer too, where one value read out of bounds ends the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from helpers.kernel_layers import CLIP, LLAMA, Layer
from helpers.kernels import causal, linear_block, normals, rows_of

from mindone.models.share4v.kernels.cache_memory import CacheMemory
from mindone.models.share4v.kernels.library import KernelError, Library
from mindone.models.share4v.kernels.packing import BlockSpec, BlockWriter, MatrixSpec, NormSpec

# The headers as csrc/format.h describes them.
NORM = np.dtype("<i4, <f4, <i8, <i8, <i8")
NORM.names = ("kind", "eps", "size", "weight", "bias")
MATRIX = np.dtype("<i4, <i2, <i2, <i8, <i8, <i8, <i8, <i8")
MATRIX.names = ("type", "input_group", "hadamard", "rows", "columns", "data", "scales", "bias")
NUMBERS = ("activation", "heads", "kv_heads", "head_dim", "rotary", "cache_layer")
BLOCK = np.dtype(
    [
        ("magic", "S8"),
        ("bytes", "<i8"),
        *((name, "<i4") for name in NUMBERS),
        ("norms", NORM, 2),
        ("matrices", MATRIX, 4),
        ("rotation", "<i8"),
    ]
)
CACHE_NUMBERS = ("type", "layers", "sequences", "kv_heads", "head_dim", "slots")
CACHE = np.dtype(
    [("magic", "S8"), ("bytes", "<i8")]
    + [(name, "<i4") for name in CACHE_NUMBERS]
    + [(name, "<i8") for name in ("keys", "values", "scales")]
)
HUGE, SMALLEST = 2**62, -(2**63)

# Path of a field in the header of a block -> values that no kernel may accept.
Values = dict[tuple[str | int, ...], tuple[float, ...]]
MATRIX_VALUES: Values = {
    ("type",): (-1, 7, 8),
    ("input_group",): (-1, 1, 32, 255, 512),
    ("hadamard",): (-1, -256, 1, 3, 12, 512),
    ("rows",): (0, -1, HUGE, 10**6),
    ("columns",): (0, -1, HUGE, 10**6),
    ("data",): (0, -64, 64, 1025, HUGE, SMALLEST),
    ("bias",): (-64, 64, 1025, HUGE, SMALLEST),
}
NORM_VALUES: Values = {
    ("kind",): (-1, 3),
    ("eps",): (-1.0, float("nan"), float("inf")),
    ("size",): (0, -1, HUGE, 10**6),
    ("weight",): (0, -64, 64, 1025, HUGE, SMALLEST),
    ("bias",): (-64, 64, 1025, HUGE, SMALLEST),
}
COMMON: Values = {("bytes",): (0, -1, 1023, HUGE, SMALLEST), ("activation",): (-1, 4)}
LAYER: Values = {
    **COMMON,
    ("heads",): (0, -1, 5, 7, 2**31 - 1),
    ("kv_heads",): (0, -1, 3, 4, 2**31 - 1),
    ("head_dim",): (0, -1, 11, 13, 24, 2**31 - 1),
    ("rotary",): (-1, 2),
    ("rotation",): (-64, 64, 1025, HUGE, SMALLEST),
    ("cache_layer",): (-1, 2, 2**31 - 1),
    **{("norms", number, *path): values for number in range(2) for path, values in NORM_VALUES.items()},
    ("norms", 0, "kind"): (-1, 0, 3),
    ("norms", 1, "kind"): (-1, 0, 3),
    **{("matrices", number, *path): values for number in range(4) for path, values in MATRIX_VALUES.items()},
    ("matrices", 0, "scales"): (0, -64, 64, 1025, HUGE, SMALLEST),
    ("matrices", 3, "scales"): (0, -64, 64, 1025, HUGE, SMALLEST),
}
LINEAR: Values = {
    **COMMON,
    ("activation",): (-1, 3, 4),  # gated SiLU needs two matrices
    **{("norms", 0, *path): values for path, values in NORM_VALUES.items()},
    **{("matrices", 0, *path): values for path, values in MATRIX_VALUES.items()},
    ("matrices", 0, "scales"): (0, -64, 64, 1025, HUGE, SMALLEST),
}
TABLE: Values = {
    **COMMON,
    ("matrices", 0, "type"): (-1, 2, 3, 5),
    ("matrices", 0, "rows"): (0, -1, 51, 10**6, HUGE),
    ("matrices", 0, "columns"): (0, -1, 25, 10**6, HUGE),
    ("matrices", 0, "data"): (0, -64, 64, 1025, HUGE, SMALLEST),
}
CACHE_VALUES: Values = {
    ("bytes",): (0, -1, 1023, HUGE, SMALLEST),
    ("type",): (-1, 3, 4),
    **{(name,): (0, -1, 10**6, 2**31 - 1) for name in CACHE_NUMBERS[1:]},
    ("slots",): (0, -1, 8, 17, 10**6, 2**31 - 1),
    **{(name,): (0, -64, 64, 1025, HUGE, SMALLEST) for name in ("keys", "values", "scales")},
}


def cases(values: Values) -> list[object]:
    return [
        pytest.param(path, value, id=f"{'.'.join(map(str, path))}={value}")
        for path, wrong in values.items()
        for value in wrong
    ]


@pytest.fixture(autouse=True)
def one_thread(any_kernels: Library) -> Iterator[None]:
    any_kernels.threads = 1
    yield
    any_kernels.threads = 0


def set_field(memory: np.ndarray, header: np.dtype, path: tuple[str | int, ...], value: float) -> None:
    at = memory[: header.itemsize].view(header)
    *parents, field = path
    for parent in parents:
        at = at[parent] if isinstance(parent, str) else at[..., parent]
    at[field] = value


def check_rejected(kernels: Library, function: str, inputs: list[np.ndarray], output: np.ndarray) -> None:
    output.view(np.uint8)[:] = 7
    with pytest.raises(KernelError, match=f"{function} rejected its arguments"):
        kernels.call(function, inputs, output)
    assert (output.view(np.uint8) == 7).all()


Call = tuple[list[np.ndarray], np.ndarray]


def layer_call(rng: np.random.Generator, dtype: str = "int4") -> Call:
    layer, rows = Layer.random(rng, LLAMA, dtype, cache_layer=1), causal(1, 0, 5)
    x = normals(rng, 5, LLAMA.hidden)
    return [x, layer.block, layer.cache(2, 32, "int8").memory, rows, *layer.tables(rows)], np.zeros_like(x)


def linear_call(rng: np.random.Generator) -> Call:
    block, _ = linear_block(rng, normals(rng, 20, 40), "int8", True, NormSpec("layer", 40, 1e-5, True))
    return [normals(rng, 6, 40), np.array([0, 5, -1], np.int32), block], np.zeros((3, 20), np.float32)


def table_call(rng: np.random.Generator) -> Call:
    writer = BlockWriter(BlockSpec((MatrixSpec(50, 24, "float16"),), is_table=True))
    writer.matrix(0, normals(rng, 50, 24))
    return [np.array([3, 49, 0], np.int32), writer.block], np.zeros((3, 24), np.float32)


CALLS = {"share4v_layer": layer_call, "share4v_linear": linear_call, "share4v_embedding": table_call}


@cache
def _call(function: str) -> Call:
    return CALLS[function](np.random.default_rng(3))


def call_of(function: str) -> Call:
    """Return inputs and output of a valid call, which the tests modify."""
    inputs, output = _call(function)
    return [array.copy() for array in inputs], output.copy()


@pytest.mark.parametrize(("path", "value"), cases(LAYER))
def test_layer(any_kernels: Library, path: tuple[str | int, ...], value: float) -> None:
    inputs, y = call_of("share4v_layer")
    set_field(inputs[1], BLOCK, path, value)
    check_rejected(any_kernels, "share4v_layer", inputs, y)


@pytest.mark.parametrize(("path", "value"), cases(LINEAR))
def test_linear(any_kernels: Library, path: tuple[str | int, ...], value: float) -> None:
    inputs, y = call_of("share4v_linear")
    set_field(inputs[2], BLOCK, path, value)
    check_rejected(any_kernels, "share4v_linear", inputs, y)


@pytest.mark.parametrize(("path", "value"), cases(TABLE))
def test_table(any_kernels: Library, path: tuple[str | int, ...], value: float) -> None:
    inputs, y = call_of("share4v_embedding")
    set_field(inputs[1], BLOCK, path, value)
    check_rejected(any_kernels, "share4v_embedding", inputs, y)


@pytest.mark.parametrize(("path", "value"), cases(CACHE_VALUES))
def test_cache(any_kernels: Library, path: tuple[str | int, ...], value: float) -> None:
    inputs, y = call_of("share4v_layer")
    set_field(inputs[2], CACHE, path, value)
    check_rejected(any_kernels, "share4v_layer", inputs, y)
    query, key = np.ones((5, LLAMA.heads, 12), np.float32), np.ones((5, LLAMA.kv_heads * 12), np.float32)
    with pytest.raises(KernelError, match="attention rejected"):
        any_kernels.attention(inputs[2], 1, inputs[3], query, key, key)


@pytest.mark.parametrize("function", CALLS)
def test_the_calls_themselves_are_accepted(any_kernels: Library, function: str) -> None:
    inputs, output = call_of(function)
    assert any_kernels.call(function, inputs, output).any()


@pytest.mark.parametrize("number", range(4))
def test_pack_and_unpack(any_kernels: Library, rng: np.random.Generator, number: int) -> None:
    """A block with one matrix accepts only matrix 0, weights of its width, and rows that it has."""
    block, spec = linear_block(rng, normals(rng, 40, 40), "int8")
    rows, columns = spec.matrices[0].rows, spec.matrices[0].columns
    weight = normals(rng, 16, columns)
    if number:
        for wrong in (number, -number):
            with pytest.raises(KernelError, match="pack rejected"):
                any_kernels.pack(block, wrong, 0, weight, 0)
            with pytest.raises(KernelError, match="unpack rejected"):
                any_kernels.unpack(block, wrong, rows, columns)
        return
    assert any_kernels.pack(block, 0, 16, weight, 0) == 0
    for first in (-16, 1, 32, 48, HUGE):
        with pytest.raises(KernelError, match="pack rejected"):
            any_kernels.pack(block, 0, first, weight, 0)
    for source, source_type in ((weight[:, 1:].copy(), 0), (weight, 3), (weight, 9)):
        with pytest.raises(KernelError, match="pack rejected"):
            any_kernels.pack(block, 0, 0, source, source_type)
    with pytest.raises(KernelError, match="unpack rejected"):
        any_kernels.unpack(block, 0, rows - 1, columns)
    set_field(block, BLOCK, ("matrices", 0, "scales"), HUGE)
    with pytest.raises(KernelError, match="pack rejected"):
        any_kernels.pack(block, 0, 0, weight, 0)
    with pytest.raises(KernelError, match="unpack rejected"):
        any_kernels.unpack(block, 0, rows, columns)


def test_strides(any_kernels: Library, rng: np.random.Generator) -> None:
    """The kernels have no strides, so a view that is not contiguous is rejected instead of being read as if it were."""
    inputs, y = linear_call(rng)
    wide = normals(rng, 6, 80)
    for wrong in (wide[:, ::2], wide[:, :40], np.asfortranarray(inputs[0])):
        with pytest.raises(KernelError, match="C order"):
            any_kernels.call("share4v_linear", [wrong, *inputs[1:]], y)
    with pytest.raises(KernelError, match="C order"):
        any_kernels.call("share4v_linear", [*inputs[:2], np.repeat(inputs[2], 2)[::2]], y)
    with pytest.raises(KernelError, match="C order"):
        any_kernels.call("share4v_linear", inputs, np.zeros((3, 40), np.float32)[:, ::2])
    with pytest.raises(KernelError, match="C order"):
        any_kernels.unpack(np.repeat(inputs[2], 2)[::2], 0, 20, 40)


def test_head_counts(any_kernels: Library, rng: np.random.Generator) -> None:
    cache, rows = CacheMemory(2, 1, 2, 8, 16, "float32"), rows_of((0, 0, 0, 1))
    query, key = normals(rng, 1, 4, 8), normals(rng, 1, 16)
    assert any_kernels.attention(cache.memory, 1, rows, query, key, key).any()
    wrong = {
        "heads": (0, normals(rng, 1, 3, 8), key, key),
        "no heads": (0, normals(rng, 1, 0, 8), key, key),
        "head size": (0, normals(rng, 1, 4, 6), key, key),
        "keys": (0, query, normals(rng, 1, 24), normals(rng, 1, 24)),
        "values": (0, query, key, normals(rng, 1, 8)),
        "layer": (2, query, key, key),
        "layer below 0": (-1, query, key, key),
        "types": (0, query.astype(np.float64), key, key),
    }
    for name, (layer, *arrays) in wrong.items():
        with pytest.raises(KernelError, match="attention rejected"):
            any_kernels.attention(cache.memory, layer, rows, *arrays)
            pytest.fail(name)
    with pytest.raises(KernelError, match="attention rejected"):
        any_kernels.attention(cache.memory[:-64], 0, rows, query, key, key)


def test_parts_of_a_layer(any_kernels: Library, rng: np.random.Generator) -> None:
    x, vector = normals(rng, 3, 8), normals(rng, 8)
    for wrong in (lambda: any_kernels.norm(1, 1e-5, vector[:-1].copy(), None, x),):
        with pytest.raises(KernelError, match="norm rejected"):
            wrong()
    with pytest.raises(KernelError, match="rotary rejected"):
        any_kernels.rotary(x, x[:2].copy(), x)
    with pytest.raises(KernelError, match="activation rejected"):
        any_kernels.activation(3, x, x[:2].copy())


def test_random_headers(any_kernels: Library) -> None:
    """With any header, the call is rejected or stays inside the buffers passed; a crash would end this process."""
    rng = np.random.default_rng(12)
    base, y = layer_call(rng, "int8")
    clip, rows = Layer.random(rng, CLIP, "float16"), causal(0, 0, 3)
    none = np.zeros((0, 0), np.float32)
    x = normals(rng, 3, CLIP.hidden)
    calls = [
        ("share4v_layer", base, y, 1, BLOCK),
        ("share4v_layer", base, y, 2, CACHE),
        ("share4v_layer", [x, clip.block, clip.cache(1, 3).memory, rows, none, none], np.zeros_like(x), 1, BLOCK),
        ("share4v_linear", *linear_call(rng), 2, BLOCK),
        ("share4v_embedding", *table_call(rng), 1, BLOCK),
    ]
    rejected = 0
    for _ in range(60):
        for function, inputs, output, which, header in calls:
            damaged = inputs[which].copy()
            for _ in range(rng.integers(1, 4)):
                at = rng.integers(8, header.itemsize // 4) * 4  # most fields are 4 or 8 bytes
                value = rng.choice([0, 1, -1, 2, 15, 16, 64, 1024, 1 << 16, (1 << 31) - 1, int(rng.integers(1 << 31))])
                damaged[at : at + 4].view(np.int32)[0] = value
            try:
                any_kernels.call(function, [*inputs[:which], damaged, *inputs[which + 1 :]], output)
            except KernelError:
                rejected += 1
    assert rejected > 150
