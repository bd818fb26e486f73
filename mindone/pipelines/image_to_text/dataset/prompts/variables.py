"""Variables in prompts: `{filename}`, `{directory}` and every column of the record, put in as plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Any, Protocol

from mindone.models.share4v.suggestions import unknown

# What every record has, and what it means; a column of the same name goes first.
BUILT_IN = {
    "filename": "name of the picture's file",
    "stem": "the same without its ending",
    "directory": "name of the folder that holds it",
    "key": "the record's key",
}
# In a prompt these are not text: they stand for a picture, or end the question.
_RESERVED = ("<image>", "<s>", "</s>", "<unk>")
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Described(Protocol):
    """What is needed of an input: an `Item` has it."""

    @property
    def key(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def columns(self) -> Mapping[str, Any]: ...


class VariableError(ValueError):
    """A prompt names a variable that the record lacks, or whose value will not do."""


def variables_of(prompt: str) -> frozenset[str]:
    """Return the names of the variables in a prompt; `{{` and `}}` stand for braces.

    Raises:
        VariableError: a brace stands alone, or holds nothing.

    Example:
        >>> sorted(variables_of("What is {filename} in {{braces}}? {title|nothing}"))
        ['filename', 'title']
    """
    names = set()
    for found in _FIELD.finditer(prompt):
        if found[0] in ("{", "}"):
            raise VariableError(
                f"the prompt {prompt!r:.80} has a lone {found[0]!r} at {found.start()}: "
                f"write {found[0] * 2} for a brace"
            )
        if found[1] is not None:
            names.add(_name(found[1], prompt))
    return frozenset(names)


def fill(prompt: str, item: Described) -> str:
    """Put the record's values in a prompt. `{name|text}` has `text` where the record has no such value.

    Raises:
        VariableError: the record has no such value (the message names those it has), or the value holds `<image>` or
            another of the model's special tokens.
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
                f"record {item.key!r}: the value of {{{name.strip()}}} holds {reserved}, which is no text to the model"
            )
        return text

    variables_of(prompt)  # lone braces are refused in every record alike
    return _FIELD.sub(value, prompt)


def check_known(prompts: Iterable[str], columns: Collection[str]) -> None:
    """Refuse prompts with variables that records with these columns lack, before anything has been captioned.

    Raises:
        VariableError: the message names the known variables and the closest one.
    """
    known = {*BUILT_IN, *columns}
    for prompt in prompts:
        for found in _FIELD.finditer(prompt):
            if found[1] is not None and "|" not in found[1] and found[1].strip() not in known:
                raise VariableError(_unknown(found[1].strip(), known, False, f"the prompt {prompt!r:.80}"))
        variables_of(prompt)


def _built_in(item: Described) -> dict[str, str]:
    # "shard.tar::dogs/7.jpg": the part behind the colons is the picture's own name.
    path = PurePath(item.source.rpartition("::")[2])
    return {"filename": path.name, "stem": path.stem, "directory": path.parent.name, "key": item.key}


def _name(field: str, prompt: str) -> str:
    name = field.partition("|")[0].strip()
    if not name:
        raise VariableError(f"the prompt {prompt!r:.80} has {{}} without a name: name a variable, or write {{{{}}}}")
    return name


def _text(value: Any) -> str | None:
    """Write a column's value as text; None where there is nothing to write."""
    if value is None or (isinstance(value, float) and value != value):  # NaN is how tables say that a cell is empty
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, (list, tuple)):
        return ", ".join(part for part in map(_text, value) if part is not None) or None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a table's whole numbers, where another row had none
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, Mapping) else str(value)


def _unknown(name: str, known: Collection[str], is_empty: bool, where: str) -> str:
    if is_empty:
        return f"{where}: {{{name}}} is empty there; write {{{name}|some text}} to have a text in its place"
    names = [*BUILT_IN, *sorted(set(map(str, known)) - set(BUILT_IN))]
    return f"{where}: {unknown('variable', name, names, '{{{}}}'.format)} Write {{{{ and }}}} for braces"
