"""What a directory is that was given as a checkpoint and is none, and what to do about it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

CONFIG_NAME = "config.json"
ADAPTER_NAME = "adapter_config.json"
# Of an adapter: what PEFT writes, in the order in which it looks for them, and what LLaVA writes next to it.
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_EXTRAS = ("non_lora_trainables.bin", CONFIG_NAME)
_MAX_NAMES = 5  # of files or subdirectories in a message
_MAX_CONFIG_BYTES = 2**20
# File or pattern that identifies what a directory holds -> what that is, and what to do.
_KINDS = {
    "model_index.json": "it holds a diffusers pipeline, which is not an image captioner",
    "dataset_info.json": "it holds a data set: give it to share4v caption-dataset as INPUT",
    "state.json": "it holds a data set: give it to share4v caption-dataset as INPUT",
}


def describe_directory(directory: Path) -> str:
    """Return what a directory without a config.json holds instead, and what to do about it.

    Example:
        >>> from pathlib import Path
        >>> from mindone.models.share4v.hub.directories import describe_directory
        >>> describe_directory(Path("empty"))  # doctest: +SKIP
        'it is empty'
    """
    if is_adapter(directory):
        return adapter_advice(directory)
    for pattern, description in _KINDS.items():
        if next(directory.glob(pattern), None) is not None:
            return description
    checkpoints = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_NAME}"))
    if checkpoints:
        return f"its subdirectories {_listed(checkpoints)} hold checkpoints: give one of them"
    adapters = sorted(path.parent.name for path in directory.glob(f"*/{ADAPTER_NAME}"))
    if adapters:
        return f"its subdirectories {_listed(adapters)} hold LoRA adapters, which are not complete models"
    names = sorted(path.name for path in directory.iterdir())
    if not names:
        return "it is empty"
    return f"it holds {_listed(names)}; a checkpoint's directory has config.json, weights and tokenizer.model"


def is_adapter(directory: Path) -> bool:
    """Return whether a directory holds a LoRA adapter, as PEFT writes it."""
    return (directory / ADAPTER_NAME).is_file()


def adapter_advice(directory: Path) -> str:
    """Return the message about a LoRA adapter that was given as a model."""
    base = None
    with suppress(OSError, ValueError, RecursionError), (directory / ADAPTER_NAME).open(encoding="utf-8") as file:
        config = json.loads(file.read(_MAX_CONFIG_BYTES))
        base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    of = f" for {base!r}" if isinstance(base, str) and base else ""
    return (
        f"it holds a LoRA adapter{of}, not a complete model: give that model, and this directory as its adapter "
        "(--adapter)"
    )


def _listed(names: list[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
