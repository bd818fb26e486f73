"""The settings of `generate` and `stream` as keyword arguments; documented at GenerationSettings and Sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from inspect import Parameter
from typing import Any, TypedDict

from ..load_options import Function, with_parameters
from .constraints import Schema
from .decoding import GenerationSettings
from .sampling import Sampling


class StreamArguments(TypedDict, total=False):
    """Settings of `stream`; None means the default."""

    max_new_tokens: int | None
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
    schema: Schema | None
    regex: str | None
    seed: int | None


class GenerateArguments(StreamArguments, total=False):
    """Settings of `generate`; None means the default."""

    num_beams: int | None
    length_penalty: float | None


def explicit_settings(arguments: type) -> Callable[[Function], Function]:
    """Decorate a function whose last parameter is `**settings`, so that `help()` lists the keys of a TypedDict."""
    defaults: dict[str, Any] = {}
    for item in (*fields(GenerationSettings), *fields(Sampling)):
        defaults[item.name] = None if item.default is MISSING else item.default
    defaults["stop"] = None
    return with_parameters(
        Parameter(name, Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind)
        for name, kind in arguments.__annotations__.items()
    )
