"""The settings of `generate` and `stream` as keyword arguments; documented at GenerationSettings and Sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from inspect import Parameter
from typing import Any, TypedDict

from ..hugging_face import GENERATE, split_arguments
from ..load_options import Function, with_parameters
from ..suggestions import unknown
from .constraints import Schema
from .decoding import GenerationSettings
from .sampling import Sampling


class SamplingArguments(TypedDict, total=False):
    """Settings that everything that generates has; None means the default."""

    min_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    logit_bias: Mapping[int, float] | None
    num_return_sequences: int | None
    logprobs: int | None
    stop: str | Sequence[str] | None
    eos_token_id: int | Sequence[int] | None
    schema: Schema | None
    regex: str | None
    seed: int | None


class StreamArguments(SamplingArguments, total=False):
    """Settings of `stream`."""

    max_new_tokens: int | None


class GenerateArguments(StreamArguments, total=False):
    """Settings of `generate`."""

    num_beams: int | None
    length_penalty: float | None


class CallArguments(SamplingArguments, total=False):
    """Settings of a pipeline's call, which has max_new_tokens as an argument of its own."""

    num_beams: int | None
    length_penalty: float | None


SETTING_NAMES: tuple[str, ...] = tuple(GenerateArguments.__annotations__)
ALIASES = {"stop_strings": "stop"}  # Hugging Face's name -> ours


class GenerationConfig:
    """The defaults of a model's `generate` and `stream`: one attribute for each setting.

    Args:
        settings: settings of `generate` that differ from its defaults.

    Raises:
        TypeError: a name is not a setting; the message has the closest one.
        ValueError: a value is out of range, or contradicts another one.

    Example:
        >>> from mindone.models.share4v import Share4V
        >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
        >>> model.generation_config.max_new_tokens = 64
        >>> model.generation_config
        GenerationConfig(max_new_tokens=64)
    """

    def __init__(self, **settings: Any) -> None:
        self._changed: dict[str, Any]
        object.__setattr__(self, "_changed", {})
        self.update(settings)

    def update(self, settings: Mapping[str, Any]) -> None:
        """Set several settings at once."""
        changed = split_arguments(GENERATE, {**self._changed, **settings}, SETTING_NAMES, ALIASES)
        GenerationSettings.from_arguments(changed)
        object.__setattr__(self, "_changed", changed)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults of `generate`."""
        return dict(self._changed)

    def __setattr__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __getattr__(self, name: str) -> Any:
        if name in SETTING_NAMES:
            return self._changed.get(name, default_settings()[name])
        raise AttributeError(unknown("setting", name, SETTING_NAMES))

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self._changed.items())})"


def default_settings() -> dict[str, Any]:
    """Return the defaults of the settings of `generate`."""
    defaults: dict[str, Any] = {}
    for item in (*fields(GenerationSettings), *fields(Sampling)):
        defaults[item.name] = None if item.default is MISSING else item.default
    return {**defaults, "stop": None}


def explicit_settings(arguments: type) -> Callable[[Function], Function]:
    """Decorate a function whose last parameter is `**settings`, so that `help()` lists the keys of a TypedDict."""
    defaults = default_settings()
    return with_parameters(
        Parameter(name, Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind)
        for name, kind in arguments.__annotations__.items()
    )
