"""Every setting of a captioning job, as frozen dataclasses that can be sent to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .prompts.styles import get_style
from .rules.retries import RETRIES
from .rules.text_rules import TextRules
from .state.existing_captions import MODES
from .writers import WriterOptions


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
            rules = chosen.rules.combine(self.rules)
        except ValueError as error:
            raise ValueError(f"the style {style!r} does not go with these settings: {error}") from error
        least, most = generation.get("min_new_tokens", 0), generation["max_new_tokens"]
        if least > most:
            raise ValueError(
                f"the style {style!r} ends after {most} new tokens, min_new_tokens is {least}: give max_new_tokens too"
            )
        return generation, rules


@dataclass(frozen=True)
class ExecutorOptions:
    """What a cluster is asked for; one process needs none of it.

    Attributes:
        actors: how many models work at once.
        cpus: that each of them has.
        block: inputs that an actor of Ray takes at a time.
    """

    actors: int = 1
    cpus: int = 1
    block: int = 64

    def __post_init__(self) -> None:
        for name in ("actors", "cpus", "block"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


@dataclass(frozen=True)
class JobOptions:
    """Where a job's results go, and what works on it.

    Attributes:
        out: file or directory of the result; None puts a .txt beside each picture.
        formats: names of outputs; by default what the ending of `out` says.
        existing: what becomes of captions that are there: "skip", "overwrite", "append" or "prepend".
        writers: settings of the outputs.
        engine: "local", "ray" or "msrun"; None is "msrun" in a process that msrun started, else "local".
        executor: what the engine "ray" asks for.
        state: the job's own directory; by default beside the output.
        restart: forget what an earlier run did.
        retry_failed: once more for the inputs that failed; the other records stand.
    """

    out: str | None = None
    formats: tuple[str, ...] = ()
    existing: str = "skip"
    writers: WriterOptions = field(default_factory=WriterOptions)
    engine: str | None = None
    executor: ExecutorOptions = field(default_factory=ExecutorOptions)
    state: str | None = None
    restart: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if self.restart and self.retry_failed:
            raise ValueError("restart and retry_failed do not go together: the one forgets what the other keeps")
        if self.existing not in MODES:
            raise ValueError(f"existing must be one of {', '.join(MODES)}, got {self.existing!r}")
