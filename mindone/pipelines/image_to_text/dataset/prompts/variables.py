"""Variables in prompts: `{filename}`, `{directory}` and the columns of a table, filled in as plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Any, Protocol

from mindone.models.share4v.suggestions import unknown

# Variables of every input, with their meanings; a column of the same name takes precedence.
BUILT_IN = {
    "filename": "name of the image file",
    "stem": "the same without its suffix",
    "directory": "name of the folder that contains it",
    "key": "the record's key",
}
# Special tokens: in a prompt, they would stand for an image or end the question.
_RESERVED = ("<image>", "<s>", "</s>", "<unk>")
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Described(Protocol):
    """The attributes of an input that prompts can use; an `Item` has them."""

    @property
    def key(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def columns(self) -> Mapping[str, Any]: ...


class VariableError(ValueError):
    """A prompt has a variable that does not exist, is empty, or has a value that cannot be used."""


def variables_of(prompt: str) -> frozenset[str]:
    """Return the names of the variables in a prompt; `{{` and `}}` stand for braces.

    Raises:
        VariableError: a brace is unpaired, or a variable has no name.

    Example:
        >>> sorted(variables_of("What is {filename} in {{braces}}? {title|nothing}"))
        ['filename', 'title']
    """
    names = set()
    for found in _FIELD.finditer(prompt):
        if found[0] in ("{", "}"):
            raise VariableError(
                f"the prompt {prompt!r:.80} has an unpaired {found[0]!r} at {found.start()}: "
                f"write {found[0] * 2} for a brace"
            )
        if found[1] is not None:
            names.add(_name(found[1], prompt))
    return frozenset(names)


def fill(prompt: str, item: Described) -> str:
    """Fill an input's values into a prompt. `{name|text}` becomes `text` if the input has no value of that name.

    Raises:
        VariableError: the input has no such value (the message lists those it has), or the value contains `<image>` or
            another special token of the model.
    """
    values = {**_built_in(item), **item.columns}

    def value(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0][0]
        name, _, default = found[1].partition("|")
        text = _text(values.get(name.strip()))
        if text is None:
            if "|" not in found[1]:
                raise VariableError(_unknown(name.strip(), values, name.strip() in values, f"record {item.key!r}"))
            text = default
        reserved = next((token for token in _RESERVED if token in text), None)
        if reserved is not None:
            raise VariableError(
                f"record {item.key!r}: the value of {{{name.strip()}}} contains {reserved}, a special token"
            )
        return text

    variables_of(prompt)  # raises for unpaired braces
    return _FIELD.sub(value, prompt)


def check_known(prompts: Iterable[str], columns: Collection[str]) -> None:
    """Check, before anything is captioned, that the variables in prompts exist in a table with these columns.

    Raises:
        VariableError: one does not; the message lists the known variables and the closest one.
    """
    known = {*BUILT_IN, *columns}
    for prompt in prompts:
        for found in _FIELD.finditer(prompt):
            if found[1] is not None and "|" not in found[1] and found[1].strip() not in known:
                raise VariableError(_unknown(found[1].strip(), known, False, f"the prompt {prompt!r:.80}"))
        variables_of(prompt)


def _built_in(item: Described) -> dict[str, str]:
    # "shard.tar::dogs/7.jpg": the part after the colons is the image's own path.
    path = PurePath(item.source.rpartition("::")[2])
    return {"filename": path.name, "stem": path.stem, "directory": path.parent.name, "key": item.key}


def _name(field: str, prompt: str) -> str:
    name = field.partition("|")[0].strip()
    if not name:
        raise VariableError(f"the prompt {prompt!r:.80} has {{}} without a name: name a variable, or write {{{{}}}}")
    return name


def _text(value: Any) -> str | None:
    """Return a column's value as text, or None if it is empty."""
    if value is None or (isinstance(value, float) and value != value):  # NaN is an empty cell
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, (list, tuple)):
        return ", ".join(part for part in map(_text, value) if part is not None) or None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # an integer column with empty cells is read as floats
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, Mapping) else str(value)


def _unknown(name: str, known: Collection[str], is_empty: bool, where: str) -> str:
    if is_empty:
        return f"{where}: {{{name}}} is empty there; write {{{name}|some text}} to have a text in its place"
    names = [*BUILT_IN, *sorted(set(map(str, known)) - set(BUILT_IN))]
    return f"{where}: {unknown('variable', name, names, '{{{}}}'.format)} Write {{{{ and }}}} for braces"
