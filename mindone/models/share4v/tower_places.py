"""Where a vision tower that config.json names as a path may lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def named_tower(data: Mapping[str, Any]) -> Any:
    """Return what a config.json of the original form says of its tower: a path or a hub's name, None if nothing."""
    return data.get("mm_vision_tower") or data.get("vision_tower")


def tower_places(named: str, directory: Path) -> Iterator[Path]:
    """Yield each path that it may mean, once: as it stands, from the checkpoint's directory, beside it.

    Example:
        >>> from pathlib import Path
        >>> from mindone.models.share4v.tower_places import tower_places
        >>> [path.as_posix() for path in tower_places("vit", Path("all/main"))]
        ['vit', 'all/main/vit', 'all/vit']
    """
    path = Path(named).expanduser()
    beside = (directory / path, directory.parent / path, directory / path.name, directory.parent / path.name)
    yield from dict.fromkeys((path, *beside))
