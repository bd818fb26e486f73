"""When a caption will do, and what is changed when it will not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..inference.caption_cache import Caption, Key
from .text_rules import TextRules, clean, violations

if TYPE_CHECKING:
    from mindone.models.share4v.generation.continuous_batch import FinishedText

# What each further attempt changes of the settings; the first is as the caller asked. The same settings again would
# give the same caption, so a penalty comes first, which keeps decoding greedy, and then chance.
RETRIES: tuple[Mapping[str, Any], ...] = (
    MappingProxyType({}),
    MappingProxyType({"repetition_penalty": 1.1}),
    MappingProxyType({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}),
    MappingProxyType({"do_sample": True, "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2}),
)


@dataclass
class Attempt:
    """One try at a caption: what it changed of the settings, and what came of it."""

    changes: Mapping[str, Any]
    caption: Caption | None = None
    violations: tuple[str, ...] = ()


def next_attempt(before: Sequence[Attempt], seed: int, key: Key) -> Attempt:
    """Return the next try; its random choices follow from the seed, the picture, the question and the try's number."""
    picture, question = key
    named = f"{seed} {picture.hex()} {len(before)} {question}".encode("utf-8", "surrogatepass")
    return Attempt({**RETRIES[len(before)], "seed": int.from_bytes(sha256(named).digest()[:4], "big")})


def accept(finished: FinishedText[Any], attempts: Sequence[Attempt], rules: TextRules, most: int) -> Caption | None:
    """Return the caption where the last attempt will do, or the best of them where no other is left; else None.

    Args:
        finished: what the last attempt made.
        attempts: all so far; the last one's caption and violations are filled in.
        rules: what a caption must be.
        most: attempts at most.
    """
    last, text = attempts[-1], clean(finished.text, rules)
    last.violations = violations(text, rules, finished.token_ids)
    last.caption = Caption(text, len(finished.token_ids), finished.finish_reason)
    if last.violations and len(attempts) < min(most, len(RETRIES)):
        return None
    best = min(attempts, key=lambda attempt: len(attempt.violations))  # the earliest among equals
    made = best.caption or last.caption
    notes = list(best.violations)
    if len(attempts) > 1:
        notes.append(f"attempt {attempts.index(best) + 1} of {len(attempts)} ({', '.join(attempts[0].violations)})")
    return Caption(made.text, made.tokens, made.finish_reason, tuple(notes))
