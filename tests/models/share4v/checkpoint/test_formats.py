"""The weight-file readers against the libraries that wrote the files: safetensors, torch, MindSpore."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mindone.models.share4v.checkpoint import CheckpointError, UnsafeCheckpointError
from mindone.models.share4v.checkpoint.formats import find_weights, stored_tensors
from mindone.models.share4v.checkpoint.formats.mindspore_ckpt import open_ckpt
from mindone.models.share4v.checkpoint.formats.safetensors_file import open_safetensors
from mindone.models.share4v.checkpoint.formats.torch_zip import open_torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool]


def tensors_of_every_kind() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {str(dtype): (torch.randn(3, 5, generator=generator) * 50).to(dtype) for dtype in DTYPES}
    extremes = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3e38, 1e-40])
    return {**tensors, "extremes": extremes.bfloat16(), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


def assert_same(opened: list, expected: dict[str, torch.Tensor]) -> None:
    assert {item.name for item in opened} == set(expected)
    for item in opened:
        want = as_numpy(expected[item.name])
        got = item.read()
        assert got.dtype == want.dtype and got.shape == item.shape == want.shape, item.name
        np.testing.assert_array_equal(got, want, err_msg=item.name)


def test_safetensors_reads_what_the_library_wrote(tmp_path: Path) -> None:
    save_file(tensors_of_every_kind(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert_same(open_safetensors(tmp_path / "a.safetensors"), tensors_of_every_kind())


@pytest.mark.parametrize("kept", [5, 60, -1])
def test_a_truncated_safetensors_file_is_an_error(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"a\.safetensors is truncated"):
        open_safetensors(path)


def test_a_dtype_that_numpy_cannot_hold_is_named(tmp_path: Path) -> None:
    save_file({"x": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"x in .* has dtype F8_E4M3"):
        open_safetensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("opener", [open_safetensors, open_torch, open_ckpt])
def test_a_git_lfs_pointer_and_an_empty_file_are_recognised(tmp_path: Path, opener) -> None:
    path = tmp_path / "file"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        opener(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        opener(path)


def test_torch_files_are_read_as_torch_wrote_them(tmp_path: Path) -> None:
    tensors = tensors_of_every_kind()
    base = torch.arange(24.0).reshape(4, 6)
    tensors |= {
        "base": base,
        "transposed": base.T,
        "slice of a shared storage": base[1:3, ::2],
        "expanded": torch.arange(3, dtype=torch.bfloat16)[:, None].expand(3, 4),
        "parameter": torch.nn.Parameter(torch.full((2, 2), 7.0)),
    }
    torch.save(OrderedDict(tensors), tmp_path / "a.bin")
    assert_same(open_torch(tmp_path / "a.bin"), tensors)


def test_a_state_dict_with_its_metadata_or_under_a_key_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    for name, content in {"a.bin": module.state_dict(), "b.bin": {"state_dict": module.state_dict(), "n": 3}}.items():
        torch.save(content, tmp_path / name)
        assert_same(open_torch(tmp_path / name), module.state_dict())


def rewrite_zip(path: Path, change) -> None:
    """Write a torch file anew, each member changed by `change(name, data)`."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    tensors = {"f": torch.randn(5), "b": torch.randn(4).bfloat16()}
    torch.save(tensors, tmp_path / "a.bin")

    def swap(name: str, data: bytes) -> bytes:
        if name.endswith("/byteorder"):
            return b"big"
        width = {"data/0": 4, "data/1": 2}.get(name.partition("/")[2], 0)
        return np.frombuffer(data, f"u{width}").byteswap().tobytes() if width else data

    rewrite_zip(tmp_path / "a.bin", swap)
    assert_same(open_torch(tmp_path / "a.bin"), tensors)


