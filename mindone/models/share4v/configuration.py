"""Share4VConfig: the validated content of a checkpoint's config.json, in one format."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .configuration_formats import NO_PROJECTOR, READERS, format_of, named_tower, tower_paths
from .configuration_schema import (
    MAX_PATCHES,
    MAX_PROJECTOR_LAYERS,
    MODEL_RULES,
    PROJECTOR_RULES,
    ROPE_RULES,
    TEXT_RULES,
    VISION_RULES,
    check_fields,
    check_object,
    shown,
)
from .home_directory import expand_home
from .hub import is_checkpoint_name, resolve
from .quantization import LAYOUTS, OLDEST_LAYOUT, QUANTIZED

IGNORE_INDEX = -100
IMAGE_TOKEN_INDEX = -200
CONFIG_NAME = "config.json"
PREPROCESSOR_NAME = "preprocessor_config.json"
NO_VISION = (
    "this model is a language model without a vision tower, which cannot see images: ask about texts only, or load it "
    "with its vision tower (vision_tower, --vision-tower; for a GGUF file, the mmproj file of the same model)"
)
MAX_JSON_BYTES = 64 << 20
MAX_JSON_DEPTH = 32


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _known(cls: type, data: Mapping[str, Any], where: str) -> dict[str, Any]:
    names = {item.name for item in fields(cls)}
    unknown = sorted(set(check_object(data, where)) - names)
    _require(not unknown, f"{where} has fields that {cls.__name__} does not know: {', '.join(unknown)}")
    return dict(data)


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision transformer (Radford et al. 2021); defaults are transformers' CLIPVisionConfig's.

    Raises:
        ValueError: a size is not positive, or the heads do not divide hidden_size.

    Example:
        >>> from mindone.models.share4v import VisionConfig
        >>> VisionConfig(image_size=336, patch_size=14).num_patches
        576
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_fields(self, VISION_RULES)
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"vision hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
            f"{self.num_attention_heads}",
        )
        _require(
            self.patch_size <= self.image_size,
            f"vision patch_size {self.patch_size} is larger than image_size {self.image_size}",
        )
        _require(self.num_patches <= MAX_PATCHES, f"an image has {self.num_patches} patches, at most {MAX_PATCHES} fit")
        _require(
            self.hidden_act in ("quick_gelu", "gelu"),
            f"vision hidden_act {self.hidden_act!r} is not supported: expected 'quick_gelu' or 'gelu'",
        )

    @property
    def num_patches(self) -> int:
        """Patches per image; a remainder at the right and lower edge is cut off, as in CLIP's convolution."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class ProjectorConfig:
    """The projector from image features to token embeddings: `linear`, `mlp{N}x_gelu` or `identity`.

    "none" is that of a language model without a vision tower, which answers texts only.

    Example:
        >>> from mindone.models.share4v import ProjectorConfig
        >>> ProjectorConfig("mlp2x_gelu").projector_type
        'mlp2x_gelu'
    """

    projector_type: str = "linear"
    bias: bool = True
    hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        check_fields(self, PROJECTOR_RULES)
        _require(
            self.hidden_act == "gelu",
            f"projector_hidden_act {self.hidden_act!r} is not supported: expected 'gelu', the exact one",
        )
        depth = re.fullmatch(r"mlp(\d+)x_gelu", self.projector_type)
        _require(
            depth is None or (len(depth[1]) < 4 and int(depth[1]) <= MAX_PROJECTOR_LAYERS),
            f"projector_type {shown(self.projector_type)} has too many layers: expected at most {MAX_PROJECTOR_LAYERS}",
        )


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are scaled for longer contexts: `linear` or `dynamic` (NTK), by `factor`."""

    rope_type: str
    factor: float

    def __post_init__(self) -> None:
        check_fields(self, {"rope_type": ROPE_RULES["rope_type"]})
        _require(
            self.rope_type in ("linear", "dynamic"),
            f"rope_scaling type {self.rope_type!r} is not supported: expected 'linear' or 'dynamic'",
        )
        error = ROPE_RULES["factor"].error(self.factor)
        _require(error is None, f"rope_scaling factor {error}")

    @classmethod
    def read(cls, data: Mapping[str, Any] | None) -> RopeScaling | None:
        """Read config.json's mapping (`type` or `rope_type`); None and type "default" mean no scaling."""
        if not data:
            return None
        check_object(data, "rope_scaling")
        kind = data.get("rope_type", data.get("type"))
        if kind == "default":
            return None
        unknown = sorted(set(data) - {"rope_type", "type", "factor", "original_max_position_embeddings"})
        _require(not unknown, f"rope_scaling has fields that are not supported: {', '.join(unknown)}")
        _require("factor" in data, f"rope_scaling of type {shown(kind)} names no factor")
        return cls(rope_type=kind, factor=data["factor"])


