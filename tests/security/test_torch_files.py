"""Hostile torch files: each ends with one clear error, within limits of time and memory."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
from helpers.limits import run_limited

OPEN = """
from pathlib import Path
from mindone.models.share4v.checkpoint.formats.torch_zip import open_torch
report(lambda path: [tensor.read().shape for tensor in open_torch(Path(path))], sys.argv[1])
"""
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ"
HOOKS = b"\x89ccollections\nOrderedDict\n)R"


def number(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, elements: int = 4) -> bytes:
    return TENSOR + b"(" + STORAGE % number(elements) + number(offset) + sizes(shape) + sizes(strides) + HOOKS + b"tR"


def mapping(value: bytes, name: str = "x") -> bytes:
    return b"\x80\x02}X" + struct.pack("<I", len(name)) + name.encode() + value + b"s."


def write(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a/data.pkl"), pickled, compression)
        archive.writestr("a/data/0", bytes(16))
    return path


def rejected(path: Path) -> str:
    kind, message = run_limited(OPEN, str(path))
    assert kind in ("CheckpointError", "UnsafeCheckpointError"), f"{kind}: {message}"
    assert path.name in message and len(message) < 2000
    return message


def test_the_files_here_are_like_torchs(tmp_path: Path) -> None:
    """The hostile files below differ from this valid one in one place each."""
    kind, message = run_limited(OPEN, str(write(tmp_path / "a.bin", mapping(tensor((2, 2), (2, 1))))))
    assert (kind, message) == ("value", "[(2, 2)]")


@pytest.mark.parametrize("count", [9, 33, 64, 1000, 100_000])
def test_a_tensor_of_many_dimensions(tmp_path: Path, count: int) -> None:
    message = rejected(write(tmp_path / "a.bin", mapping(tensor((1,) * count, (1,) * count))))
    assert f"shape has {count} dimensions, expected at most 8" in message


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "said"),
    [
        ((2,), (-1,), 1, "strides has -1"),
        ((2,), (1,), -1, "offset has -1"),
        ((-2,), (1,), 0, "shape has -2"),
        ((2,), (4,), 0, "reaches element 4 of a storage of 4"),
        ((2,), (1,), 3, "reaches element 4 of a storage of 4"),
        ((1,), (1,), 4, "reaches element 4 of a storage of 4"),
        ((2**62, 4), (0, 0), 0, "shape has 4611686018427387904"),
        ((2**40, 2**40), (0, 0), 0, "more than"),
        ((0, 2**40, 2**40), (0, 0, 0), 0, "more than"),
        ((2,), (2**63 - 1,), 0, "strides has 9223372036854775807"),
        ((2, 2), (1,), 0, "2 sizes and 1 strides"),
    ],
)
def test_numbers_that_lead_out_of_the_storage(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, said: str
) -> None:
    assert said in rejected(write(tmp_path / "a.bin", mapping(tensor(shape, strides, offset))))


def test_strides_that_are_never_used_may_be_anything(tmp_path: Path) -> None:
    """A dimension of size 1, and an empty tensor: torch writes arbitrary strides for them."""
    for shape in ((1, 2), (0, 2)):
        pickled = mapping(tensor(shape, (2**47, 1)))
        assert run_limited(OPEN, str(write(tmp_path / "a.bin", pickled))) == ("value", f"[{shape}]")


def test_a_state_is_not_taken_from_the_file(tmp_path: Path) -> None:
    """BUILD gives the OrderedDict an attribute `items` in CPython's unpickler; here it is read and ignored."""
    state = b"}X\x05\x00\x00\x00itemsK\x01s"
    pickled = b"\x80\x02ccollections\nOrderedDict\n)R" + state + b"bX\x01\x00\x00\x00x" + tensor((2,), (1,)) + b"s."
    assert run_limited(OPEN, str(write(tmp_path / "a.bin", pickled))) == ("value", "[(2,)]")


def test_a_state_on_anything_but_a_mapping(tmp_path: Path) -> None:
    for target in (b"ctorch\nFloatStorage\n", TENSOR, b"K\x01", b")"):
        rejected(write(tmp_path / "a.bin", b"\x80\x02" + target + b"}b."))


@pytest.mark.parametrize(
    "key",
    [
        b")" + b"\x85" * 1_000_000,  # ((((...),),),): hashing it overflows the C stack
        b"K\x01",
        b"N",
        b"(K\x01K\x02t",
        b"}",
        b"ctorch\nFloatStorage\n",
    ],
    ids=["nested", "number", "None", "tuple", "mapping", "type"],
)
def test_keys_are_text(tmp_path: Path, key: bytes) -> None:
    rejected(write(tmp_path / "a.bin", b"\x80\x02}" + key + tensor((2,), (1,)) + b"s."))


