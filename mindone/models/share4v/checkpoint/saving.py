"""Saving weights as safetensors, in shards of a limited size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from ..bfloat16 import dtype_name, to_bfloat16
from .atomic import OURS_INDEX, OURS_SINGLE, staged
from .errors import CheckpointError
from .safetensors_writer import write_aligned

if TYPE_CHECKING:
    from mindspore import Parameter

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SAVED_DTYPES = frozenset(
    ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
)


def byte_count(size: str | int) -> int:
    """Read a size such as "5GB" (10^9 bytes, as in Hugging Face's libraries), "500MiB" or 1000.

    Raises:
        ValueError: it is not a positive size.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]+)\s*", str(size))
    if match and match[2].upper() in UNITS and re.fullmatch(r"[0-9]+(\.[0-9]+)?", match[1]):
        count = int(float(match[1]) * UNITS[match[2].upper()])
    else:
        count = int(size) if str(size).isdecimal() else 0
    if count <= 0:
        raise ValueError(f"{size!r} is not a size: give a number of bytes, or a number with one of {', '.join(UNITS)}")
    return count


def save_weights(
    parameters: Iterable[tuple[str, np.ndarray]], directory: str | Path, max_shard_size: str | int = "5GB"
) -> None:
    """Write `model.safetensors`, or shards and `model.safetensors.index.json`; files appear when all are complete.

    Args:
        parameters: (name, array) pairs, read one by one; a shared weight must be given once. At most one shard is in
            memory. An array of dtype bfloat16.BFLOAT16 is written as bfloat16.
        directory: created if necessary; weights that were saved there before are replaced.
        max_shard_size: maximum size of a shard; a larger tensor gets its own shard.

    Raises:
        ValueError: a name is given twice, a dtype is not supported, or the size is not a size.
        OSError: the disk is full or not writable; existing files are then unchanged.

    Example:
        >>> import numpy as np
        >>> from mindone.models.share4v.checkpoint import save_weights
        >>> save_weights([("mm_projector.weight", np.ones((2, 3), np.float32))], "out")  # doctest: +SKIP
    """
    limit = byte_count(max_shard_size)
    with staged(directory) as staging:
        write_shards(parameters, staging, limit)


def write_shards(parameters: Iterable[tuple[str, np.ndarray]], directory: Path, limit: int) -> None:
    """Write the weights into `directory`, with at most `limit` bytes per shard."""
    shards: list[Path] = []
    weight_map: dict[str, int] = {}
    waiting: dict[str, np.ndarray] = {}
    total = waiting_size = 0

    def write() -> None:
        path = directory / f"shard-{len(shards)}"
        path.touch()
        mode = path.stat().st_mode
        _write_file(waiting, path)
        path.chmod(mode)  # safetensors creates files that only their owner can read
        shards.append(path)
        waiting.clear()

    for name, given in parameters:
        array = _writable(name, given)
        if name in weight_map:
            raise CheckpointError(f"the weight {name} is given twice")
        if waiting and waiting_size + array.nbytes > limit:
            write()
            waiting_size = 0
        weight_map[name] = len(shards)
        waiting[name] = array
        waiting_size += array.nbytes
        total += array.nbytes
    if waiting or not shards:
        write()
    _name_shards(shards, weight_map, total)


def parameter_array(parameter: Parameter) -> np.ndarray:
    """Return a parameter as `save_weights` takes it; bfloat16 comes as bfloat16.BFLOAT16."""
    if str(parameter.dtype) == "BFloat16":
        return to_bfloat16(parameter.float().asnumpy())
    array: np.ndarray = parameter.asnumpy()
    return array


def _write_file(tensors: dict[str, np.ndarray], path: Path) -> None:
    names = {name: dtype_name(array) for name, array in tensors.items()}
    if "bfloat16" not in names.values():
        save_file(tensors, path, metadata={"format": "ms"})
        return
    # The library does not accept bfloat16 from NumPy. Wide elements go first, which aligns each to its size.
    ordered = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    write_aligned(
        [(name, tensors[name].shape, names[name]) for name in ordered], (tensors[name] for name in ordered), path
    )


def _writable(name: str, array: np.ndarray) -> np.ndarray:
    if dtype_name(array) not in SAVED_DTYPES:
        raise CheckpointError(
            f"the weight {name} has the unsupported dtype {array.dtype}: use one of {', '.join(sorted(SAVED_DTYPES))}"
        )
    # safetensors reads the bytes from the array's address on and ignores its strides.
    return np.require(array, requirements="C")


def _name_shards(shards: list[Path], weight_map: dict[str, int], total: int) -> None:
    """Give the files their final names, which contain the number of shards, and write the index."""
    if len(shards) == 1:
        shards[0].rename(shards[0].with_name(OURS_SINGLE))
        return
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for path, name in zip(shards, names, strict=True):
        path.rename(path.with_name(name))
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[shard] for name, shard in sorted(weight_map.items())},
    }
    text = json.dumps(index, indent=2) + "\n"
    (shards[0].parent / OURS_INDEX).write_text(text, encoding="utf-8")
