"""What makes captions, as plain data, from which any process, here or on another machine, builds its captioner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .prompts.styles import get_style
from .rules.retries import RETRIES
from .rules.text_rules import TextRules


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is loaded: arguments of `mindone.pipelines.pipeline`."""

    model: str = "sharegpt4v-tiny"
    vision_tower: str | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    language_backend: str = "native"
    vision_backend: str = "native"
    conversation: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False


@dataclass(frozen=True)
class CaptioningSettings:
    """How captions are made.

    Attributes:
        generation: arguments of `generate`, as `check_settings` returns them.
        rules: what a caption must be, besides what its style says.
        beginning: what every caption begins with.
        attempts: how often a caption that breaks the rules is made at most.
        seed: of every random choice.
        batch_size: texts that are decoded together.
        workers: threads that read and decode pictures.
    """

    generation: Mapping[str, Any] = field(default_factory=dict)
    rules: TextRules = field(default_factory=TextRules)
    beginning: str = ""
    attempts: int = 3
    seed: int = 0
    batch_size: int = 8
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not 1 <= self.attempts <= len(RETRIES):
            raise ValueError(f"attempts must be 1 to {len(RETRIES)}, got {self.attempts}")
        if self.generation.get("num_beams", 1) > 1:
            raise ValueError("beams are not for data sets: leave num_beams out, or caption the pictures one by one")

    def of_style(self, style: str | None) -> tuple[dict[str, Any], TextRules]:
        """Return arguments of `generate`, and what a caption must be, the style's own among them.

        Raises:
            ValueError: the style and these settings contradict each other.
        """
        if style is None:
            return dict(self.generation), self.rules
        chosen = get_style(style)
        generation = {"max_new_tokens": chosen.max_new_tokens, **self.generation}
        try:
            rules = chosen.rules.joined(self.rules)
        except ValueError as error:
            raise ValueError(f"the style {style!r} does not go with these settings: {error}") from error
        least, most = generation.get("min_new_tokens", 0), generation["max_new_tokens"]
        if least > most:
            raise ValueError(
                f"the style {style!r} ends after {most} new tokens, min_new_tokens is {least}: give max_new_tokens too"
            )
        return generation, rules
