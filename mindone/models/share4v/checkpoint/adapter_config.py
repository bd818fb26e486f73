"""AdapterConfig: the validated content of adapter_config.json, as PEFT writes it for LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from ..configuration import read_json
from ..configuration_schema import Flag, Integer, Optional, Real, Rule, Text, shown
from ..hub.directories import ADAPTER_NAME
from .adapter_patterns import NamePattern
from .errors import CheckpointError

MAX_NAMES = 8192  # of modules; a 13B has 280 linear layers
MAX_EXPRESSIONS = 16  # among the patterns
RANK = Integer(1, 2**16)
ALPHA = Real(0, 1e6)
# Methods that leave the model's own weights as they were, unlike PiSSA, OLoRA, CorDA and LoftQ.
INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Names:
    """Names of modules: one text, or a list of them; None for none."""

    def error(self, value: Any) -> str | None:
        """Return what is wrong with a value, or None."""
        values = value if isinstance(value, list) else [] if value is None else [value]
        if len(values) > MAX_NAMES:
            return f"must have at most {MAX_NAMES} names, got {len(values)}"
        return next((error for error in map(Text().error, values) if error is not None), None)


@dataclass(frozen=True)
class Layers:
    """Numbers of layers: one number, or a list of them; None for all."""

    def error(self, value: Any) -> str | None:
        """Return what is wrong with a value, or None."""
        values = value if isinstance(value, list) else [] if value is None else [value]
        if len(values) > MAX_NAMES:
            return f"must have at most {MAX_NAMES} numbers, got {len(values)}"
        return next((error for error in map(Integer(0, 2**16).error, values) if error is not None), None)


@dataclass(frozen=True)
class Pattern:
    """Patterns of module names, each with a value; None for none."""

    rule: Rule

    def error(self, value: Any) -> str | None:
        """Return what is wrong with a value, or None."""
        if value is None:
            return None
        if not isinstance(value, Mapping):
            return f"must be a JSON object, got {shown(value)}"
        if len(value) > MAX_NAMES:
            return f"must have at most {MAX_NAMES} patterns, got {len(value)}"
        for text, item in value.items():
            error = self.rule.error(item)
            if error is not None:
                return f"{shown(text)} {error}"
            try:
                NamePattern.parse(text)
            except ValueError as problem:
                return str(problem)
        expressions = sum(NamePattern.parse(text).step is not None for text in value)
        if expressions > MAX_EXPRESSIONS:
            return f"must have at most {MAX_EXPRESSIONS} regular expressions, got {expressions}"
        return None


@dataclass(frozen=True)
class OneOf:
    """One of a few values."""

    values: tuple[Any, ...]
    advice: str = ""

    def error(self, value: Any) -> str | None:
        """Return what is wrong with a value, or None."""
        if any(type(value) is type(one) and value == one for one in self.values):
            return None
        known = [repr(one) for one in self.values if one is not None]
        wanted = known[0] if len(known) == 1 else f"one of {', '.join(known)}"
        return f"must be {wanted}, got {shown(value)}{self.advice}"


@dataclass(frozen=True)
class Unused:
    """A field that asks for something that cannot be merged; what is null, false or empty asks for nothing."""

    what: str

    def error(self, value: Any) -> str | None:
        """Return what is wrong with a value, or None."""
        if not value:
            return None
        return f"is set, but {self.what} is not supported: merge the adapter with PEFT (merge_and_unload)"


class Unknown:
    """A field that PEFT did not have when this was written; it may change how an adapter is merged."""

    def error(self, value: Any) -> str | None:
        """Return what is wrong with a value, or None for one that asks for nothing."""
        if not value:
            return None
        return (
            f"is {shown(value)}, but this field is not known here: delete it if it does not change how the adapter is "
            "merged, else merge the adapter with PEFT (merge_and_unload)"
        )


class Harmless:
    """A field that says nothing about how an adapter is merged."""

    def error(self, value: Any) -> str | None:
        """Return None."""
        return None


_INIT_ADVICE = (
    ": this method changes the model's own weights before training, so the adapter fits only the changed model; write "
    "it again with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
)
# Every field that PEFT's LoraConfig has or had.
RULES: dict[str, Rule] = {
    "peft_type": OneOf(("LORA",), "; only LoRA adapters can be merged here: use PEFT (merge_and_unload) for others"),
    "r": RANK,
    "lora_alpha": ALPHA,
    "use_rslora": Optional(Flag()),
    "use_dora": Optional(Flag()),
    "lora_bias": Optional(Flag()),
    "fan_in_fan_out": Optional(Flag()),  # PEFT ignores it for linear layers, the only ones here
    "bias": OneOf(("none", "all", "lora_only", None)),
    "rank_pattern": Pattern(RANK),
    "alpha_pattern": Pattern(ALPHA),
    "modules_to_save": Names(),
    "target_modules": Names(),
    "exclude_modules": Names(),
    "layers_to_transform": Layers(),
    "layers_pattern": Names(),
    "base_model_name_or_path": Optional(Text()),
    "init_lora_weights": OneOf(INITIALIZATIONS, _INIT_ADVICE),
    "layer_replication": Unused("repeating layers"),
    "target_parameters": Unused("LoRA of parameters that are not layers (experts of a MoE)"),
    "trainable_token_indices": Unused("training single tokens"),
    "alora_invocation_tokens": Unused("activated LoRA, which depends on the prompt,"),
    "use_qalora": Unused("QALoRA"),
    "use_bdlora": Unused("BD-LoRA"),
    "arrow_config": Unused("Arrow's routing between adapters"),
    "kasa_config": Unused("KaSA"),
    "monteclora_config": Unused("MonteCLoRA"),
    "lora_ga_config": Unused("LoRA-GA, which changes the model's own weights,"),
    **dict.fromkeys(
        (
            *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout"),
            *("megatron_config", "megatron_core", "runtime_config", "ensure_weight_tying", "qalora_group_size"),
            # How A and B were initialized or trained; `init_lora_weights` names the method.
            *("loftq_config", "eva_config", "corda_config", "velora_config"),
        ),
        Harmless(),
    ),
}


@dataclass(frozen=True)
class AdapterConfig:
    """How a LoRA adapter is merged.

    Attributes:
        rank, alpha: of modules that no pattern names.
        is_rslora: whether the scale is alpha / sqrt(rank), not alpha / rank.
        is_dora: whether the merged weights are normalized to learned magnitudes (DoRA, Liu et al. 2024).
        rank_pattern, alpha_pattern: patterns of module names with another rank or alpha; the first that matches counts.
        modules_to_save: modules that were trained completely.
        targets: names, or last parts of names, of the modules that were adapted; empty if they are not a plain list.
        layers: numbers of the layers that were adapted; None for all.
        trains_biases: whether the biases of adapted modules were trained too.
        base: the model that the adapter was trained on, for messages.
    """

    rank: int = 8
    alpha: float = 8
    is_rslora: bool = False
    is_dora: bool = False
    rank_pattern: tuple[tuple[NamePattern, int], ...] = ()
    alpha_pattern: tuple[tuple[NamePattern, float], ...] = ()
    modules_to_save: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    trains_biases: bool = False
    base: str | None = None

    @classmethod
    def read(cls, directory: Path) -> AdapterConfig:
        """Read `directory`/adapter_config.json.

        Raises:
            FileNotFoundError: it does not exist.
            CheckpointError: a field has a wrong type, is out of bounds, is unknown, or asks for what cannot be merged;
                the message names it.
            ValueError: it is not a JSON object.
        """
        path = directory / ADAPTER_NAME
        data = read_json(path)
        for name in ("peft_type", "r", "lora_alpha"):
            if name not in data:
                raise CheckpointError(f"{path} has no {name}: expected the config of a LoRA adapter, as PEFT writes it")
        for name, value in data.items():
            error = RULES.get(name, Unknown()).error(value)
            if error is not None:
                raise CheckpointError(f"{path}: {shown(name)} {error}")
        targets = data.get("target_modules")
        is_complete = isinstance(targets, list) and not data.get("exclude_modules")
        return cls(
            rank=data["r"],
            alpha=data["lora_alpha"],
            is_rslora=bool(data.get("use_rslora")),
            is_dora=bool(data.get("use_dora")),
            rank_pattern=_patterns(data.get("rank_pattern")),
            alpha_pattern=_patterns(data.get("alpha_pattern")),
            modules_to_save=tuple(_listed(data.get("modules_to_save"))),
            targets=tuple(targets) if is_complete and targets is not None else (),
            layers=None if data.get("layers_to_transform") is None else tuple(_listed(data["layers_to_transform"])),
            trains_biases=data.get("bias") in ("all", "lora_only"),
            base=data.get("base_model_name_or_path") or None,
        )

    def rank_of(self, module: str) -> int:
        """Return the rank of a module by its name in the file, without "base_model.model."."""
        return _first(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """Return what the product of the B and A of a module of this rank is multiplied by."""
        return _first(self.alpha_pattern, module, self.alpha) / (sqrt(rank) if self.is_rslora else rank)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _patterns(data: Mapping[str, Any] | None) -> tuple[tuple[NamePattern, Any], ...]:
    return tuple((NamePattern.parse(text), value) for text, value in (data or {}).items())


def _first(patterns: tuple[tuple[NamePattern, Any], ...], module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns if pattern.matches(module)), default)
