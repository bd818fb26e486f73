"""Whether a downloaded file is what its name says: a server may answer anything with a page and status 200."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

MAX_COMPANION_BYTES = 64 * 2**20  # of a config, index, tokenizer or template
_HTML = (b"<!doctype html", b"<html", b"<?xml")
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; the limit of the format's own library


def problem_of(path: Path, name: str) -> str | None:
    """Return what is wrong with the contents of a file called `name`, None if nothing is; unknown names pass."""
    if not path.is_file():
        return "is not a regular file"
    check = _CHECKS.get(Path(name).suffix)
    return None if check is None else check(path, name)


def max_bytes(name: str) -> int | None:
    """Return the maximum size of a file called `name`; None for weights."""
    return MAX_COMPANION_BYTES if Path(name).suffix in (".json", ".model", ".txt", ".jinja") else None


def _json(path: Path, name: str) -> str | None:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({type(error).__name__}: {error})"
    # A checkpoint's own files are objects; of others it is only known that they are JSON.
    if not isinstance(value, dict) and (name.endswith(("config.json", ".index.json"))):
        return f"is not a JSON object but a {type(value).__name__}"
    return None


def _sentencepiece(path: Path, _: str) -> str | None:
    """Walk over the top-level fields of sentencepiece's ModelProto: field 1 is a piece of the vocabulary."""
    data = path.read_bytes()
    at, pieces = 0, 0
    while at < len(data):
        tag, at = _varint(data, at)
        size, at = _varint(data, at)
        if tag is None or size is None or tag & 7 != 2:  # all its fields have a length
            return "is not a sentencepiece model"
        at += size
        pieces += tag >> 3 == 1
    return None if at == len(data) and pieces else "is not a sentencepiece model, or is truncated"


def _varint(data: bytes, at: int) -> tuple[int | None, int]:
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            return None, at
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    return None, at


def _safetensors(path: Path, _: str) -> str | None:
    with path.open("rb") as file:
        head = file.read(9)
    size = int.from_bytes(head[:8], "little")
    is_header = len(head) == 9 and head[8:] == b"{" and size <= min(path.stat().st_size - 8, _MAX_SAFETENSORS_HEADER)
    return None if is_header else "is not a safetensors file"


def _starts_with(*magics: bytes, what: str) -> Callable[[Path, str], str | None]:
    def check(path: Path, _: str) -> str | None:
        with path.open("rb") as file:
            head = file.read(8)
        return None if head.startswith(magics) else f"is not {what}"

    return check


def _text(path: Path, _: str) -> str | None:
    with path.open("rb") as file:
        head = file.read(256).lstrip().lower()
    return "is a web page" if head.startswith(_HTML) else None


# A row per suffix. torch files are zip archives, or pickles of releases before 1.6; .ckpt is MindSpore's protobuf.
_CHECKS: dict[str, Callable[[Path, str], str | None]] = {
    ".json": _json,
    ".model": _sentencepiece,
    ".safetensors": _safetensors,
    ".bin": _starts_with(b"PK\3\4", b"\x80", what="a torch file"),
    ".ckpt": _starts_with(b"\x0a", what="a MindSpore checkpoint"),
    ".gguf": _starts_with(b"GGUF", what="a GGUF file"),
    ".txt": _text,
    ".jinja": _text,
}
