"""The JSON schema of captions, read from a file that the user names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..state.regular_files import open_input_text


def read_schema_file(path: str | Path) -> dict[str, Any]:
    """Return the JSON in a file.

    Raises:
        ValueError: it is no JSON object.
        OSError: the file cannot be read.
    """
    try:
        with open_input_text(path) as file:
            found = json.load(file)
    except (UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"schema (--schema) must be a JSON file, but {path} is not: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"schema (--schema) must be a JSON object, but {path} has a {type(found).__name__}")
    return found
