"""Links embedded checkpoints into Hugging Face's cache, so that transformers finds them by their short names."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from transformers.utils import hub as hugging_face

from ...hub import PRESETS, resolve

# Files that the Auto classes look for and these checkpoints do not have. Marking them as absent in Hugging Face's cache
# prevents requests to the hub, which would fail because there is no such repository.
ABSENT = (
    "adapter_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
)


def link_embedded_checkpoints() -> None:
    """Link the checkpoints that are part of this package into Hugging Face's cache, under their short names.

    This writes a few kilobytes and changes no existing files. If the cache is not writable, a warning is logged, and
    mindone.transformers then needs a directory instead of the name.
    """
    cache = Path(hugging_face.TRANSFORMERS_CACHE)
    for name, preset in PRESETS.items():
        if preset.embedded is None:
            continue
        try:
            _link(resolve(name), cache / f"models--{name}")
        except OSError as error:
            logging.getLogger(__name__).warning(
                "%s cannot be linked into %s (%s): pass its directory to mindone.transformers, hub.resolve(%r)",
                name,
                cache,
                error,
                name,
            )


def _link(directory: Path, repository: Path) -> None:
    """Write the three parts of a cached snapshot: its files, the list of absent files, and the reference `main`."""
    commit = hashlib.sha1(str(directory.resolve()).encode()).hexdigest()
    snapshot, absent, main = repository / "snapshots" / commit, repository / ".no_exist" / commit, repository / "refs"
    for folder in (snapshot.parent, absent, main):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ABSENT:
        if not (directory / name).exists():
            (absent / name).touch()
    if not snapshot.is_symlink():
        _replace_link(snapshot, directory.resolve())
    if not (main / "main").is_file() or (main / "main").read_text(encoding="utf-8") != commit:
        partial = main / f"main.{os.getpid()}"
        partial.write_text(commit, encoding="utf-8")
        partial.replace(main / "main")


def _replace_link(link: Path, target: Path) -> None:
    """Create a link atomically, because another process may be creating it too."""
    partial = link.with_name(f"{link.name}.{os.getpid()}")
    partial.symlink_to(target, target_is_directory=True)
    partial.replace(link)
