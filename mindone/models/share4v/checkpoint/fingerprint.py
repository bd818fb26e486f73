"""Digests of a checkpoint's files: whether a model is still the one that it was, without reading all of its weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ..configuration import CONFIG_NAME, PREPROCESSOR_NAME
from ..load_options import CheckpointOptions, adapter_weights
from .formats.gguf import GGUFFile
from .formats.weight_files import find_weights
from .layout import Checkpoint

# Files of at most this many bytes are read completely; of larger ones both ends, where the list of tensors is, and
# samples in between: training or rounding again changes almost every byte of a matrix.
_WHOLE = 16 * 2**20
_END, _SAMPLE, _SAMPLES = 2**20, 4096, 64
_SMALL_FILES = (
    CONFIG_NAME,
    PREPROCESSOR_NAME,
    "processor_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def checkpoint_digests(name_or_path: str | Path, options: CheckpointOptions) -> dict[str, str]:
    """Return a digest of the files of each part of a checkpoint; a part that is not on this machine is left out.

    The parts are "model", "vision_tower" if it has files of its own, and "adapter" if an adapter is from a hub (others
    have `adapter_digest`). Nothing is downloaded.

    Example:
        >>> from mindone.models.share4v.checkpoint.fingerprint import checkpoint_digests
        >>> from mindone.models.share4v.load_options import CheckpointOptions
        >>> list(checkpoint_digests("sharegpt4v-tiny", CheckpointOptions()))
        ['model']
    """
    try:
        checkpoint = Checkpoint.open(name_or_path, replace(options, local_files_only=True))
        return {part: _digest(files) for part, files in _parts(checkpoint, options).items() if files}
    except (OSError, ValueError):  # not here yet, or damaged: loading it says so
        return {}


def file_digest(path: Path) -> bytes:
    """Return a digest of a file: of all of it if it is small, else of its size, its ends and samples in between."""
    size, digest = path.stat().st_size, sha256()
    digest.update(f"{size} ".encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
            return digest.digest()
        digest.update(file.read(_END))
        for number in range(1, _SAMPLES + 1):
            file.seek(size * number // (_SAMPLES + 1))
            digest.update(file.read(_SAMPLE))
        file.seek(size - _END)
        digest.update(file.read(_END))
    return digest.digest()


def _parts(checkpoint: Checkpoint, options: CheckpointOptions) -> dict[str, list[Path]]:
    if checkpoint.gguf is not None:
        vision = checkpoint.gguf.vision
        parts = {
            "model": _gguf_files(checkpoint.gguf.language),
            "vision_tower": [] if vision is None else _gguf_files(vision),
        }
    else:
        tower = checkpoint.vision_directory
        parts = {"model": _files_in(checkpoint.directory), "vision_tower": [] if tower is None else _files_in(tower)}
    given = zip(adapter_weights(options.adapter), checkpoint.adapters, strict=True)
    parts["adapter"] = [
        file for name, adapter in given if not Path(name).expanduser().exists() for file in adapter.files
    ]
    return parts


def _files_in(directory: Path) -> list[Path]:
    small = [directory / name for name in _SMALL_FILES if (directory / name).is_file()]
    return [*small, *find_weights(directory).files]


def _gguf_files(file: GGUFFile) -> list[Path]:
    return sorted({file.path, *(tensor.file for tensor in file.tensors.values())})


def _digest(files: Iterable[Path]) -> str:
    digest = sha256()
    for path in files:
        digest.update(f"{path.name} ".encode() + file_digest(path))
    return digest.hexdigest()[:16]
