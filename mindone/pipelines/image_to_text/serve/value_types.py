"""Kinds of JSON values: each checks a value of a request, and describes itself as JSON schema for /openapi.json."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import ApiError, invalid

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxdict = 2, 4, 4  # so that a value of many megabytes is shown at once


class Kind(Protocol):
    """What a field accepts."""

    def check(self, value: Any, param: str) -> Any:
        """Return the value.

        Raises:
            ApiError: (400) it is of another kind or outside its range; the message names `param`.
        """

    def schema(self) -> dict[str, Any]:
        """Return its JSON schema."""


def _shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    text = repr(value[:61]) if isinstance(value, str) else _repr.repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


@dataclass(frozen=True)
class Boolean:
    """true or false."""

    def check(self, value: Any, param: str) -> bool:
        if not isinstance(value, bool):
            raise invalid(f"{param} must be true or false, got {_shown(value)}", param)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Integer:
    """A whole number in a range; 1.0 is one too."""

    minimum: int
    maximum: int = 2**63 - 1

    def check(self, value: Any, param: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not self.minimum <= value <= self.maximum:
            raise invalid(
                f"{param} must be an integer from {self.minimum} to {self.maximum}, got {_shown(value)}", param
            )
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True)
class Number:
    """A finite number in a range; `above` excludes the minimum."""

    minimum: float
    maximum: float
    above: bool = False

    def check(self, value: Any, param: str) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not self.minimum <= value <= self.maximum or (self.above and value == self.minimum):
            start = f"above {self.minimum:g}" if self.above else f"from {self.minimum:g}"
            raise invalid(f"{param} must be a number {start} to {self.maximum:g}, got {_shown(value)}", param)
        return float(value)

    def schema(self) -> dict[str, Any]:
        key = "exclusiveMinimum" if self.above else "minimum"
        return {"type": "number", key: self.minimum, "maximum": self.maximum}


@dataclass(frozen=True)
class Text:
    """A string."""

    maximum: int = 1_000_000
    minimum: int = 0

    def check(self, value: Any, param: str) -> str:
        if not isinstance(value, str) or not self.minimum <= len(value) <= self.maximum:
            found = f"{len(value)} characters" if isinstance(value, str) else _shown(value)
            raise invalid(
                f"{param} must be a string of {self.minimum} to {self.maximum} characters, got {found}", param
            )
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": self.minimum, "maxLength": self.maximum}


@dataclass(frozen=True)
class Choice:
    """One of a few strings."""

    values: tuple[str, ...]

    def check(self, value: Any, param: str) -> str:
        if value not in self.values or not isinstance(value, str):
            raise invalid(f"{param} must be one of {', '.join(self.values)}, got {_shown(value)}", param)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.values)}


@dataclass(frozen=True)
class ListOf:
    """A list of values of one kind; with `or_one`, also one value in place of the list."""

    item: Kind
    maximum: int
    or_one: bool = False

    def check(self, value: Any, param: str) -> tuple[Any, ...]:
        if self.or_one and not isinstance(value, list):
            return (self.item.check(value, param),)
        if not isinstance(value, list) or len(value) > self.maximum:
            found = f"a list of {len(value)}" if isinstance(value, list) else _shown(value)
            raise invalid(f"{param} must be a list of at most {self.maximum} values, got {found}", param)
        checked = []
        for index, one in enumerate(value):
            try:
                checked.append(self.item.check(one, param))
            except ApiError:  # only an error needs the name of a value; a million names would take seconds
                checked.append(self.item.check(one, f"{param}[{index}]"))
        return tuple(checked)

    def schema(self) -> dict[str, Any]:
        array = {"type": "array", "items": self.item.schema(), "maxItems": self.maximum}
        return {"anyOf": [self.item.schema(), array]} if self.or_one else array


@dataclass(frozen=True)
class Bias:
    """logit_bias: a number from -100 to 100 for each token id, whose key is a decimal string."""

    maximum: int

    def check(self, value: Any, param: str) -> dict[int, float]:
        if not isinstance(value, Mapping) or len(value) > self.maximum:
            raise invalid(f"{param} must be an object of at most {self.maximum} token ids, got {_shown(value)}", param)
        bias = {}
        for key, number in value.items():
            if not (key.isascii() and key.isdecimal() and len(key) <= 9):
                raise invalid(f"{param} must have token ids as keys, got {_shown(key)}", param)
            bias[int(key)] = Number(-100, 100).check(number, f"{param}.{key}")
        return bias

    def schema(self) -> dict[str, Any]:
        number = {"type": "number", "minimum": -100, "maximum": 100}
        return {"type": "object", "additionalProperties": number, "maxProperties": self.maximum}


@dataclass(frozen=True)
class Items:
    """A list of objects that another module reads, such as messages."""

    maximum: int

    def check(self, value: Any, param: str) -> list[Any]:
        if not isinstance(value, list) or not value or len(value) > self.maximum:
            found = f"a list of {len(value)}" if isinstance(value, list) else _shown(value)
            raise invalid(f"{param} must be a list of 1 to {self.maximum} objects, got {found}", param)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": self.maximum}


@dataclass(frozen=True)
class Structure:
    """An object that another module reads; `keys` are those that it may have, None for any."""

    keys: tuple[str, ...] | None = None

    def check(self, value: Any, param: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise invalid(f"{param} must be an object, got {_shown(value)}", param)
        unknown = next((key for key in value if self.keys is not None and key not in self.keys), None)
        if unknown is not None:
            name = f"{param}.{unknown}"[:80]
            raise invalid(f"{name} is not supported: {param} may have {', '.join(self.keys or ())}", name)
        return value

    def schema(self) -> dict[str, Any]:
        if self.keys is None:
            return {"type": "object"}
        return {"type": "object", "properties": {key: {} for key in self.keys}, "additionalProperties": False}


@dataclass(frozen=True)
class Anything:
    """Any JSON value: of fields that are refused or that change nothing."""

    def check(self, value: Any, param: str) -> Any:
        return value

    def schema(self) -> dict[str, Any]:
        return {}
