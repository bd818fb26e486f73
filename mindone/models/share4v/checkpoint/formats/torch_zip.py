"""Reader of torch's .bin files (the zip format that torch.save has written since 1.6), without torch."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import CheckpointError
from .tensor import Layout, StoredTensor, arranged, checked_layout, decoded, item_size, map_file, typed
from .torch_pickle import MAX_PICKLE_BYTES, TensorRecord, read_tensor_records

ZIP_MAGIC = b"PK\x03\x04"
LOCAL_HEADER_SIZE = 30
ByteOrder = Literal["<", ">"]
BYTE_ORDERS: dict[bytes, ByteOrder] = {b"little": "<", b"big": ">"}


def open_torch(path: Path) -> list[StoredTensor]:
    """List the tensors of a torch file; their data stays in the file until read.

    Storages are views of the mapped file, so that tensors which share one, strides and offsets come out as torch's.

    Raises:
        UnsafeCheckpointError: the file asks for anything but tensors.
        CheckpointError: the file is truncated, damaged, or of the format before torch 1.6.
    """
    data = map_file(path)
    if data[:4].tobytes() != ZIP_MAGIC:
        raise CheckpointError(
            f"{path} is not in torch's zip format: it is damaged, or was written before torch 1.6 or with "
            "_use_new_zipfile_serialization=False. With torch installed, "
            "torch.save(torch.load(path, weights_only=True), path) writes it anew"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            root = _root(members, path)
            records = read_tensor_records(
                _small_member(archive, members[root + "data.pkl"], MAX_PICKLE_BYTES, path), path
            )
            has_order = root + "byteorder" in members
            order = _small_member(archive, members[root + "byteorder"], 16, path) if has_order else b"little"
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}): download it again") from error
    if order not in BYTE_ORDERS:
        raise CheckpointError(f"{path} states byte order {order!r}, expected b'little' or b'big'")
    storages = _Storages(data, members, root, BYTE_ORDERS[order], path)
    return [storages.stored(name, record) for name, record in records.items()]


def _root(members: dict[str, zipfile.ZipInfo], path: Path) -> str:
    roots = [name[: -len("data.pkl")] for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise CheckpointError(f"{path} is a zip file without a data.pkl, so not one that torch.save wrote")
    return roots[0]


def _small_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int, path: Path) -> bytes:
    """Read a member of at most `limit` bytes. torch compresses nothing, so a compressed member is not torch's."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > limit:
        raise CheckpointError(
            f"{path} holds {member.filename} with {member.file_size} bytes"
            f"{'' if member.compress_type == zipfile.ZIP_STORED else ', compressed'}; expected at most {limit}, stored"
        )
    return archive.read(member)


class _Storages:
    """The storages of one archive as views of the mapped file."""

    def __init__(
        self, data: np.ndarray, members: dict[str, zipfile.ZipInfo], root: str, byteorder: ByteOrder, path: Path
    ) -> None:
        self.data, self.members, self.root, self.byteorder, self.path = data, members, root, byteorder, path

    def stored(self, name: str, record: TensorRecord) -> StoredTensor:
        """Check that the tensor lies inside its storage, and describe it."""
        storage = record.storage
        layout = checked_layout(f"{name} in {self.path}", record.shape, storage.numel, record.stride, record.offset)
        start = self._start(storage.key, storage.numel * item_size(storage.dtype), name)
        read = partial(self._read, storage.dtype, layout, start)
        return StoredTensor(name, layout.shape, storage.dtype, self.path, read, self.data)

    def _start(self, key: str, size: int, name: str) -> int:
        info = self.members.get(f"{self.root}data/{key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size < size:
            raise CheckpointError(f"the data of {name} is missing from {self.path}, or shorter than {size} bytes")
        header = self.data[info.header_offset : info.header_offset + LOCAL_HEADER_SIZE]
        lengths = header[26:30].view("<u2").tolist() if len(header) == LOCAL_HEADER_SIZE else [0, 0]
        start = info.header_offset + LOCAL_HEADER_SIZE + sum(lengths)
        if header[:4].tobytes() != ZIP_MAGIC or start + size > len(self.data):
            raise CheckpointError(f"{self.path} is damaged where the data of {name} begins: download it again")
        return start

    def _read(self, dtype: str, layout: Layout, start: int) -> np.ndarray:
        flat = typed(self.data[start : start + layout.elements * item_size(dtype)], dtype, self.byteorder)
        return decoded(arranged(flat, layout), dtype)
