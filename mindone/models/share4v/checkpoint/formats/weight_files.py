"""Which weight files a directory holds, and the tensors in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...configuration import has_file, read_json
from ..errors import CheckpointError, listing
from .mindspore_ckpt import open_ckpt
from .safetensors_file import open_safetensors
from .tensor import StoredTensor
from .torch_zip import open_torch

# The suffix of a weight file -> what lists its tensors.
FORMATS: dict[str, Callable[[Path], list[StoredTensor]]] = {
    ".safetensors": open_safetensors,
    ".bin": open_torch,
    ".ckpt": open_ckpt,
}
# Looked for in this order; an index names its shards.
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
CANDIDATES = (INDEXES[0], SINGLES[0], INDEXES[1], SINGLES[1])
EXPECTED = f"{', '.join(CANDIDATES)} or *.ckpt"


@dataclass(frozen=True)
class WeightFiles:
    """The files of one checkpoint; with an index, `weight_map` says which tensor is in which."""

    files: tuple[Path, ...]
    weight_map: Mapping[str, str] | None = None


def find_weights(directory: str | Path) -> WeightFiles:
    """Find the weight files of a checkpoint's directory: safetensors before torch's .bin before .ckpt.

    Raises:
        FileNotFoundError: there are none; the message says what was looked for.
        CheckpointError: an index is damaged or names a file that does not exist.
    """
    directory = Path(directory)
    for name in CANDIDATES:
        if has_file(directory / name):
            return _indexed(directory / name) if name in INDEXES else WeightFiles((directory / name,))
    checkpoints = tuple(sorted(directory.glob("*.ckpt")))
    if checkpoints:
        return WeightFiles(checkpoints)
    others = sorted(path.name for path in directory.glob("*") if path.suffix in FORMATS)
    found = f"; it has {listing(others)}, which no index names" if others else ""
    raise FileNotFoundError(f"no weights in {directory}: expected {EXPECTED}{found}")


def _indexed(index: Path) -> WeightFiles:
    weight_map = read_json(index).get("weight_map")
    is_map = isinstance(weight_map, dict) and all(isinstance(shard, str) for shard in weight_map.values())
    if not is_map or not weight_map:
        raise CheckpointError(f"{index} has no weight_map of names to files")
    shards = sorted(set(weight_map.values()))
    # A name with a folder in it could lead out of the checkpoint.
    strange = [shard for shard in shards if Path(shard).name != shard or Path(shard).suffix not in FORMATS]
    if strange:
        raise CheckpointError(f"{index} names files that are no shards beside it: {listing(strange)}")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names {len(shards)} files, of which {listing(missing)} are missing: finish the download"
        )
    return WeightFiles(tuple(index.parent / shard for shard in shards), weight_map)


def stored_tensors(weights: WeightFiles) -> list[StoredTensor]:
    """List the tensors of every file; only headers are read.

    Raises:
        CheckpointError: a file is damaged, or it and the index disagree; the message names the tensors.
    """
    tensors: list[StoredTensor] = []
    for path in weights.files:
        found = FORMATS[path.suffix](path)
        if weights.weight_map is not None:
            _check_against_index(found, path, weights.weight_map)
        tensors.extend(found)
    return tensors


def _check_against_index(found: list[StoredTensor], path: Path, weight_map: Mapping[str, str]) -> None:
    names = {tensor.name for tensor in found}
    unlisted = sorted(name for name in names if weight_map.get(name) != path.name)
    if unlisted:
        raise CheckpointError(f"{path} holds tensors that the index does not place there: {listing(unlisted)}")
    absent = sorted(name for name, shard in weight_map.items() if shard == path.name and name not in names)
    if absent:
        raise CheckpointError(f"the index says that {path} holds {listing(absent)}, but it does not")
