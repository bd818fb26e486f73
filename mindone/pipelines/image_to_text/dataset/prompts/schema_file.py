"""The JSON schema of captions, read from a file that the user names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_schema_file(path: str | Path) -> dict[str, Any]:
    """Return the JSON in a file.

    Raises:
        ValueError: it is no JSON object.
        OSError: the file cannot be read.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"schema (--schema) must be a JSON file, but {path} is not: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"schema (--schema) must be a JSON object, but {path} has a {type(found).__name__}")
    return found
