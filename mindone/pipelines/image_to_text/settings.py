"""What a pipeline's caller may say of generation: the names of `generate`, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from inspect import signature
from typing import Any

from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.generation.mixin import GenerationMixin
from mindone.models.share4v.suggestions import unknown

# What a pipeline's processor makes is not for the caller to set.
_INPUTS = ("self", "input_ids", "pixel_values", "attention_mask", "inputs_embeds")


@cache
def setting_names() -> tuple[str, ...]:
    """Return the arguments of `generate` that are settings rather than inputs."""
    return tuple(name for name in signature(GenerationMixin.generate).parameters if name not in _INPUTS)


def check_settings(max_new_tokens: int | None, generate_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Join a call's settings into the arguments of `generate`.

    Raises:
        ValueError: a name is none of `generate`'s (the message has the closest), max_new_tokens is given twice, or a
            value is outside its range.

    Example:
        >>> from mindone.pipelines.image_to_text.settings import check_settings
        >>> check_settings(16, {"temperature": 0.2})
        {'temperature': 0.2, 'max_new_tokens': 16}
    """
    settings = dict(generate_kwargs or {})
    for name in settings:
        if name not in setting_names():
            raise ValueError(unknown("setting of generate_kwargs", name, setting_names()))
    if max_new_tokens is not None:
        if "max_new_tokens" in settings:
            raise ValueError("max_new_tokens is given twice, by itself and in generate_kwargs: leave one out")
        settings["max_new_tokens"] = max_new_tokens
    GenerationSettings.from_arguments({key: settings[key] for key in settings if key != "past_key_values"})
    return settings