class Attack:
    def __init__(self, function, *args) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lambda marker: Attack(open, marker, "w"), r"open"),
        (lambda marker: {"x": torch.ones(1), "y": Attack(exec, f"open({marker!r}, 'w')")}, r"__builtin__\.exec"),
        (lambda marker: {"x": Attack(getattr, "a", "upper")}, r"__builtin__\.getattr"),
        (lambda marker: {"x": torch.device("cpu")}, r"torch\.device"),
        (lambda marker: {"x": torch.nn.Linear(1, 1)}, r"torch\.nn\.modules\.linear\.Linear"),
        (lambda marker: {"x": torch.sparse_coo_tensor([[0]], [1.0], [2])}, r"_rebuild_sparse_tensor"),
    ],
)
def test_anything_but_a_tensor_is_refused_by_name(tmp_path: Path, content, named: str) -> None:
    marker = str(tmp_path / "was here")
    torch.save(content(marker), tmp_path / "a.bin")
    with pytest.raises(UnsafeCheckpointError, match=named):
        open_torch(tmp_path / "a.bin")
    assert not Path(marker).exists()


def replace_pickle(path: Path, data: bytes) -> None:
    torch.save({"x": torch.ones(1)}, path)
    rewrite_zip(path, lambda name, old: data if name.endswith("data.pkl") else old)


def test_a_pickle_cannot_change_what_later_files_meet(tmp_path: Path) -> None:
    # BUILD with a slot state calls setattr on an object; the allowed globals must not take it.
    for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"):
        state = pickle.dumps((None, {"function": 1, "dtype": "bool", "items": 2}), protocol=2)[2:-1]
        replace_pickle(tmp_path / "bad.bin", b"\x80\x02" + target + state + b"b.")
        with pytest.raises(CheckpointError, match="pickle"):
            open_torch(tmp_path / "bad.bin")
    torch.save(OrderedDict(x=torch.arange(3.0)), tmp_path / "good.bin")
    assert_same(open_torch(tmp_path / "good.bin"), {"x": torch.arange(3.0)})


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x02}", b"\x80\x02K\x01.", b"\x80\x02}K\x01K\x02s.", b"0."])
def test_damaged_pickles_are_errors(tmp_path: Path, data: bytes) -> None:
    replace_pickle(tmp_path / "a.bin", data)
    with pytest.raises(CheckpointError, match=r"a\.bin"):
        open_torch(tmp_path / "a.bin")


def test_a_tensor_that_reaches_beyond_its_storage_is_an_error(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3, 4)}, tmp_path / "a.bin")
    # K\x03K\x04 is the shape (3, 4): make it (9, 4).
    rewrite_zip(tmp_path / "a.bin", lambda name, data: data.replace(b"K\x03K\x04", b"K\x09K\x04"))
    with pytest.raises(CheckpointError, match=r"x in .* reaches element 35 of a storage of 12"):
        open_torch(tmp_path / "a.bin")


def test_a_storage_that_is_too_short_or_packed_is_an_error(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3)}, tmp_path / "a.bin")
    rewrite_zip(tmp_path / "a.bin", lambda name, data: data[:-1] if name.endswith("data/0") else data)
    with pytest.raises(CheckpointError, match="data of x is missing"):
        open_torch(tmp_path / "a.bin")


