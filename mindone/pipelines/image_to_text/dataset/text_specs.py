"""TextSpec: one of several named texts that an image gets in one pass, as people write it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any

from mindone.models.share4v.suggestions import unknown

from .prompts.styles import STYLES

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_Texts = str | tuple[str, ...] | list[str]
# Names that outputs use for something else: columns of tables, the template's variable, and endings of files.
_TAKEN = frozenset(
    (
        *("key", "source", "caption", "captions", "texts", "error", "model", "dtype", "prompts", "settings", "sha256"),
        *("tokens", "finish_reasons", "notes", "width", "height", "columns", "seconds", "path", "file_name", "text"),
        *("filename", "stem", "directory", "txt", "json", "npz"),
        *("text_tokens", "uncut_tokens", "match"),
    )
)


@dataclass(frozen=True)
class TextSpec:
    """A named text: what is asked, and the settings that differ from those of the job.

    Every setting has the name and the meaning of the keyword argument of `caption_dataset`, whose value is the default.
    A text without style, prompt and prompt_file is asked what the job asks. Its prompt may contain the names of earlier
    texts as variables, as in "Shorten: {long}".

    Attributes:
        name: of the text: a column of tables, a field of JSON, and the middle of file names (`a.short.txt`).
        image: whether the model sees the image. Without it, the prompt has to contain an earlier text.

    Raises:
        ValueError: the name cannot be used.

    Example:
        >>> from mindone.pipelines.image_to_text import TextSpec
        >>> TextSpec("short", style="short", max_words=12).max_words
        12
    """

    name: str
    _: KW_ONLY
    style: _Texts | None = None
    prompt: _Texts | None = None
    prompt_file: str | Path | None = None
    image: bool = True
    template: str | None = None
    fit: _Texts | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    stop: _Texts | None = None
    schema: Mapping[str, Any] | str | Path | None = None
    begin_with: str | None = None
    attempts: int | None = None
    seed: int | None = None
    strip_openings: bool | None = None
    strip: _Texts | None = None
    max_sentences: int | None = None
    max_words: int | None = None
    min_words: int | None = None
    require: _Texts | None = None
    forbid: _Texts | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"texts: a name starts with a letter and has letters, digits, - and _, got {self.name!r}: choose "
                "another one, such as 'short'"
            )
        if self.name.lower() in _TAKEN:
            raise ValueError(f"texts: the name {self.name!r} has another meaning in outputs: choose another one")

    @property
    def given(self) -> dict[str, Any]:
        """The settings that the text has of its own, by keyword."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("name", "image")}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def parse(cls, text: str) -> TextSpec:
        """Read NAME, NAME:STYLE or NAME:PROMPT; what has a space is a prompt.

        Raises:
            ValueError: the name or the style is wrong.

        Example:
            >>> TextSpec.parse("short:Shorten this: {long}").prompt
            'Shorten this: {long}'
        """
        name, mark, asked = text.partition(":")
        if not mark:
            return cls(name.strip())
        if " " in asked.strip():
            return cls(name.strip(), prompt=asked.strip())
        if asked.strip() not in STYLES:
            raise ValueError(f"texts: {unknown('caption style', asked.strip(), STYLES)} A prompt contains a space")
        return cls(name.strip(), style=asked.strip())

    @classmethod
    def from_table(cls, name: str, table: Any) -> TextSpec:
        """Make a text from a table of a configuration file, or from its style or prompt alone.

        Raises:
            ValueError: it is no table, or a setting is unknown.
        """
        if isinstance(table, str):
            return cls.parse(f"{name}:{table}")
        if not isinstance(table, Mapping):
            raise ValueError(f"texts.{name} must be a table of settings, got {table!r}")
        known = [one.name for one in fields(cls) if one.name != "name"]
        settings = {setting.replace("-", "_"): value for setting, value in table.items()}
        for setting in settings:
            if setting not in known:
                raise ValueError(unknown(f"setting of texts.{name}", setting, known))
        return cls(name, **settings)


def read_texts(value: Any) -> tuple[TextSpec, ...]:
    """Return named texts from what a caller gave: TextSpecs, texts for `TextSpec.parse`, or tables by name.

    Raises:
        ValueError: one is wrong, or two have the same name.
    """
    if isinstance(value, Mapping):
        found = [TextSpec.from_table(name, table) for name, table in value.items()]
    else:
        given: Iterable[Any] = [value] if isinstance(value, (str, TextSpec)) else value
        found = [one if isinstance(one, TextSpec) else TextSpec.parse(one) for one in given]
    folded = [one.name.lower() for one in found]
    for one in found:
        if folded.count(one.name.lower()) > 1:
            raise ValueError(f"texts: two of them are called {one.name!r}: choose another name for one")
    return tuple(found)
