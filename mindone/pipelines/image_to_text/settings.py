"""Generation settings of a pipeline's caller, validated before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindone.models.share4v.generation.arguments import ALIASES, SETTING_NAMES
from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.hugging_face import CALL, find, split_arguments
from mindone.models.share4v.processing.image_limits import max_pixels
from mindone.models.share4v.suggestions import unknown


@dataclass(frozen=True)
class CallDefaults:
    """What a pipeline's calls use if they do not say otherwise: arguments of `pipeline()` with the names of a call's.

    Attributes:
        batch_size: number of inputs that go through the model together.
        max_new_tokens, generate_kwargs: settings of `generate`.
        timeout: of a download, in seconds; None has the limits of `image_loading`.
        return_full_text: of "image-text-to-text".
        max_image_pixels: maximum number of pixels of an image file, as in `load_image`.
    """

    batch_size: int | None = None
    max_new_tokens: int | None = None
    generate_kwargs: Mapping[str, Any] | None = None
    timeout: float | None = None
    return_full_text: bool | None = None
    max_image_pixels: int | None = None

    def __post_init__(self) -> None:
        check_settings(self.max_new_tokens, self.generate_kwargs)
        max_pixels(self.max_image_pixels)  # raises
        if self.batch_size is not None and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise ValueError(f"batch_size must be an integer of at least 1, got {self.batch_size!r}")

    def settings(
        self, max_new_tokens: int | None, generate_kwargs: Mapping[str, Any] | None, more: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the settings of one call, whose own arguments come before the defaults.

        Args:
            max_new_tokens, generate_kwargs: as in a call.
            more: further settings by their names, as in `captioner(image, do_sample=True)`.

        Raises:
            TypeError: a name is unknown.
            ValueError: as `check_settings`.
        """
        given = split_arguments(CALL, more, SETTING_NAMES, ALIASES, ("prompt", "batch_size", "generate_kwargs"))
        twice = sorted(given.keys() & (generate_kwargs or {}).keys())
        if twice:
            raise ValueError(f"{twice[0]} is given twice, as an argument and in generate_kwargs: remove one of them")
        own = check_settings(max_new_tokens, {**(generate_kwargs or {}), **given})
        return check_settings(None, {**check_settings(self.max_new_tokens, self.generate_kwargs), **own})


def check_settings(max_new_tokens: int | None, generate_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge max_new_tokens and generate_kwargs into arguments of `generate`, and validate them.

    Raises:
        ValueError: a name is not an argument of `generate` (the message has the closest match) or is not supported,
            max_new_tokens is given twice, or a value is out of range.

    Example:
        >>> from mindone.pipelines.image_to_text.settings import check_settings
        >>> check_settings(16, {"temperature": 0.2})
        {'temperature': 0.2, 'max_new_tokens': 16}
    """
    given = dict(generate_kwargs or {})
    known = ("past_key_values", "max_new_tokens", *(name for name in SETTING_NAMES if name != "max_new_tokens"))
    for name in given:
        if name not in known and name not in ALIASES and find(name, CALL) is None:
            raise ValueError(unknown("setting of generate_kwargs", name, known))
    settings = split_arguments(CALL, given, known, ALIASES)
    if max_new_tokens is not None:
        if "max_new_tokens" in settings:
            raise ValueError("max_new_tokens is given twice, as an argument and in generate_kwargs: remove one of them")
        settings["max_new_tokens"] = max_new_tokens
    GenerationSettings.from_arguments({key: settings[key] for key in settings if key != "past_key_values"})
    return settings
