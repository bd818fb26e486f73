"""Retry policy: which captions are accepted, and how generation settings change on a retry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from types import MappingProxyType
from typing import Any

from ..state.records import Record
from .text_rules import TextRules, clean, violations

# Identifies a caption: SHA-256 of the image's bytes; prompt, its style, and its index among equal prompts.
CaptionKey = tuple[bytes, str]

TEXT_MARK = "\0text "  # in a prompt of a CaptionKey, before the name of its text
_ATTEMPT = "attempt "  # start of the note about retries
_RETRIED = re.compile(r"(?:[\w-]+: )?attempt \d")  # the same, perhaps after the name of a text
# Changes to the generation settings on each attempt; the first attempt uses the caller's settings. Greedy decoding with
# the same settings would repeat the same caption, so the second attempt adds a penalty, and later ones sample.
RETRIES: tuple[Mapping[str, Any], ...] = (
    MappingProxyType({}),
    MappingProxyType({"repetition_penalty": 1.1}),
    MappingProxyType({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}),
    MappingProxyType({"do_sample": True, "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2}),
)


@dataclass(frozen=True)
class Caption:
    """One caption.

    Attributes:
        text: with the rules applied.
        tokens: number of generated tokens.
        finish_reason: "eos", "stop", "length" or "context".
        notes: remarks for the reader, such as "attempt 2 of 3 (empty)".
        source: of a caption from an endpoint: its own name of the model, what the requests cost, and the key of the
            input that they were sent for.
    """

    text: str
    tokens: int
    finish_reason: str
    notes: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Attempt:
    """One attempt at a caption.

    Attributes:
        changes: changes to the generation settings.
        caption: the generated caption, once it is finished.
        violations: rules that the caption breaks.
    """

    changes: Mapping[str, Any]
    caption: Caption | None = None
    violations: tuple[str, ...] = ()


def breaks_rules(notes: Iterable[str]) -> bool:
    """Return whether the notes of a generated caption name a rule that it breaks, not only rules that a retry fixed.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.rules.retries import breaks_rules
        >>> breaks_rules(["attempt 2 of 2 (empty)"]), breaks_rules(["empty", "attempt 1 of 3 (empty)"])
        (False, True)
    """
    return bool(broken_rules(notes))


def broken_rules(notes: Iterable[str]) -> tuple[str, ...]:
    """Return those notes of a generated caption that name a rule which it breaks."""
    return tuple(note for note in notes if not _RETRIED.match(note))


def fault_error(broken: Iterable[str]) -> str:
    """Return the error of an input whose captions break rules."""
    return f"breaks a rule: {'; '.join(broken)}"


def of_text(name: str, reason: str) -> str:
    """Return why an input fails, with the name of the text that does; "" is a text without a name."""
    return f"{name}: {reason}" if name else reason


def next_attempt(previous: Sequence[Attempt], seed: int, key: CaptionKey) -> Attempt:
    """Return the next attempt; its random seed depends only on `seed`, the image, the prompt and its number."""
    image_sha256, prompt = key[0], key[1].partition(TEXT_MARK)[0]
    name = f"{seed} {image_sha256.hex()} {len(previous)} {prompt}".encode("utf-8", "surrogatepass")
    return Attempt({**RETRIES[len(previous)], "seed": int.from_bytes(sha256(name).digest()[:4], "big")})


def accept(
    attempts: Sequence[Attempt], rules: TextRules, max_attempts: int, answer: Caption, token_ids: Sequence[int]
) -> Caption | None:
    """Check the last attempt; return the caption to use, or None if another attempt is needed.

    If no attempt is left, the result is the attempt with the fewest violations.

    Args:
        attempts: all attempts so far; the caption and violations of the last one are set.
        rules: rules for the caption.
        max_attempts: maximum number of attempts.
        answer: the generated caption, before the rules are applied.
        token_ids: token ids of `answer`, which are searched for repetition too.
    """
    last = attempts[-1]
    text = clean(answer.text, rules)
    last.violations = violations(text, rules, token_ids)
    last.caption = Caption(text, answer.tokens, answer.finish_reason, source=answer.source)
    if last.violations and len(attempts) < min(max_attempts, len(RETRIES)):
        return None
    best = min(attempts, key=lambda attempt: len(attempt.violations))  # the earliest one if several are equal
    chosen = best.caption or last.caption
    notes = list(best.violations)
    if len(attempts) > 1:
        notes.append(f"{_ATTEMPT}{attempts.index(best) + 1} of {len(attempts)} ({', '.join(attempts[0].violations)})")
    return Caption(chosen.text, chosen.tokens, chosen.finish_reason, tuple(notes))


def complete_record(record: Record, captions: Sequence[Caption]) -> Record:
    """Return a record with the captions of its prompts; the notes of a named text begin with its name."""
    names = record.texts or ("",) * len(captions)
    return replace(
        record,
        captions=tuple(caption.text for caption in captions),
        tokens=tuple(caption.tokens for caption in captions),
        finish_reasons=tuple(caption.finish_reason for caption in captions),
        notes=tuple(
            of_text(name, note) for name, caption in zip(names, captions, strict=True) for note in caption.notes
        ),
    )
