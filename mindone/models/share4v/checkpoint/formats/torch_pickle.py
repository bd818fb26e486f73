"""A restricted unpickler for torch's files: it knows how tensors are put together and refuses everything else."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, UnsafeCheckpointError

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


# These stand-ins are tuples: the pickle opcode BUILD can set attributes of most objects (of frozen dataclasses with
# slots too, through their __setstate__), and no file may change what the next one meets.
class StorageType(NamedTuple):
    """Stands for a class such as torch.FloatStorage."""

    dtype: str


class Storage(NamedTuple):
    """A run of `numel` elements, kept in the archive's member `data/<key>`."""

    dtype: str
    key: str
    numel: int


class TensorRecord(NamedTuple):
    """A tensor as the pickle describes it: a view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Callable(NamedTuple):
    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def _sizes(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(item) is int and item >= 0 for item in value)


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> TensorRecord:
    fits = isinstance(storage, Storage) and _sizes((offset,)) and _sizes(shape) and _sizes(stride)
    if not fits or len(shape) != len(stride) or metadata:
        raise pickle.UnpicklingError("a tensor is described in a way that is not supported")
    return TensorRecord(storage, offset, shape, stride)


def _rebuild_parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Any:
    return tensor


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_rebuild_parameter),
    **{("torch", name): StorageType(dtype) for name, dtype in STORAGES.items()},
}


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UnsafeCheckpointError(
                f"{self._path} asks for {module}.{name}, which tensors do not need. Opening it could run code, so it "
                "is refused. Get the checkpoint as safetensors, or from a source that you trust, with tensors alone"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        is_storage = isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"
        if not is_storage or not isinstance(pid[1], StorageType) or not isinstance(pid[2], str) or not _sizes(pid[4:]):
            raise pickle.UnpicklingError("a storage is described in a way that is not supported")
        return Storage(pid[1].dtype, pid[2], pid[4])


def unpickle_tensors(data: bytes, path: Path) -> dict[str, TensorRecord]:
    """Read the pickle of a torch file, a mapping of names to tensors, or one with such a mapping at "state_dict".

    Args:
        data: the archive's data.pkl.
        path: the file that it came from, for messages.

    Raises:
        UnsafeCheckpointError: the pickle asks for anything that tensors do not need; the message names it.
        CheckpointError: the pickle is damaged or holds something else.
    """
    try:
        content = _TensorUnpickler(data, path).load()
    except UnsafeCheckpointError:
        raise
    except Exception as error:  # a damaged pickle can make the unpickler raise nearly anything
        raise CheckpointError(f"{path} has a damaged or unsupported pickle inside: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a mapping of names to tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, TensorRecord):
            raise CheckpointError(f"{path} holds {name!r}, a {type(value).__name__}; expected names and tensors alone")
    return dict(content)
