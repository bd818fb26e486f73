"""Reader of torch's .bin files (the zip format that torch.save has written since 1.6), without torch."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..errors import CheckpointError
from .tensor import StoredTensor, decoded, item_size, map_file, typed
from .torch_pickle import TensorRecord, unpickle_tensors

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
            records = unpickle_tensors(archive.read(root + "data.pkl"), path)
            order = archive.read(root + "byteorder") if root + "byteorder" in members else b"little"
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
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


class _Storages:
    """The storages of one archive as views of the mapped file."""

    def __init__(
        self, data: np.ndarray, members: dict[str, zipfile.ZipInfo], root: str, byteorder: ByteOrder, path: Path
    ) -> None:
        self.data, self.members, self.root, self.byteorder, self.path = data, members, root, byteorder, path

    def stored(self, name: str, record: TensorRecord) -> StoredTensor:
        """Check that the tensor lies inside its storage, and describe it."""
        storage = record.storage
        empty = 0 in record.shape
        last = record.offset + sum((size - 1) * step for size, step in zip(record.shape, record.stride, strict=True))
        if not empty and last >= storage.numel:
            raise CheckpointError(f"{name} in {self.path} reaches element {last} of a storage of {storage.numel}")
        start = self._start(storage.key, storage.numel * item_size(storage.dtype), name)
        return StoredTensor(name, record.shape, storage.dtype, self.path, partial(self._read, record, start), self.data)

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

    def _read(self, record: TensorRecord, start: int) -> np.ndarray:
        storage = record.storage
        size = storage.numel * item_size(storage.dtype)
        flat = typed(self.data[start : start + size], storage.dtype, self.byteorder)
        if 0 in record.shape:
            return decoded(flat[:0].reshape(record.shape), storage.dtype)
        strides = tuple(step * flat.itemsize for step in record.stride)
        view = as_strided(flat[record.offset :], record.shape, strides, writeable=False)
        return decoded(view, storage.dtype)
