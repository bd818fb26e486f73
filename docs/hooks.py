"""What happens before the site is built: mkdocstrings is shown the sources, and nothing else called `mindone`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[1]
# Upstream's package and ours are one where both are installed; read whole it is 1,700 files, of which 100 are ours.
SOURCES = ("models/share4v", "pipelines")

_folder: TemporaryDirectory[str] | None = None


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: Any) -> Any:
    """Let the reference come from a package `mindone` of this repository's folders alone."""
    global _folder
    if _folder is None:  # once, however often `mkdocs serve` builds
        _folder = TemporaryDirectory(prefix="share4v-docs-")
    package = Path(_folder.name) / "mindone"
    for source in SOURCES:
        place = package / source
        if place.exists():
            continue
        for parent in (package, place.parent):
            parent.mkdir(parents=True, exist_ok=True)
            (parent / "__init__.py").touch()
        place.symlink_to(ROOT / "mindone" / source, target_is_directory=True)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_folder.name]
    return config


def on_shutdown() -> None:
    if _folder is not None:
        _folder.cleanup()
