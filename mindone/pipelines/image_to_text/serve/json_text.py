"""JSON as it is sent and received."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from .errors import ApiError, invalid

_COMMA, _LIST, _OBJECT = b",[{"  # a document has at most one value more than it has of these
_BLOCK = 2**20


def dumps(value: Any) -> bytes:
    """Return JSON in UTF-8; an unpaired surrogate, which a client's text may contain, becomes "?"."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def loads(body: bytes, max_values: int) -> dict[str, Any]:
    """Return the JSON object of a request's body.

    Args:
        body: UTF-8.
        max_values: number of values that it may have. Python's parser lets no other thread run until it has finished,
            and an empty list of 3 bytes takes 64 bytes of memory: 64 MiB of them would stop the server for seconds.

    Raises:
        ApiError: (400) it is no JSON object, or has numbers that JSON does not have; (413) it has too many values.
    """
    if _has_more_values(body, max_values):
        raise ApiError(413, f"the body has more than {max_values:,} values: send fewer")
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise invalid("the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}"[:200], code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid(f"the body must be a JSON object, got a {type(value).__name__}", code="invalid_json")
    return value


def _has_more_values(body: bytes, most: int) -> bool:
    """Return whether a JSON document has more than `most` values; brackets and commas in strings count as well."""
    if len(body) <= most:
        return False
    count, data = 1, np.frombuffer(body, np.uint8)
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        count += int(np.count_nonzero((block == _COMMA) | (block == _LIST) | (block == _OBJECT)))
        if count > most:
            return True
    return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
