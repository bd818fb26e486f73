"""Fields of requests as tables: what each API's requests may contain, and what becomes of it.

The tables are the only description: requests are read with them, /openapi.json and docs/serving.md are made from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mindone.models.share4v.suggestions import unknown

from .errors import invalid
from .value_types import Anything, Kind

_ANYTHING = Anything()
Effect = Literal["works", "ignored", "refused"]


@dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
        name: its key in the JSON object.
        effect: "works"; "ignored", because it cannot change an answer; or "refused", with an error that
            names it.
        note: what it does, or why it is refused and what to do instead.
        kind: what it accepts.
        neutral: values of a refused field that change nothing, so that they are accepted.
        is_required: whether it must be given.
    """

    name: str
    effect: Effect
    note: str
    kind: Kind = _ANYTHING
    neutral: tuple[Any, ...] = ()
    is_required: bool = False


class Fields:
    """The fields of one kind of request.

    Args:
        fields: in the order of the documentation.
    """

    def __init__(self, fields: Iterable[Field]) -> None:
        self._fields = {field.name: field for field in fields}

    def __iter__(self) -> Any:
        return iter(self._fields.values())

    def read(self, body: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """Return the values of the fields that work; null is the same as leaving a field out.

        Args:
            body: the object.
            where: comes before a field's name in errors, such as "options.".

        Raises:
            ApiError: (400) a field is unknown, refused or missing, or its value is of the wrong kind.
        """
        values = {}
        for name, value in body.items():
            field = self._fields.get(name)
            if field is None:
                shown = f"{where}{name}"[:80]
                raise invalid(
                    unknown("field", shown, [where + one for one in self._fields]), shown, "unknown_parameter"
                )
            if value is None:
                continue
            if field.effect == "refused":
                if not any(type(value) is type(one) and value == one for one in field.neutral):
                    raise invalid(
                        f"{where}{name} is not supported: {field.note}", where + name, "unsupported_parameter"
                    )
                continue
            value = field.kind.check(value, where + name)
            if field.effect == "works":
                values[name] = value
        for field in self:
            if field.is_required and field.name not in values:
                raise invalid(f"{where}{field.name} is missing: {field.note}", where + field.name, "missing_parameter")
        return values

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the object."""
        properties = {}
        for field in self:
            own = {"enum": list(field.neutral)} if field.effect == "refused" else field.kind.schema()
            kinds = [own, {"type": "null"}] if not field.is_required else [own]
            properties[field.name] = {"anyOf": kinds, "description": f"{field.effect}: {field.note}"}
        required = [field.name for field in self if field.is_required]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
