"""Rules for finished captions: cleaning their text, and checking their length and words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from .openings import remove_opening
from .phrase_lists import MARK, PHRASE_LISTS, find_phrase, get_phrase_list
from .repetition import find_repetition
from .words import count_words, has_word, missing_words, split_sentences

_TAG_HEAD = re.compile(r"^\s*(?:here (?:are|is) the )?tags?\s*:\s*", re.IGNORECASE)
_TAG_BREAK = re.compile(r"[,;\n•，、]+")
_TAG_EDGE = re.compile(r"^(?:\s|[-*#\"'`]|\d+[.)](?=\s)|and\s)+|(?<![\s.\"'`])[\s.\"'`]+$", re.IGNORECASE)


@dataclass(frozen=True)
class TextRules:
    """Rules for captions. The first five change a caption; the others only check it.

    Attributes:
        strip_openings: remove openings such as "The image shows".
        openings: further openings to remove.
        as_tags: normalize a list of tags: separated by commas, lower case, without duplicates.
        max_sentences: maximum number of sentences; further ones are removed.
        max_words: maximum number of words; whole sentences are removed to meet it. A longer first sentence stays and
            is a violation.
        min_words: minimum number of words.
        required_words: words or phrases that must occur.
        forbidden_words: words or phrases that must not occur. `@refusals` is a list of phrases (`phrase_lists`), which
            are looked for in finished captions; single words are also kept from being generated.
        refuse_loops: treat degenerate repetition as a violation.

    Words and phrases match whole words only. A word in lower case matches in any case; a word with capitals matches
    exactly.

    Raises:
        ValueError: a limit is out of range, or a word is empty.
    """

    strip_openings: bool = False
    openings: tuple[str, ...] = ()
    as_tags: bool = False
    max_sentences: int | None = None
    max_words: int | None = None
    min_words: int = 0
    required_words: tuple[str, ...] = ()
    forbidden_words: tuple[str, ...] = ()
    refuse_loops: bool = True

    def __post_init__(self) -> None:
        for name in ("max_sentences", "max_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if self.min_words < 0:
            raise ValueError(f"min_words must be 0 or more, got {self.min_words}")
        if self.max_words is not None and self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is more than max_words {self.max_words}")
        for name in ("openings", "required_words", "forbidden_words"):
            if not all(isinstance(word, str) and word.strip() for word in getattr(self, name)):
                raise ValueError(f"{name} contains an empty word: {getattr(self, name)!r}")
        for word in self.forbidden_words:
            if word.startswith(MARK):
                get_phrase_list(word)
        for word in self.required_words:
            if word.startswith(MARK) and word.removeprefix(MARK) in PHRASE_LISTS:
                raise ValueError(f"require: {word} is a list of phrases that can only be forbidden (--forbid {word})")
        both = [word for word in self.required_words if word in self.forbidden_words]
        if both:
            raise ValueError(f"{both[0]!r} is both required and forbidden: remove it from one list")

    @property
    def ungenerated_words(self) -> tuple[str, ...]:
        """The forbidden words that are kept from being generated: all but the lists of phrases."""
        return tuple(word for word in self.forbidden_words if not word.startswith(MARK))

    @property
    def changing(self) -> tuple[str, ...]:
        """Names of the rules in use that change a caption.

        Example:
            >>> TextRules(max_sentences=1, min_words=3).changing
            ('max_sentences',)
        """
        return tuple(field.name for field in fields(self)[:5] if getattr(self, field.name))

    def combine(self, other: TextRules) -> TextRules:
        """Return these rules combined with others: lists are joined, and non-default values of `other` replace these.

        Example:
            >>> TextRules(max_sentences=1).combine(TextRules(required_words=("cat",))).max_sentences
            1
        """
        changed: dict[str, Any] = {}
        for field in fields(self):
            own, new = getattr(self, field.name), getattr(other, field.name)
            if isinstance(own, tuple):
                changed[field.name] = tuple(dict.fromkeys((*own, *new)))
            elif new != field.default:
                changed[field.name] = new
        return replace(self, **changed)


def clean(text: str, rules: TextRules) -> str:
    """Return a caption after applying the rules that change it; a caption with any content is never emptied.

    Example:
        >>> clean("The image shows a cat. It sleeps. It is black.", TextRules(strip_openings=True, max_sentences=2))
        'A cat. It sleeps.'
    """
    text = text.strip()
    if rules.strip_openings or rules.openings:
        text = remove_opening(text, rules.openings, common=rules.strip_openings)
    if rules.as_tags:
        text = _normalize_tags(text)
    if rules.max_sentences is not None:
        text = "".join(split_sentences(text)[: rules.max_sentences]).rstrip()
    if rules.max_words is not None and count_words(text) > rules.max_words:
        text = _shorten(text, rules.max_words, rules.as_tags)
    return text


def violations(text: str, rules: TextRules, token_ids: Sequence[int] | None = None) -> tuple[str, ...]:
    """Return short descriptions of the rules that a caption breaks; empty if it breaks none.

    Args:
        text: the caption as `clean` returned it.
        rules: the rules.
        token_ids: generated token ids; if given, they are searched for repetition too.

    Example:
        >>> violations("A black cat.", TextRules(required_words=("cat", "dog"), min_words=5))
        ('3 words, at least 5 required', 'required word missing: dog')
    """
    found = [] if text else ["empty"]
    count = count_words(text)
    if text and count < rules.min_words:
        found.append(f"{count} words, at least {rules.min_words} required")
    if rules.max_words is not None and count > rules.max_words:
        found.append(f"{count} words, at most {rules.max_words} allowed")
    found += [f"required word missing: {word}" for word in missing_words(text, rules.required_words)]
    found += [f"forbidden word: {word}" for word in rules.ungenerated_words if has_word(text, word)]
    for name in (word for word in rules.forbidden_words if word.startswith(MARK)):
        phrase = find_phrase(text, name)
        found += [] if phrase is None else [f"forbidden by {name}: {phrase}"]
    if rules.refuse_loops:
        repetition = find_repetition(text) or (None if token_ids is None else find_repetition(token_ids))
        if repetition is not None:
            found.append(f"repetition: {repetition.unit[:60]!r} {repetition.repeats:g} times")
    return tuple(found)


def _normalize_tags(text: str) -> str:
    tags = []
    for part in _TAG_BREAK.split(_TAG_HEAD.sub("", text)):
        tag = " ".join(_TAG_EDGE.sub("", part).split()).lower()
        if any(character.isalnum() for character in tag):
            tags.append(tag)
    return ", ".join(dict.fromkeys(tags)) or text


def _shorten(text: str, max_words: int, as_tags: bool) -> str:
    """Keep whole sentences (or tags) up to `max_words` words, and at least one."""
    parts = [f"{tag}," for tag in text.split(",")] if as_tags else split_sentences(text)
    result, count = "", 0
    for part in parts:
        count += count_words(part)
        if result and count > max_words:
            break
        result += part
    return result.rstrip(", ") if as_tags else result.rstrip()