@dataclass(frozen=True)
class TextConfig:
    """A LLaMA (Touvron et al. 2023); the defaults are those of transformers' LlamaConfig.

    Raises:
        ValueError: sizes contradict each other; the message names the fields.

    Example:
        >>> from mindone.models.share4v import TextConfig
        >>> TextConfig(hidden_size=5120, num_attention_heads=40).head_dim
        128
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int = 1
    eos_token_id: int | tuple[int, ...] = 2
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, TEXT_RULES)
        heads = self.num_attention_heads
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", heads)
        if self.head_dim is None:
            _require(
                self.hidden_size % heads == 0,
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}, "
                "and no head_dim is given",
            )
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        if not isinstance(self.rope_scaling, RopeScaling):
            object.__setattr__(self, "rope_scaling", RopeScaling.read(self.rope_scaling))
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        check_fields(self, {"head_dim": TEXT_RULES["head_dim"]})
        _require(
            heads % self.kv_heads == 0,
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {self.kv_heads}",
        )
        _require(self.head_size % 2 == 0, f"head_dim {self.head_dim} is odd; rotary embedding needs an even one")
        _require(self.hidden_act == "silu", f"hidden_act {self.hidden_act!r} is not supported: expected 'silu'")

    @property
    def kv_heads(self) -> int:
        """num_key_value_heads, or its default."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """head_dim, or its default."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def context_length(self) -> int:
        """Maximum number of tokens in prompt and answer together.

        Attention within a window of the last tokens (Mistral) equals full attention, which is what is computed here, as
        long as all tokens are within it: a window limits the context.
        """
        stretched = self.rope_scaling.factor if self.rope_scaling is not None else 1
        length = int(self.max_position_embeddings * stretched)
        return length if self.sliding_window is None else min(length, self.sliding_window)

    def check_window(self, longest: int) -> None:
        """Check that attention to all tokens is what the model was trained with; for sequences that are only read.

        Raises:
            ValueError: a sequence is longer than the window of attention.
        """
        if self.sliding_window is not None and longest > self.sliding_window:
            raise ValueError(
                f"a sequence has {longest} tokens with its images, but the model attends to the last "
                f"{self.sliding_window} only (sliding_window), which is not computed here: shorten it"
            )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer; some configs write -1 for none."""
        ends = self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)
        return tuple(end for end in ends if end is not None and 0 <= end < self.vocab_size)


@dataclass(frozen=True)
class Share4VConfig:
    """The configuration of a ShareGPT4V checkpoint.

    Attributes:
        select_layer: which hidden state of the vision tower is used; 0 is the embeddings, -1 the last layer's output.
        select_feature: "patch" drops the class token, "cls_patch" keeps it.
        vision_tower: path, or owner/name on a hub, of the vision tower's own checkpoint; None if there is none.
        image_aspect_ratio: "pad" pads images to a square before resizing; "square" crops them.
        image_token_id: the id that stands for one image in input_ids.
        quantization: "int8" or "int4" if the weights are packed blocks of integers, else None.
        quantization_layout: how these integers are laid out (quantization.LAYOUTS); None is the oldest layout, which
            had no name.
        extra: fields of config.json that are not used here; save_pretrained writes them again.

    Raises:
        ValueError: fields contradict each other; the message names them.

    Example:
        >>> from mindone.models.share4v import Share4VConfig
        >>> config = Share4VConfig.from_dict({"model_type": "share4v", "hidden_size": 4096, "mm_hidden_size": 1024})
        >>> config.text_config.rope_theta, config.num_image_tokens
        (10000.0, 576)
    """

    vision_config: VisionConfig = field(default_factory=VisionConfig)
    projector_config: ProjectorConfig = field(default_factory=ProjectorConfig)
    text_config: TextConfig = field(default_factory=TextConfig)
    select_layer: int = -2
    select_feature: str = "patch"
    vision_tower: str | None = None
    image_aspect_ratio: str = "square"
    image_token_id: int = IMAGE_TOKEN_INDEX
    use_im_start_end: bool = False
    use_im_patch_token: bool = False
    torch_dtype: str | None = None
    quantization: str | None = None
    quantization_layout: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    model_type = "share4v"

    @property
    def stored_layout(self) -> str | None:
        """How the checkpoint's integers are laid out, a key of quantization.LAYOUTS[quantization], or None."""
        return None if self.quantization is None else self.quantization_layout or OLDEST_LAYOUT

    @property
    def computes_in(self) -> str:
        """Type of activations and embeddings beside integer weights on an Ascend: the checkpoint's, else float16."""
        return self.torch_dtype if self.torch_dtype in ("float16", "bfloat16") else "float16"

    def __post_init__(self) -> None:
        check_fields(self, MODEL_RULES)
        vision, text = self.vision_config, self.text_config
        _require(
            self.select_feature in ("patch", "cls_patch"),
            f"select_feature {self.select_feature!r} is not supported: expected 'patch' or 'cls_patch'",
        )
        depth = vision.num_hidden_layers
        _require(
            type(self.select_layer) is int and -depth - 1 <= self.select_layer <= depth,
            f"select_layer {shown(self.select_layer)} is not one of the vision tower's {depth + 1} hidden states "
            f"({-depth - 1} to {depth})",
        )
        _require(
            self.image_aspect_ratio in ("pad", "square"),
            f"image_aspect_ratio {self.image_aspect_ratio!r} is not supported: expected 'pad' or 'square'; models that "
            "cut images into tiles (anyres: LLaVA-1.6 and later) are not supported",
        )
        _require(
            self.quantization is None or self.quantization in QUANTIZED,
            f"quantization {self.quantization!r} is not supported: expected {', '.join(map(repr, QUANTIZED))} or none",
        )
        layouts = LAYOUTS.get(self.quantization or "", {})
        _require(
            self.quantization_layout is None or self.quantization_layout in layouts,
            f"quantization_layout {shown(self.quantization_layout)} is not supported for quantization "
            f"{self.quantization!r}: expected {', '.join(map(repr, layouts)) or 'none'}; a newer version of "
            "mindone-share4v may have written this checkpoint",
        )
        stated = self.extra.get("mm_hidden_size")
        _require(
            stated is None or stated == vision.hidden_size,
            f"mm_hidden_size {shown(stated)} contradicts the vision tower's hidden_size {vision.hidden_size}",
        )
        if self.projector_config.projector_type == "identity":
            _require(
                vision.hidden_size == text.hidden_size,
                f"projector 'identity' needs equal sizes: vision hidden_size {vision.hidden_size}, "
                f"language hidden_size {text.hidden_size}",
            )

    @property
    def has_vision(self) -> bool:
        """Whether there is a vision tower; a language model alone has none, and its vision_config means nothing."""
        return self.projector_config.projector_type != NO_PROJECTOR

    @property
    def num_image_tokens(self) -> int:
        """Number of embeddings per image in the prompt; 0 without a vision tower."""
        if not self.has_vision:
            return 0
        return self.vision_config.num_patches + (self.select_feature == "cls_patch")

    @property
    def hidden_state_index(self) -> int:
        """select_layer counted from 0 (the embeddings), which is the number of layers of the vision tower that run."""
        depth = self.vision_config.num_hidden_layers
        return self.select_layer if self.select_layer >= 0 else depth + 1 + self.select_layer

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], vision: Mapping[str, Any] | None = None) -> Share4VConfig:
        """Read a config.json in the original format, LLaVA's or this project's.

        Args:
            data: the parsed config.json.
            vision: the parsed config.json of a separate vision tower; it overrides the vision fields of `data`.

        Raises:
            ValueError: the format is unknown, or fields contradict each other.
        """
        parts = READERS[format_of(data)](data, vision)
        sections = {"vision_config": VisionConfig, "projector_config": ProjectorConfig, "text_config": TextConfig}
        for name, section in sections.items():
            parts[name] = section(**_known(section, parts.get(name, {}), f"config.json's {name}"))
        names = {item.name for item in fields(cls)}
        kept = {key: parts.pop(key) for key in sorted(set(parts) - names)}
        stated = check_object(parts.get("extra", {}), "config.json's extra")
        return cls(**{**parts, "extra": {**stated, **kept}})

    @classmethod
    def from_pretrained(cls, directory: str | Path, vision_tower: str | Path | None = None) -> Share4VConfig:
        """Read `directory`/config.json, and that of the vision tower if it has a separate directory.

        Args:
            directory: the checkpoint's directory, or the name of a checkpoint on a hub or in this package.
            vision_tower: the tower's directory; by default the one that mm_vision_tower names, if it is on this
                machine, else CLIP ViT-L/14 at 336 px is assumed. `AutoConfig` also looks on hubs.

        Raises:
            FileNotFoundError, HubError: config.json does not exist, or the checkpoint was not found.
            ValueError: it is not JSON, or as in `from_dict`.
        """
        if isinstance(directory, str) and is_checkpoint_name(directory):
            directory = resolve(directory, weights=False)
        data = read_json(Path(directory) / CONFIG_NAME)
        tower = _local_tower(data, Path(directory)) if vision_tower is None else expand_home(vision_tower)
        return cls.from_dict(data, None if tower is None else read_json(tower / CONFIG_NAME))

    def to_dict(self) -> dict[str, Any]:
        """Return this project's own format: nested, with every field."""
        stated = {"model_type": self.model_type, "architectures": ["Share4V"], **asdict(self)}
        if self.text_config.sliding_window is None:
            del stated["text_config"]["sliding_window"]  # which earlier versions do not know
        return stated

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `directory`/config.json."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        (Path(directory) / CONFIG_NAME).write_text(text, encoding="utf-8")


