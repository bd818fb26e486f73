"""JSON as it is sent and received."""

from __future__ import annotations

import json
from typing import Any

from .errors import invalid


def dumps(value: Any) -> bytes:
    """Return JSON in UTF-8; an unpaired surrogate, which a client's text may contain, becomes "?"."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def loads(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a request's body.

    Raises:
        ApiError: (400) it is no JSON object, or has numbers that JSON does not have.
    """
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise invalid("the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}"[:200], code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid(f"the body must be a JSON object, got a {type(value).__name__}", code="invalid_json")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
