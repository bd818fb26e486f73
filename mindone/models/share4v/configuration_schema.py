"""The types and bounds of what config files may say: one rule for each field, checked before anything uses the value.

A config.json is written by whoever made the checkpoint. The bounds are far above every published model and far below
what would take the machine's memory or run for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

MAX_TEXT = 4096
MAX_SHOWN = 80


class Rule(Protocol):
    """What a field may be."""

    def error(self, value: Any) -> str | None:
        """Return what is wrong with a value ("must be ..."), or None."""


def shown(value: Any) -> str:
    """Return a value for a message: short, whatever a file says.

    Example:
        >>> from mindone.models.share4v.configuration_schema import shown
        >>> shown("x" * 500)[:5], shown([1, [2]]), shown(10**400)
        ("'xxxx", 'a list', 'a number of 1329 bits')
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**64:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]!r}..."
    return f"a {type(value).__name__}"


@dataclass(frozen=True)
class Integer:
    """An integer from `low` to `high`; True and False are none."""

    low: int
    high: int

    def error(self, value: Any) -> str | None:
        if type(value) is not int or value < self.low:
            wanted = "a positive integer" if self.low == 1 else f"an integer of at least {self.low}"
            return f"must be {wanted}, got {shown(value)}"
        return f"must be at most {self.high}, got {shown(value)}" if value > self.high else None


@dataclass(frozen=True)
class Real:
    """A finite number from `low` to `high`; without `low` itself if `is_open`."""

    low: float
    high: float
    is_open: bool = False

    def error(self, value: Any) -> str | None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        try:
            fits = is_number and math.isfinite(value) and self.low <= value <= self.high
        except OverflowError:  # an integer beyond every float
            fits = False
        if fits and not (self.is_open and value == self.low):
            return None
        wanted = f"above {self.low}" if self.is_open else f"of at least {self.low}"
        return f"must be a number {wanted} and at most {self.high}, got {shown(value)}"


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def error(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else f"must be true or false, got {shown(value)}"


@dataclass(frozen=True)
class Text:
    """A text of at most MAX_TEXT characters, without a null character."""

    def error(self, value: Any) -> str | None:
        if isinstance(value, str) and len(value) <= MAX_TEXT and "\0" not in value:
            return None
        return f"must be a text of at most {MAX_TEXT} characters, got {shown(value)}"


@dataclass(frozen=True)
class Optional:
    """None, or what `rule` allows."""

    rule: Rule

    def error(self, value: Any) -> str | None:
        return None if value is None else self.rule.error(value)


@dataclass(frozen=True)
class OneOrMany:
    """What `rule` allows, or a list or tuple of at most `most` such values."""

    rule: Rule
    most: int = 64

    def error(self, value: Any) -> str | None:
        if not isinstance(value, (list, tuple)):
            return self.rule.error(value)
        if len(value) > self.most:
            return f"must have at most {self.most} values, got {len(value)}"
        return next((error for error in map(self.rule.error, value) if error is not None), None)


@dataclass(frozen=True)
class Object:
    """A JSON object."""

    def error(self, value: Any) -> str | None:
        return None if isinstance(value, Mapping) else f"must be a JSON object, got {shown(value)}"


TOKEN_ID = Integer(-(2**31), 2**31 - 1)  # some configs write -1 for none
VISION_RULES: dict[str, Rule] = {
    "hidden_size": Integer(1, 2**16),
    "intermediate_size": Integer(1, 2**20),
    "num_hidden_layers": Integer(1, 512),
    "num_attention_heads": Integer(1, 4096),
    "image_size": Integer(1, 8192),
    "patch_size": Integer(1, 8192),
    "num_channels": Integer(1, 64),
    "hidden_act": Text(),
    "layer_norm_eps": Real(0, 1),
}
PROJECTOR_RULES: dict[str, Rule] = {"projector_type": Text(), "bias": Flag(), "hidden_act": Text()}
TEXT_RULES: dict[str, Rule] = {
    "vocab_size": Integer(1, 2**24),
    "hidden_size": Integer(1, 2**17),
    "intermediate_size": Integer(1, 2**20),
    "num_hidden_layers": Integer(1, 1024),
    "num_attention_heads": Integer(1, 4096),
    "num_key_value_heads": Optional(Integer(1, 4096)),
    "head_dim": Optional(Integer(1, 2**14)),
    "hidden_act": Text(),
    "rms_norm_eps": Real(0, 1),
    "rope_theta": Real(0, 1e12, is_open=True),
    "max_position_embeddings": Integer(1, 2**24),
    "sliding_window": Optional(Integer(1, 2**24)),
    "tie_word_embeddings": Flag(),
    "attention_bias": Flag(),
    "mlp_bias": Flag(),
    "bos_token_id": Optional(TOKEN_ID),
    "eos_token_id": Optional(OneOrMany(TOKEN_ID)),
    "pad_token_id": Optional(TOKEN_ID),
}
MODEL_RULES: dict[str, Rule] = {
    "select_feature": Text(),
    "vision_tower": Optional(Text()),
    "image_aspect_ratio": Text(),
    "image_token_id": TOKEN_ID,
    "use_im_start_end": Flag(),
    "use_im_patch_token": Flag(),
    "torch_dtype": Optional(Text()),
    "quantization": Optional(Text()),
    "quantization_layout": Optional(Text()),
    "extra": Object(),
}
ROPE_RULES: dict[str, Rule] = {"rope_type": Text(), "factor": Real(1, 1e6)}
MAX_PROJECTOR_LAYERS = 16
MAX_PATCHES = 2**16


def check_fields(config: Any, rules: Mapping[str, Rule]) -> None:
    """Check the fields of a config object.

    Raises:
        ValueError: a field has the wrong type or is out of bounds; the message names it.
    """
    for name, rule in rules.items():
        error = rule.error(getattr(config, name))
        if error is not None:
            raise ValueError(f"{type(config).__name__}.{name} {error}")


def check_object(value: Any, where: str) -> Mapping[str, Any]:
    """Return `value`, which must be a JSON object.

    Raises:
        ValueError: it is something else.
    """
    error = Object().error(value)
    if error is not None:
        raise ValueError(f"{where} {error}")
    found: Mapping[str, Any] = value
    return found
