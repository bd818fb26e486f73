"""The download cache: where downloads are, whether one is complete, and whether the disk has space for another."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..home_directory import expand_home
from .contents import MAX_COMPANION_BYTES
from .errors import NoSpaceError

logger = logging.getLogger(__name__)
HOME_VARIABLE = "SHARE4V_HOME"
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "*.ckpt")
OTHER_FILES = ("*.gguf", "adapter_model*.safetensors", "*.bin")  # that a snapshot may hold besides
COMPANION_SUFFIXES = (".json", ".model", ".txt", ".jinja")
RECORD = ".share4v.json"  # written when a download is complete; lists its files
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # of a downloaded file: no folder, not hidden
RESERVE = 64 * 1024**2  # bytes to leave free: a full disk breaks other programs too
NOTICE_SECONDS = 3.0  # of waiting for another process, after which the user is told


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Return `cache_dir`, else SHARE4V_HOME, else ~/.cache/share4v."""
    chosen = cache_dir or os.environ.get(HOME_VARIABLE) or "~/.cache/share4v"
    return expand_home(chosen, f"set {HOME_VARIABLE} or cache_dir (--cache-dir) to a directory for downloads")


def lock_path(directory: Path) -> Path:
    """Return the file to lock while a download writes into `directory`, or while it is removed.

    It is outside the directory, as that of huggingface_hub, and is never deleted: of two processes that wait for a lock
    on a deleted file, the second would lock a new one, and both would write. Its folder is created.
    """
    locks = directory.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return locks / f"{directory.name}.lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Let no other process download into `directory`, or remove it, during the block; waits for one that does.

    A download can take hours, so a warning says what is waited for.
    """
    lock = FileLock(lock_path(directory))
    try:
        lock.acquire(timeout=NOTICE_SECONDS)
    except Timeout:
        logger.warning("another process downloads %s, or removes it: waiting until it has ended", directory)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def choose_files(names: Iterable[str], weights: bool) -> list[str]:
    """Pick the files of a repository that a checkpoint needs: safetensors, else .bin, else .ckpt.

    Example:
        >>> from mindone.models.share4v.hub.cache import choose_files
        >>> choose_files(["config.json", "model.safetensors", "pytorch_model.bin", "README.md"], weights=True)
        ['config.json', 'model.safetensors']
    """
    top = [name for name in names if "/" not in name]
    by_format = [[name for name in top if Path(name).match(pattern)] for pattern in WEIGHTS]
    chosen_weights = next((found for found in by_format if found), [])
    unused = [suffix for suffix in ("safetensors", "bin") if not any(suffix in name for name in chosen_weights)]
    companions = [
        name
        for name in top
        if Path(name).suffix in COMPANION_SUFFIXES
        and not any(name.endswith(f".{suffix}.index.json") for suffix in unused)
        and name not in chosen_weights
    ]
    return companions + (chosen_weights if weights else [])


def has_all_files(directory: Path, weights: bool) -> bool:
    """Return whether a directory has a config and, if requested, every weight file that its index names."""
    if not (directory / "config.json").is_file():
        return False
    if not weights:
        return True
    indexes = list(directory.glob("*.index.json"))
    for index in indexes:
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if not all(FILE_NAME.fullmatch(shard) and (directory / shard).is_file() for shard in shards):
                return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False
    found = [path for pattern in WEIGHTS for path in directory.glob(pattern)]
    return bool(found) and (bool(indexes) or not any("-of-" in path.name for path in found))


def has_companions(directory: Path) -> bool:
    """Return whether a directory has the small files that a checkpoint of its kind needs, judged by its config.json.

    For directories that other programs filled, which may have fetched only the config. A vision tower needs
    preprocessor_config.json, a language model tokenizer.model or a byte-level tokenizer.json with a file that names its
    eos_token, and LLaVA's format both.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(config, dict):
        return False
    is_tower = str(config.get("model_type")).startswith("clip")
    needs_preprocessor = is_tower or "text_config" in config
    if needs_preprocessor and not (directory / "preprocessor_config.json").is_file():
        return False
    names_eos = any((directory / name).is_file() for name in ("tokenizer_config.json", "special_tokens_map.json"))
    is_byte_level = names_eos and _is_byte_level(directory / "tokenizer.json")
    return is_tower or (directory / "tokenizer.model").is_file() or is_byte_level