@pytest.mark.parametrize("opening", [b")" + b"\x85" * 1_000_000, b"}X\x01\x00\x00\x00a" * 100_000])
def test_values_nested_deeply(tmp_path: Path, opening: bytes) -> None:
    closing = b"N" + b"s" * 100_000 if opening.startswith(b"}") else b""
    rejected(write(tmp_path / "a.bin", b"\x80\x02" + opening + closing + b"."))


def test_values_that_refer_to_each_other_many_times(tmp_path: Path) -> None:
    """Each tuple holds the one before twice; to walk them all would take 2^n steps."""
    pickled = b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(100)) + b"."
    rejected(write(tmp_path / "a.bin", pickled))


def test_a_mapping_that_holds_itself(tmp_path: Path) -> None:
    assert "a dict" in rejected(write(tmp_path / "a.bin", b"\x80\x02}q\x00X\x01\x00\x00\x00xh\x00s."))


@pytest.mark.parametrize("index", [2**28, 2**32 - 1])
def test_a_memo_index_reserves_no_memory(tmp_path: Path, index: int) -> None:
    pickled = b"\x80\x02}r" + struct.pack("<I", index) + b"X\x01\x00\x00\x00x" + tensor((2,), (1,)) + b"s."
    assert run_limited(OPEN, str(write(tmp_path / "a.bin", pickled)), megabytes=200) == ("value", "[(2,)]")


def test_a_pickle_that_inflates(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", b"\x80\x02" + b"N0" * (100 << 20) + b".", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "compressed" in rejected(path)


def test_a_pickle_that_is_large(tmp_path: Path) -> None:
    assert "expected at most" in rejected(write(tmp_path / "a.bin", b"\x80\x02" + bytes(65 << 20) + b"."))


@pytest.mark.parametrize("size", [9, 255])
def test_integers_are_bounded(tmp_path: Path, size: int) -> None:
    rejected(write(tmp_path / "a.bin", b"\x80\x02\x8a" + bytes([size]) + b"\x7f" * size + b"."))


@pytest.mark.parametrize(
    "opcode",
    [b"i", b"o", b"\x81", b"\x92", b"]", b"a", b"e", b"0", b"1", b"2", b"\x96", b"\x97", b"P", b"\x82", b"\x8b"],
)
def test_opcodes_that_torch_does_not_write(tmp_path: Path, opcode: bytes) -> None:
    pickled = b"\x80\x02}" + opcode + b"os\nsystem\n" + b"."
    assert "is not one that torch.save writes" in rejected(write(tmp_path / "a.bin", pickled))


@pytest.mark.parametrize(
    "name", ["os\nsystem", "builtins\neval", "torch\nload", "collections\nnamedtuple", "torch\nTensor"]
)
def test_names_that_tensors_do_not_need(tmp_path: Path, name: str) -> None:
    message = rejected(write(tmp_path / "a.bin", b"\x80\x02c" + name.encode() + b"\nX\x02\x00\x00\x00id\x85R."))
    assert name.replace("\n", ".") in message


def test_a_name_that_appears_twice(tmp_path: Path) -> None:
    one = b"X\x01\x00\x00\x00x" + tensor((2,), (1,))
    assert "appears twice" in rejected(write(tmp_path / "a.bin", b"\x80\x02}(" + one + one + b"u."))


def test_every_truncation_and_every_changed_byte(tmp_path: Path) -> None:
    """No byte of a valid pickle can be changed so that something other than a CheckpointError is raised."""
    code = """
import zipfile
from pathlib import Path
from mindone.models.share4v.checkpoint.errors import CheckpointError
from mindone.models.share4v.checkpoint.formats.torch_pickle import read_tensor_records
from mindone.models.share4v.checkpoint.formats.torch_zip import open_torch
def attempts(path):
    data = Path(path).read_bytes()
    changed = [data[:end] for end in range(len(data))]
    changed += [data[:at] + bytes([value]) + data[at + 1 :] for at in range(len(data)) for value in range(0, 256, 3)]
    errors = 0
    for content in changed:
        try:
            read_tensor_records(content, Path("a.bin"))
        except CheckpointError:
            errors += 1
    return errors > len(data)
report(attempts, sys.argv[1])
"""
    (tmp_path / "pickle").write_bytes(mapping(tensor((2, 2), (2, 1))))
    assert run_limited(code, str(tmp_path / "pickle"), seconds=60) == ("value", "True")
