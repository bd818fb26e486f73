"""Which files of a repository are wanted, and which of them a snapshot has: a checkpoint, a GGUF pair, an adapter."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from .cache import FILE_NAME, WEIGHTS, choose_files, has_all_files, has_companions, is_recorded, read_record
from .directories import ADAPTER_EXTRAS, ADAPTER_NAME, ADAPTER_WEIGHTS, CONFIG_NAME
from .errors import HubError
from .gguf_files import GGUFChoice, choose_gguf, is_gguf
from .options import RepoOptions

logger = logging.getLogger(__name__)
GGUF_NAMES = "gguf"  # key of a download's record: all GGUF files of the repository


def is_gguf_repository(names: Collection[str]) -> bool:
    """Return whether the only weights of a repository are in GGUF files; it may have a config.json for other programs.

    Example:
        >>> from mindone.models.share4v.hub.selection import is_gguf_repository
        >>> is_gguf_repository(["config.json", "model-Q4_0.gguf"]), is_gguf_repository(["model.safetensors", "a.gguf"])
        (True, False)
    """
    return any(map(is_gguf, names)) and not any(Path(name).match(pattern) for name in names for pattern in WEIGHTS)


def wanted_files(names: Collection[str], weights: bool, options: RepoOptions) -> list[str]:
    """Return the files of a repository to download, from the names of all of them.

    Of GGUF files, also the tokenizer and the config are in the language model's file: it is wanted without weights too.

    Raises:
        HubError: it does not hold what is wanted.
    """
    if options.is_adapter:
        return _adapter_files(names)
    if options.gguf or is_gguf_repository(names):
        return _announced(choose_gguf(names, options.gguf, options.mmproj)).names
    chosen = choose_files(names, weights)
    if CONFIG_NAME not in chosen:
        place = f"{options.subfolder}/" if options.subfolder else ""
        raise HubError(f"has no {place}{CONFIG_NAME}, so it is not a checkpoint")
    return chosen


def stored(snapshot: Path, weights: bool, options: RepoOptions, is_ours: bool) -> Path | None:
    """Return what a snapshot on this machine has of what is wanted; None if it is missing or incomplete.

    Args:
        snapshot: the directory.
        weights: False if only the small files are needed.
        options: what is wanted.
        is_ours: whether it is in our cache, with a record of what was completed. In Hugging Face's own, other programs
            fetch the files that they need.

    Returns:
        The directory; for GGUF files, the path of the language model's file.
    """
    record = (read_record(snapshot) or {}) if is_ours else {}
    if options.is_adapter:
        is_complete = (snapshot / ADAPTER_NAME).is_file() and any(
            (snapshot / name).is_file() for name in ADAPTER_WEIGHTS
        )
        return snapshot if is_complete and (not is_ours or ADAPTER_NAME in _recorded(record)) else None
    if not options.gguf:
        is_complete = is_recorded(snapshot, weights) if is_ours else has_companions(snapshot)
        if is_complete and has_all_files(snapshot, weights):
            return snapshot
    here = [path.name for path in snapshot.glob("*") if is_gguf(path.name)]
    names = record.get(GGUF_NAMES, []) if is_ours else here
    if not isinstance(names, list) or not all(isinstance(name, str) and FILE_NAME.fullmatch(name) for name in names):
        return None
    try:
        choice = choose_gguf(names, options.gguf, options.mmproj)
    except HubError:
        return None  # the repository itself may have it
    sizes = _recorded(record)
    for name in choice.names:
        path = snapshot / name
        if not path.is_file() or (is_ours and (name not in sizes or sizes[name] != path.stat().st_size)):
            return None
    return snapshot / _announced(choice).language[0]


def has_other(snapshot: Path) -> bool:
    """Return whether a download into our cache completed a GGUF model or an adapter."""
    names = [*_recorded(read_record(snapshot) or {})]
    return any(is_gguf(name) or name == ADAPTER_NAME for name in names) and all(
        (snapshot / name).is_file() for name in names
    )


def _recorded(record: dict) -> dict[str, int]:
    try:
        return {item["name"]: item["size"] for item in record.get("files", [])}
    except (KeyError, TypeError):  # the record was edited
        return {}


def _adapter_files(names: Collection[str]) -> list[str]:
    if ADAPTER_NAME not in names:
        raise HubError(f"has no {ADAPTER_NAME}, so it is not a LoRA adapter")
    weights = [name for name in ADAPTER_WEIGHTS if name in names][:1]
    if not weights:
        raise HubError(f"has no weights of an adapter: expected {' or '.join(ADAPTER_WEIGHTS)}")
    return [ADAPTER_NAME, *weights, *(name for name in ADAPTER_EXTRAS if name in names)]


def _announced(choice: GGUFChoice) -> GGUFChoice:
    """Log a choice; as a warning if the user did not make it."""
    logger.log(logging.WARNING if choice.is_default else logging.INFO, "the repository's model %s", choice.reason)
    return choice