def _is_byte_level(path: Path) -> bool:
    """Return whether a tokenizer.json needs no tokenizer.model beside it; that of sentencepiece's models does."""
    try:
        return path.stat().st_size <= MAX_COMPANION_BYTES and b'"ByteLevel"' in path.read_bytes()
    except OSError:
        return False


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is a regular file that lies in a folder, wherever links on its way lead."""
    try:
        return path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a circle of links
        return False


def is_safe(directory: Path, folder: Path) -> bool:
    """Return whether the files that a checkpoint in `directory` could consist of are regular files inside `folder`."""
    wanted = (*WEIGHTS, *OTHER_FILES, *(f"*{suffix}" for suffix in COMPANION_SUFFIXES))
    paths = {path for pattern in wanted for path in directory.glob(pattern)}
    return directory.resolve().is_relative_to(folder.resolve()) and all(is_inside(path, folder) for path in paths)


def write_record(
    directory: Path,
    source: str,
    weights: bool,
    files: Sequence[Mapping[str, Any]],
    gguf: Sequence[str] = (),
    outdated: Collection[str] = (),
) -> None:
    """Record that a download is complete, with the name and size of each file; the record is written atomically.

    Args:
        directory: of the files.
        source: where they are from.
        weights: whether they are a complete checkpoint.
        files: those of this download. What an earlier one completed here, such as another GGUF quantization, stays
            recorded.
        gguf: names of all GGUF files of the source.
        outdated: names of files of which the source has another version now: with one of them among the weights, the
            checkpoint is not complete.
    """
    earlier = read_record(directory) or {"weights": False, "files": []}
    new = {item["name"] for item in files}
    kept = [item for item in earlier["files"] if _is_recorded_file(directory, item) and item["name"] not in new]
    lost = {item["name"] for item in earlier["files"] if not _is_recorded_file(directory, item)} - new
    entries = [*kept, *files]
    has_weights = any(is_weights(item["name"]) for item in entries) and not any(map(is_weights, {*lost, *outdated}))
    content: dict[str, Any] = {
        "source": source,
        "weights": weights or (earlier["weights"] and has_weights),
        "files": entries,
    }
    if gguf:
        content["gguf"] = list(gguf)
    text = json.dumps(content, indent=2)
    temporary = directory / f"{RECORD}.{os.getpid()}"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(directory / RECORD)


def is_weights(name: str) -> bool:
    """Return whether a file of this name holds weights of a checkpoint, or lists the files that do."""
    return name.endswith(".index.json") or any(Path(name).match(pattern) for pattern in WEIGHTS)


def read_record(directory: Path) -> dict[str, Any] | None:
    """Return the record that `write_record` wrote, or None if there is none, or something else.

    Users may edit it, and disks damage it, so the type of `weights` and the name of each file are checked. What else an
    entry has may be missing, or of any type.
    """
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("weights"), bool):
        return None
    files = record.get("files")
    is_list = isinstance(files, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) for item in files
    )
    return record if is_list else None


def is_recorded(directory: Path, weights: bool) -> bool:
    """Return whether a download into `directory` was completed and every file still exists."""
    record = read_record(directory)
    if record is None or (weights and not record["weights"]):
        return False
    return all(_is_recorded_file(directory, item) for item in record["files"])


def _is_recorded_file(directory: Path, item: Mapping[str, Any]) -> bool:
    """Return whether a file is there as an entry of a record says; an entry without a size says nothing."""
    if "size" not in item or not FILE_NAME.fullmatch(item["name"]):
        return False
    path = directory / item["name"]
    return path.is_file() and item["size"] in (None, path.stat().st_size)


def require_space(directory: Path, size: int) -> None:
    """Check that `size` more bytes fit on the disk of `directory`.

    Raises:
        NoSpaceError: they do not; the message gives both numbers.
    """
    free = shutil.disk_usage(directory).free
    if size + RESERVE > free:
        raise NoSpaceError(
            f"the download needs {size / 1e9:.2f} GB and the disk of {directory} has {free / 1e9:.2f} GB free: free "
            f"some space, or choose another disk with {HOME_VARIABLE} or cache_dir (--cache-dir)"
        )