def _local_tower(data: Mapping[str, Any], directory: Path) -> Path | None:
    """Return the directory of the tower that the original format names as a path, if it exists."""
    named = named_tower(data)
    if not isinstance(named, str) or format_of(data) != "original":
        return None
    return next((path for path in tower_paths(named, directory) if (path / CONFIG_NAME).is_file()), None)


def has_file(path: Path) -> bool:
    """Return whether a file that a checkpoint may lack is there.

    Raises:
        ValueError: there is something else in its place, which would otherwise count as a missing file.
    """
    if path.is_file():
        return True
    if os.path.lexists(path):
        what = "a link to a file that does not exist" if path.is_symlink() else "not a regular file"
        raise ValueError(f"{path} is {what}: replace it by the checkpoint's own file, or delete it")
    return False


def read_optional_json(path: Path) -> dict[str, Any]:
    """Read one JSON object, {} if there is no such file; errors as in `has_file` and `read_json`."""
    return read_json(path) if has_file(path) else {}


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a JSON object; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: {_missing_config_hint(path)}")
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {size} bytes, expected at most {MAX_JSON_BYTES}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply, expected at most {MAX_JSON_DEPTH} levels") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} contains a {type(data).__name__}, expected a JSON object")
    _check_depth(data, path)
    return data


def _check_depth(data: Any, path: Path) -> None:
    """Refuse what is nested so deeply that copying or comparing it would overflow the stack."""
    level = [data]
    for _ in range(MAX_JSON_DEPTH):
        inner = [value for container in level for value in _values(container)]
        level = [value for value in inner if isinstance(value, (dict, list))]
        if not level:
            return
    raise ValueError(f"{path} is nested too deeply, expected at most {MAX_JSON_DEPTH} levels")


def _values(container: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _missing_config_hint(path: Path) -> str:
    """Return what to do about a directory without config.json."""
    if path.name == CONFIG_NAME and any(path.parent.glob("*.ckpt")):
        return (
            "the earlier MindSpore port has it in its source code: copy config.json and vit/ from its share4v/configs "
            "into this directory, and the vision tower's .ckpt too"
        )
    if path.name == CONFIG_NAME and path.parent.is_dir():
        from .hub.directories import describe_directory  # only for errors

        return describe_directory(path.parent)
    return "is this a checkpoint's directory?"
