"""Generation settings of a pipeline's caller, validated before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from inspect import signature
from typing import Any

from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.generation.mixin import GenerationMixin
from mindone.models.share4v.suggestions import unknown

# Arguments of `generate` that the pipeline sets itself.
_INPUTS = ("self", "input_ids", "pixel_values", "attention_mask", "inputs_embeds")


@cache
def setting_names() -> tuple[str, ...]:
    """Return the arguments of `generate` that are settings rather than inputs."""
    return tuple(name for name in signature(GenerationMixin.generate).parameters if name not in _INPUTS)


def check_settings(max_new_tokens: int | None, generate_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge max_new_tokens and generate_kwargs into arguments of `generate`, and validate them.

    Raises:
        ValueError: a name is not an argument of `generate` (the message has the closest match), max_new_tokens is given
            twice, or a value is out of range.

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
            raise ValueError("max_new_tokens is given twice, as an argument and in generate_kwargs: remove one of them")
        settings["max_new_tokens"] = max_new_tokens
    settings = {name: value for name, value in settings.items() if value is not None}
    GenerationSettings.from_arguments({key: settings[key] for key in settings if key != "past_key_values"})
    return settings
