"""Retry policy: which captions are accepted, and how generation settings change on a retry."""

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

# Changes to the generation settings on each attempt; the first attempt uses the caller's settings. Greedy decoding with
# the same settings would repeat the same caption, so the second attempt adds a penalty, and later ones sample.
RETRIES: tuple[Mapping[str, Any], ...] = (
    MappingProxyType({}),
    MappingProxyType({"repetition_penalty": 1.1}),
    MappingProxyType({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}),
    MappingProxyType({"do_sample": True, "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2}),
)


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


def next_attempt(previous: Sequence[Attempt], seed: int, key: Key) -> Attempt:
    """Return the next attempt; its random seed depends only on `seed`, the image, the prompt and its number."""
    image_sha256, prompt = key
    name = f"{seed} {image_sha256.hex()} {len(previous)} {prompt}".encode("utf-8", "surrogatepass")
    return Attempt({**RETRIES[len(previous)], "seed": int.from_bytes(sha256(name).digest()[:4], "big")})


def accept(
    finished: FinishedText[Any], attempts: Sequence[Attempt], rules: TextRules, max_attempts: int
) -> Caption | None:
    """Return the last attempt's caption if it breaks no rule, the best caption if no attempt is left, else None.

    Args:
        finished: output of the last attempt.
        attempts: all attempts so far; the caption and violations of the last one are set.
        rules: rules for the caption.
        max_attempts: maximum number of attempts.
    """
    last, text = attempts[-1], clean(finished.text, rules)
    last.violations = violations(text, rules, finished.token_ids)
    last.caption = Caption(text, len(finished.token_ids), finished.finish_reason)
    if last.violations and len(attempts) < min(max_attempts, len(RETRIES)):
        return None
    best = min(attempts, key=lambda attempt: len(attempt.violations))  # the earliest one among equals
    caption = best.caption or last.caption
    notes = list(best.violations)
    if len(attempts) > 1:
        notes.append(f"attempt {attempts.index(best) + 1} of {len(attempts)} ({', '.join(attempts[0].violations)})")
    return Caption(caption.text, caption.tokens, caption.finish_reason, tuple(notes))
