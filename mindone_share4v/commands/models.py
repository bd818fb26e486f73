"""`share4v models`: list the models and what is on this machine, and remove downloads."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..printing import one_line, print_error, print_json, print_text
from .common import usage_error
from .exit_status import DONE

if TYPE_CHECKING:
    from mindone.models.share4v.hub.inventory import ModelEntry

_STATUS = {
    "included": "in the package",
    "cached": "downloaded",
    "partial": "download not complete",
    "elsewhere": "in Hugging Face's cache",
    "not cached": "not on this machine",
}


def run(arguments: Namespace) -> int:
    """Remove what is to be removed, or else list the models; return the exit status."""
    from mindone.models.share4v.hub.cache import cache_root
    from mindone.models.share4v.hub.inventory import list_models, remove_model

    try:
        for name in arguments.remove:
            removed = remove_model(name, arguments.cache_dir)
            print_text(one_line(f"removed {removed.name}: {size_text(removed.bytes_on_disk)}"))
        if arguments.remove:
            return DONE
        entries = list_models(arguments.cache_dir)
        root = cache_root(arguments.cache_dir)
    except (ValueError, OSError) as error:
        return usage_error(arguments, error)
    if arguments.json:
        for entry in entries:
            print_json(_record(entry))
        return DONE
    print_text(_table(entries))
    print_error(one_line(f"downloads are stored in {root}; --remove NAME deletes one"))
    return DONE


def _record(entry: ModelEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "status": entry.status,
        "repo": entry.repo,
        "download_bytes": entry.download_bytes,
        "bytes_on_disk": entry.bytes_on_disk,
        "directories": [str(path) for path in entry.directories],
    }


def _table(entries: Sequence[ModelEntry]) -> str:
    rows = [("NAME", "SIZE", "STATUS", "SOURCE")]
    for entry in entries:
        about = "" if entry.download_bytes is None else f"about {size_text(entry.download_bytes)}"
        size = size_text(entry.bytes_on_disk) if entry.bytes_on_disk else about or "unknown"
        source = "mindone-share4v" if entry.repo is None else f"{entry.repo} on the Hugging Face hub"
        rows.append((entry.name, size, _STATUS[entry.status], source))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ("  ".join((*(f"{row[n]:{width}}" for n, width in enumerate(widths)), row[3])) for row in rows)
    return "\n".join(map(one_line_of_table, lines))


def one_line_of_table(line: str) -> str:
    """Return a line of a table without characters that act on a terminal; its spaces stay."""
    from mindone.models.share4v.display import printable

    return printable(line, keep="")


def size_text(size: int) -> str:
    """Return a number of bytes in units that people read: 3.6 MB, 13.5 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
