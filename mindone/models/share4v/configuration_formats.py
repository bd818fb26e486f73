"""Tables that read the published formats of config.json into one set of field names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .configuration_schema import Integer, Optional, Text, check_object, shown
from .home_directory import expand_home

# Our field -> the keys of published files. If several keys are listed, the first one that is present counts.
TEXT_FIELDS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size",),
    "intermediate_size": ("intermediate_size",),
    "num_hidden_layers": ("num_hidden_layers",),
    "num_attention_heads": ("num_attention_heads",),
    "num_key_value_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "hidden_act": ("hidden_act",),
    "rms_norm_eps": ("rms_norm_eps",),
    "rope_theta": ("rope_theta",),
    "rope_scaling": ("rope_scaling",),
    "max_position_embeddings": ("max_position_embeddings",),
    "tie_word_embeddings": ("tie_word_embeddings",),
    "attention_bias": ("attention_bias",),
    "mlp_bias": ("mlp_bias",),
    "bos_token_id": ("bos_token_id",),
    "eos_token_id": ("eos_token_id",),
    "pad_token_id": ("pad_token_id",),
}
VISION_FIELDS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size",),
    "intermediate_size": ("intermediate_size",),
    "num_hidden_layers": ("num_hidden_layers",),
    "num_attention_heads": ("num_attention_heads",),
    "image_size": ("image_size",),
    "patch_size": ("patch_size",),
    "num_channels": ("num_channels",),
    "hidden_act": ("hidden_act",),
    "layer_norm_eps": ("layer_norm_eps",),
}
ORIGINAL_FIELDS: dict[str, tuple[str, ...]] = {
    "projector_type": ("mm_projector_type",),
    "select_layer": ("mm_vision_select_layer",),
    "select_feature": ("mm_vision_select_feature",),
    "vision_tower": ("mm_vision_tower", "vision_tower"),
    "image_aspect_ratio": ("image_aspect_ratio",),
    "use_im_start_end": ("mm_use_im_start_end",),
    "use_im_patch_token": ("mm_use_im_patch_token",),
    "torch_dtype": ("torch_dtype", "dtype"),
}
LLAVA_FIELDS: dict[str, tuple[str, ...]] = {
    "select_layer": ("vision_feature_layer",),
    "select_feature": ("vision_feature_select_strategy",),
    "image_token_id": ("image_token_index", "image_token_id"),
    "image_aspect_ratio": ("image_aspect_ratio",),
    "projector_bias": ("multimodal_projector_bias",),
    "projector_act": ("projector_hidden_act",),
    "torch_dtype": ("torch_dtype", "dtype"),
}
NO_PROJECTOR = "none"  # projector_type of a language model without a vision tower
LLAVA_SELECT_FEATURE = {"default": "patch", "full": "cls_patch"}
# transformers writes only what differs from its defaults; LLaVA's vision default is CLIP ViT-L/14 at 336 px.
CLIP_LARGE_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


_EXPERTS = "a mixture of experts is another architecture"
_TILES = "it cuts images into tiles (LLaVA-1.6, LLaVA-NeXT)"
# Fields of the original format that change the model; others of their values mean another architecture than this one.
PLAIN_VALUES: dict[str, tuple[tuple[Any, ...], str]] = {
    "mm_patch_merge_type": (("flat",), "LLaVA-1.6 and later cut images into tiles"),
    "mm_resampler_type": (("identity",), "there is no resampler between vision tower and projector here"),
    "s2": ((False,), "the vision tower sees one scale here"),
    "use_s2": ((False,), "the vision tower sees one scale here"),
    "num_experts": ((), _EXPERTS),
    "num_local_experts": ((), _EXPERTS),
    "moe": ((), _EXPERTS),
}
# What a language model's config means where it says nothing: transformers does not write its defaults. A window of
# attention is not computed here; up to its length it makes no difference.
MISTRAL = {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32 * 4096,
    "sliding_window": 4096,
}
LANGUAGE_MODELS: dict[str, Mapping[str, Any]] = {"llama": {}, "mistral": MISTRAL}
# Part of a model type or of an architecture's name -> why such a model does not load.
OTHER_ARCHITECTURES: dict[str, str] = {
    "llava_next": _TILES,
    "llavanext": _TILES,
    "onevision": "it cuts images into tiles, and its language model is a Qwen2 (LLaVA-OneVision)",
    "vipllava": "its projector reads several layers of the vision tower (ViP-LLaVA)",
    "video": "it is a model for videos with another vision tower",
    "mixtral": _EXPERTS,
    "moe": _EXPERTS,
    "qwen": "its language model is a Qwen",
    "gemma": "its language model is a Gemma",
    "phi": "its language model is a Phi",
    "stablelm": "its language model is a StableLM",
    "openelm": "its language model is an OpenELM",
    "llava_mpt": "its language model is an MPT",
    "llavampt": "its language model is an MPT",
    "tinyllava": "TinyLLaVA's vision towers are SigLIP, and its format is its own; bczhou/tiny-llava-v1-hf loads",
    "tiny_llava": "TinyLLaVA's vision towers are SigLIP; bczhou/tiny-llava-v1-hf loads",
}


def pick(data: Mapping[str, Any], table: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the fields of `table` that `data` contains, by our names; null values are ignored."""
    found = {}
    for field, keys in table.items():
        for key in keys:
            if data.get(key) is not None:
                found[field] = data[key]
                break
    return found


