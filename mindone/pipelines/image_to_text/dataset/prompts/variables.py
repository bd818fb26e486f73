"""Variables in prompts, forced beginnings and templates: `{filename}`, `{directory}`, or a column of the table."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Protocol

from mindone.models.share4v.suggestions import unknown

# Variables of every input, and what they mean; a column of the same name replaces them.
BUILT_IN = {
    "filename": "name of the image's file",
    "stem": "the same without its extension",
    "directory": "name of the folder that contains it",
    "key": "the input's key",
}
# To the model these are not text: they stand for an image, or end the question.
_RESERVED = ("<image>", "<s>", "</s>", "<unk>")
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
# Characters of JSON and of code, which people put into prompts, and which names of columns do not have.
_NOT_A_NAME = re.compile(r"[\"':,;=\[\]\n]")
_MAX_SHOWN = 80  # characters of a prompt in a message


class Described(Protocol):
    """What is needed of an input; an `Item` has it."""

    @property
    def key(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def columns(self) -> Mapping[str, Any]: ...


class VariableError(ValueError):
    """A text names a variable that the input lacks or whose value cannot be used, or has a brace that starts none."""


def has_variables(text: str) -> bool:
    """Return whether `fill` would change a text: whether there is a brace in it."""
    return "{" in text or "}" in text


def variables_of(text: str, where: str = "the prompt") -> frozenset[str]:
    """Return the names of the variables in a text; `{{` and `}}` stand for braces.

    Args:
        text: a prompt, or another text that may contain variables.
        where: what the text is, for errors.

    Raises:
        VariableError: there is a single brace, or a pair with nothing in between.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.prompts.variables import variables_of
        >>> sorted(variables_of("What is {filename} in {{braces}}? {title|nothing}"))
        ['filename', 'title']
    """
    names = set()
    for found in _FIELD.finditer(text):
        if found[0] in ("{", "}"):
            raise VariableError(
                f"{where} {_shown(text)} has a lone {found[0]!r} at {found.start()}: write {found[0] * 2} for a brace. "
                f"{_doubled(text)}"
            )
        if found[1] is not None:
            names.add(_name(found[1], text, where))
    return frozenset(names)


def fill(text: str, item: Described, texts: Mapping[str, str] = MappingProxyType({}), *, is_prompt: bool = True) -> str:
    """Replace the variables in a text by the input's values; `{name|default}` uses the default if there is no value.

    Args:
        text: the text.
        item: the input.
        texts: further variables; they replace columns of the same name.
        is_prompt: whether the model reads the text, so that no value may contain its special tokens.

    Raises:
        VariableError: the input has no such value (the message names those that it has), or the value contains
            `<image>` or another of the model's special tokens.
    """
    values = {**_built_in(item), **item.columns, **texts}

    def value(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0][0]
        name, _, default = found[1].partition("|")
        content = _text(values.get(name.strip()))
        if content is None:
            if "|" not in found[1]:
                raise VariableError(_unknown(name.strip(), values, name.strip() in values, f"record {item.key!r}"))
            content = default
        reserved = next((token for token in _RESERVED if token in content), None)
        if is_prompt and reserved is not None:
            raise VariableError(
                f"record {item.key!r}: the value of {{{name.strip()}}} contains {reserved}, which the model does not "
                "read as text"
            )
        return content

    variables_of(text)  # single braces are rejected for every input alike
    return _FIELD.sub(value, text)


def check_known(
    texts: Iterable[str], columns: Collection[str], allows_absent: bool = False, where: str = "the prompt"
) -> None:
    """Check, before anything is captioned, that inputs with these columns have the variables of some texts.

    Args:
        texts: prompts, or other texts that may contain variables.
        columns: columns of the inputs.
        allows_absent: whether a variable with a default may be none of the columns, because a later input may have it.
        where: what the texts are, for errors.

    Raises:
        VariableError: the message names the known variables and the closest one, or explains what braces mean.
    """
    known = {*BUILT_IN, *columns}
    for text in texts:
        for found in _FIELD.finditer(text):
            name, bar, default = (found[1] or "").partition("|")
            if found[1] is None or name.strip() in known or not name.strip():
                continue
            place = f"{where} {_shown(text)}"
            if _NOT_A_NAME.search(found[1]):
                raise VariableError(
                    f"{place} contains {_shown(found[0], '')}, but braces enclose the name of a variable: "
                    f"{_listed(known)}. {_doubled(text)}"
                )
            if not bar:
                raise VariableError(_unknown(name.strip(), known, False, place))
            if not allows_absent:
                raise VariableError(
                    f"{place} contains {found[0]}, which stands for the value of {name.strip()!r}, or for {default!r} "
                    f"where an input has none; but no input has it, only {_listed(known)}. {_doubled(text)} To ask one "
                    "of several questions at random, give prompt (--prompt) several times"
                )
        variables_of(text, where)


def _built_in(item: Described) -> dict[str, str]:
    # "shard.tar::dogs/7.jpg": the part behind the colons is the image's own name.
    path = PurePath(item.source.rpartition("::")[2])
    return {"filename": path.name, "stem": path.stem, "directory": path.parent.name, "key": item.key}


def _name(field: str, text: str, where: str) -> str:
    name = field.partition("|")[0].strip()
    if not name:
        raise VariableError(f"{where} {_shown(text)} has {{}} without a name: name a variable, or write {{{{}}}}")
    return name


def _text(value: Any) -> str | None:
    """Return a column's value as text; None if it is empty."""
    if value is None or (isinstance(value, float) and value != value):  # an empty cell of a table is NaN
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, (list, tuple)):
        return ", ".join(part for part in map(_text, value) if part is not None) or None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # integers of a table's column that has empty cells
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, Mapping) else str(value)


def _unknown(name: str, known: Collection[str], is_empty: bool, where: str) -> str:
    if is_empty:
        return f"{where}: {{{name}}} is empty there; write {{{name}|some text}} to use a text in its place"
    names = [*BUILT_IN, *sorted(set(map(str, known)) - set(BUILT_IN))]
    return f"{where}: {unknown('variable', name, names, '{{{}}}'.format)} Write {{{{ and }}}} for braces"


def _listed(known: Collection[str]) -> str:
    names = [*BUILT_IN, *sorted(set(map(str, known)) - set(BUILT_IN))]
    more = len(names) - 20
    return ", ".join(f"{{{name}}}" for name in names[:20]) + (f" and {more} more" if more > 0 else "")


def _doubled(text: str) -> str:
    """Return how to write a text so that it is used as it is."""
    if len(text) > 4 * _MAX_SHOWN:
        return "To have braces in the text, double each of them: {{ and }}."
    escaped = text.replace("{", "{{").replace("}", "}}")
    return f"To have braces in the text, double each of them: {escaped!r}."


def _shown(text: str, quote: str = "'") -> str:
    shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    return repr(shown) if quote else shown