@pytest.mark.parametrize("kept", [3, 300, -30])
def test_a_truncated_torch_file_is_an_error(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.bin"
    torch.save({"x": torch.ones(500)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"a\.bin is (truncated|not in torch's zip format: it is damaged)"):
        open_torch(path)


def test_the_format_before_zip_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"written before torch 1\.6.*torch\.save\(torch\.load"):
        open_torch(tmp_path / "a.bin")


def write_ckpt(path: Path, tensors: dict[str, torch.Tensor], **options) -> None:
    import mindspore as ms

    def tensor(value: torch.Tensor) -> ms.Tensor:
        made = ms.Tensor(as_numpy(value))
        return made.astype(ms.bfloat16) if value.dtype == torch.bfloat16 else made

    items = [{"name": name, "data": tensor(value)} for name, value in tensors.items()]
    ms.save_checkpoint(items, str(path), **options)


@pytest.mark.parametrize("crc", [False, True])
def test_ckpt_files_are_read_as_mindspore_reads_them(tmp_path: Path, crc: bool) -> None:
    import mindspore as ms

    tensors = {name: value for name, value in tensors_of_every_kind().items() if name != "empty"}
    write_ckpt(tmp_path / "a.ckpt", tensors, crc_check=crc)
    assert_same(open_ckpt(tmp_path / "a.ckpt"), tensors)
    loaded = ms.load_checkpoint(str(tmp_path / "a.ckpt"), crc_check=crc)
    for item in open_ckpt(tmp_path / "a.ckpt"):
        assert tuple(loaded[item.name].shape) == item.shape
        if item.dtype != "bfloat16":
            np.testing.assert_array_equal(loaded[item.name].asnumpy(), item.read())


def test_a_large_tensor_in_several_pieces_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspore.train import serialization

    monkeypatch.setattr(serialization, "SLICE_SIZE", 1)  # kilobytes; MindSpore's own is 512 MB
    tensors = {"a": torch.randn(3000), "b": torch.randn(40, 33), "c": torch.ones(2)}
    write_ckpt(tmp_path / "a.ckpt", tensors)
    assert_same(open_ckpt(tmp_path / "a.ckpt"), tensors)


@pytest.mark.parametrize("kept", [1, 10, 300, -1])
def test_a_truncated_ckpt_file_is_an_error(tmp_path: Path, kept: int) -> None:
    write_ckpt(tmp_path / "a.ckpt", {"x": torch.ones(500)})
    (tmp_path / "b.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"b\.ckpt is truncated"):
        open_ckpt(tmp_path / "b.ckpt")


def test_an_encrypted_ckpt_file_is_an_error(tmp_path: Path) -> None:
    write_ckpt(tmp_path / "a.ckpt", {"x": torch.ones(500)}, enc_key=b"0123456789abcdef")
    with pytest.raises(CheckpointError, match="encrypted"):
        open_ckpt(tmp_path / "a.ckpt")


def write_sharded(directory: Path, shards: dict[str, dict[str, torch.Tensor]], weight_map: dict | None = None) -> None:
    for name, tensors in shards.items():
        save_file(tensors, directory / name)
    if weight_map is None:
        weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


SHARDS = {"model-1.safetensors": {"a": torch.ones(2), "b": torch.ones(3)}, "model-2.safetensors": {"c": torch.ones(1)}}


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    opened = stored_tensors(find_weights(tmp_path))
    assert [(item.name, item.shape) for item in opened] == [("a", (2,)), ("b", (3,)), ("c", (1,))]


FIRST, SECOND = SHARDS


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": FIRST, "b": FIRST, "c": "model-3.safetensors"}, "missing: finish"),
        ({"a": FIRST, "c": SECOND}, "does not place there: b"),
        ({"a": FIRST, "b": SECOND, "c": SECOND}, "does not place there: b"),
        ({"a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND}, "holds d, but"),
        ({"a": f"../{FIRST}"}, r"no shards beside it: \.\./model-1"),
        ({}, "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_an_error(tmp_path: Path, weight_map: dict, message: str) -> None:
    write_sharded(tmp_path, SHARDS, weight_map)
    with pytest.raises(CheckpointError, match=message):
        stored_tensors(find_weights(tmp_path))


def test_safetensors_come_before_bin_and_bin_before_ckpt(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"1")
    assert find_weights(tmp_path).files == (tmp_path / "x.ckpt",)
    (tmp_path / "pytorch_model.bin").write_bytes(b"1")
    assert find_weights(tmp_path).files == (tmp_path / "pytorch_model.bin",)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert find_weights(tmp_path).files == (tmp_path / "model.safetensors",)


def test_a_directory_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors\.index\.json"):
        find_weights(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"1")
    with pytest.raises(FileNotFoundError, match=r"it has pytorch_model-00001-of-00002\.bin, which no index names"):
        find_weights(tmp_path)