def leftover(data: Mapping[str, Any], *tables: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the entries of `data` whose keys are in no table; they are kept and saved again."""
    known = {key for table in tables for keys in table.values() for key in keys}
    return {key: value for key, value in data.items() if key not in known}


def leftover_of_parts(text: Mapping[str, Any], vision: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the entries of LLaVA's nested configs that are not read, by the name of the part."""
    inner = {} if vision is None else check_object(vision.get("vision_config", vision), "config.json's vision_config")
    kept = {
        "text_config": leftover(text, TEXT_FIELDS, {"": ("rope_parameters",)}),
        "vision_config": leftover(inner, VISION_FIELDS),
    }
    return {name: fields for name, fields in kept.items() if fields}


def rope_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Read transformers 5's `rope_parameters`, which folds rope_theta and rope_scaling into one mapping."""
    parameters = data.get("rope_parameters")
    if not parameters:
        return {}
    check_object(parameters, "config.json's rope_parameters")
    fields = {"rope_theta": parameters["rope_theta"]} if "rope_theta" in parameters else {}
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    return {**fields, "rope_scaling": scaling} if scaling else fields


def read_text(data: Mapping[str, Any], model_type: str = "llama") -> dict[str, Any]:
    """Read the config of a language model, nested or flat."""
    fields = {**pick({**LANGUAGE_MODELS[model_type], **data}, TEXT_FIELDS), **rope_of(data)}
    window = data.get("sliding_window", LANGUAGE_MODELS[model_type].get("sliding_window"))
    if model_type == "mistral" and window is not None:
        error = Integer(1, 2**24).error(window)
        if error is not None:
            raise ValueError(f"config.json's sliding_window {error}")
        fields["sliding_window"] = window
    return fields


def read_vision(data: Mapping[str, Any] | None) -> dict[str, Any]:
    """Read a CLIP vision config; of a complete CLIP config, its `vision_config` is read."""
    if data is None:
        return dict(CLIP_LARGE_336)
    check_object(data, "config.json's vision_config")
    inner = check_object(data.get("vision_config", data), "config.json's vision_config")
    model_type = inner.get("model_type", TOWER_MODEL_TYPES[0])
    if model_type not in TOWER_MODEL_TYPES:
        raise ValueError(
            f"the vision tower is a {shown(model_type)}, expected {TOWER_MODEL_TYPES[0]!r}: only CLIP's is supported"
        )
    return pick(inner, VISION_FIELDS)


def read_original(data: Mapping[str, Any], vision: Mapping[str, Any] | None) -> dict[str, Any]:
    """Read the original ShareGPT4V format: LLaMA's fields next to `mm_*` fields."""
    for name, (plain, why) in PLAIN_VALUES.items():
        value = data.get(name)
        if value is not None and value not in plain:
            raise ValueError(f"config.json's {name} is {shown(value)}, which is not supported: {why}")
    fields = pick(data, ORIGINAL_FIELDS)
    projector = {"projector_type": fields.pop("projector_type")} if "projector_type" in fields else {}
    return {
        **fields,
        "vision_config": read_vision(vision),
        "projector_config": projector,
        "text_config": read_text(data, "mistral" if data.get("model_type") == "llava_mistral" else "llama"),
        "extra": leftover(data, TEXT_FIELDS, ORIGINAL_FIELDS, {"": ("model_type", "architectures", "rope_parameters")}),
    }


def read_llava(data: Mapping[str, Any], vision: Mapping[str, Any] | None) -> dict[str, Any]:
    """Read the format of transformers' LlavaForConditionalGeneration."""
    fields = pick(data, LLAVA_FIELDS)
    if "select_feature" in fields:
        strategy = fields["select_feature"]
        is_known = isinstance(strategy, str) and strategy in LLAVA_SELECT_FEATURE
        fields["select_feature"] = LLAVA_SELECT_FEATURE[strategy] if is_known else strategy
    projector: dict[str, Any] = {"projector_type": "mlp2x_gelu"}
    for ours, field in (("bias", "projector_bias"), ("hidden_act", "projector_act")):
        if field in fields:
            projector[ours] = fields.pop(field)
    language = check_object(data.get("text_config", {}), "config.json's text_config")
    model_type = language.get("model_type", "llama")
    if model_type not in tuple(LANGUAGE_MODELS):  # a file may state anything, also what has no hash
        raise ValueError(
            f"config.json's text_config is a {shown(model_type)}, expected {' or '.join(map(repr, LANGUAGE_MODELS))}"
        )
    text = read_text(language, model_type)
    if data.get("tie_word_embeddings"):
        text["tie_word_embeddings"] = True
    nested = {"": ("model_type", "architectures", "text_config", "vision_config", "tie_word_embeddings")}
    clip = vision if vision is not None else data.get("vision_config")
    return {
        "image_token_id": 32000,
        "select_feature": "patch",
        **fields,
        "vision_config": read_vision(clip),
        "projector_config": projector,
        "text_config": text,
        "extra": {**leftover(data, LLAVA_FIELDS, nested), **leftover_of_parts(language, clip)},
    }


def read_own(data: Mapping[str, Any], vision: Mapping[str, Any] | None) -> dict[str, Any]:
    """Read what Share4VConfig.to_dict wrote; added keys are passed on, to be kept."""
    fields = {key: value for key, value in data.items() if key not in ("model_type", "architectures")}
    if vision is not None:
        fields["vision_config"] = read_vision(vision)
    return fields


def read_language(data: Mapping[str, Any], vision: Mapping[str, Any] | None) -> dict[str, Any]:
    """Read the config of a language model without a vision tower, transformers' LlamaForCausalLM or Mistral's."""
    if vision is not None:
        raise ValueError(
            f"config.json's model_type is {shown(data['model_type'])}, a language model: it has no projector for the "
            "features of a vision tower, so leave vision_tower (--vision-tower) out"
        )
    nested = {"": ("model_type", "architectures", "rope_parameters")}
    return {
        **pick(data, {"torch_dtype": ("torch_dtype", "dtype")}),
        "projector_config": {"projector_type": NO_PROJECTOR},
        "text_config": read_text(data, data["model_type"]),
        "extra": leftover(data, TEXT_FIELDS, {"torch_dtype": ("torch_dtype", "dtype")}, nested),
    }


READERS = {"original": read_original, "llava": read_llava, "own": read_own, "language": read_language}
ORIGINAL_MODEL_TYPES = ("share4v", "llava_llama", "llava", "llava_mistral")
TOWER_MODEL_TYPES = ("clip_vision_model", "clip")


def format_of(data: Mapping[str, Any]) -> str:
    """Return the format of a config.json: "own", "llava", "original", or "language" for a LLaMA without a tower.

    Raises:
        ValueError: the format is unknown.
    """
    model_type = data.get("model_type")
    _refuse_other_architecture(data)
    if model_type == "share4v" and "projector_config" in data:
        return "own"
    if model_type == "llava" and "text_config" in data:
        return "llava"
    if model_type in ORIGINAL_MODEL_TYPES and "hidden_size" in data:
        return "original"
    if model_type in tuple(LANGUAGE_MODELS) and "hidden_size" in data:
        return "language"
    if model_type in TOWER_MODEL_TYPES:
        raise ValueError(
            f"config.json has model_type {shown(model_type)}: this is only a vision tower. Name the model that it "
            "belongs to, and give this directory as its vision_tower (--vision-tower)"
        )
    alone = " This is a language model, which cannot see images by itself." if "vocab_size" in data else ""
    raise ValueError(
        f"config.json has model_type {shown(model_type)}, which is not a known format of ShareGPT4V.{alone} Known "
        f"model types: {', '.join(sorted(ORIGINAL_MODEL_TYPES))} (the original's config, transformers' "
        "LlavaForConditionalGeneration, or what save_pretrained wrote)"
    )


def _refuse_other_architecture(data: Mapping[str, Any]) -> None:
    """Refuse models that are known to be built otherwise, and say how."""
    architectures = data.get("architectures")
    named = [data.get("model_type"), *(architectures if isinstance(architectures, list) else ())]
    for name in named:
        found = next((part for part in OTHER_ARCHITECTURES if isinstance(name, str) and part in name.lower()), None)
        if found is not None:
            raise ValueError(
                f"config.json describes a {shown(name)}, which is not supported: {OTHER_ARCHITECTURES[found]}"
            )


def named_tower(data: Mapping[str, Any]) -> str | None:
    """Return the vision tower that a config.json in the original format names: a path, a name on a hub, or None.

    Raises:
        ValueError: it is not a text.
    """
    named = data.get("mm_vision_tower") or data.get("vision_tower")
    error = Optional(Text()).error(named)
    if error is not None:
        raise ValueError(f"config.json's mm_vision_tower {error}")
    return named


def tower_paths(named: str, directory: Path) -> Iterator[Path]:
    """Yield the paths that a name of a tower may mean: as given, in the checkpoint's directory, or next to it.

    Example:
        >>> from pathlib import Path
        >>> from mindone.models.share4v.configuration_formats import tower_paths
        >>> [path.as_posix() for path in tower_paths("vit", Path("all/main"))]
        ['vit', 'all/main/vit', 'all/vit']
    """
    path = expand_home(named)
    beside = (directory / path, directory.parent / path, directory / path.name, directory.parent / path.name)
    yield from dict.fromkeys((path, *beside))


def read_size(value: Any) -> int | tuple[int, int]:
    """Read a size of preprocessor_config.json: a number, {"shortest_edge": n}, or {"height": h, "width": w} as (h, w).

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"} and isinstance(value["shortest_edge"], int):
        return value["shortest_edge"]
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        height, width = value["height"], value["width"]
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    got = f"with {', '.join(map(shown, list(value)[:4]))}" if isinstance(value, Mapping) else shown(value)
    raise ValueError(f'size {got}: expected a number, {{"shortest_edge": n}} or {{"height": n, "width": n}}')


def read_crop_size(data: Mapping[str, Any]) -> int:
    """Return the edge in pixels of the square images that a preprocessor_config.json describes (default: 224).

    Raises:
        ValueError: crop_size is not a size, or not a square.
    """
    size = read_size(data.get("crop_size") or 224)
    if isinstance(size, int):
        return size
    height, width = size
    if height != width:
        raise ValueError(f"crop_size {height} x {width} is not a square, but the vision tower needs square images")
    return height
