"""The metadata of a pair of GGUF files as a Share4VConfig; every value is checked before it is used.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and llama.cpp's tools/mtmd/clip-impl.h for `clip.*`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...configuration import ProjectorConfig, RopeScaling, Share4VConfig, TextConfig, VisionConfig
from ...configuration_formats import NO_PROJECTOR
from ..errors import CheckpointError
from ..formats.gguf import GGUFFile, GGUFTensor

ARCHITECTURE = "general.architecture"
LANGUAGE_ARCHITECTURE, VISION_ARCHITECTURE = "llama", "clip"
# Layers of the published CLIP vision transformers, by width. An mmproj file with all of them has none dropped.
CLIP_DEPTHS = {768: 12, 1024: 24, 1280: 32}
# What other programs' files have that changes the function, and what it is.
_FOREIGN_TENSORS = {"rope_freqs.weight": "LLaMA 3's rotary frequencies", "v.image_newline": "LLaVA-1.6's image tiles"}
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>")
_REQUIRED = object()


@dataclass
class Described:
    """A config, and what was recognised to make it.

    Attributes:
        config: of the pair.
        notes: sentences for the user.
    """

    config: Share4VConfig
    notes: list[str] = field(default_factory=list)


def is_projector(file: GGUFFile) -> bool:
    """Return whether this is an `mmproj` file: vision tower and projector, without a language model."""
    return file.metadata.get(ARCHITECTURE) == VISION_ARCHITECTURE


def describe(language: GGUFFile, vision: GGUFFile | None) -> Described:
    """Return the config of a language model and its `mmproj` file; without the file, of a model for texts only.

    Raises:
        CheckpointError: a value is missing or malformed, something is not supported, or the files do not fit together.
        ValueError: sizes contradict each other.
    """
    text = read_text(language)
    if vision is None:
        config = Share4VConfig(projector_config=ProjectorConfig(NO_PROJECTOR), text_config=text)
        return Described(config, ["there is no mmproj file: a language model without a vision tower, for texts only"])
    tower, notes, select_layer = read_vision(vision)
    projector = _projector(vision, tower, text, language)
    aspect_ratio = _value(vision, "clip.vision.image_aspect_ratio", str, "pad")
    if aspect_ratio not in ("pad", "square"):
        raise CheckpointError(
            f"{vision.path} states clip.vision.image_aspect_ratio {aspect_ratio!r:.80}, which is not supported: "
            "expected 'pad' or 'square' (LLaVA-1.6 and later models, which cut images into tiles, do not load)"
        )
    config = Share4VConfig(
        vision_config=tower,
        projector_config=projector,
        text_config=text,
        select_layer=select_layer,
        image_aspect_ratio=aspect_ratio,
    )
    return Described(config, notes)


def read_text(file: GGUFFile) -> TextConfig:
    """Return the config of a language model.

    Raises:
        CheckpointError, ValueError: as in `describe`.
    """
    architecture = _value(file, ARCHITECTURE, str)
    if architecture != LANGUAGE_ARCHITECTURE:
        raise CheckpointError(
            f"{file.path} has the architecture {architecture!r:.80}, expected {LANGUAGE_ARCHITECTURE!r} (LLaMA, which "
            "ShareGPT4V's language model is)"
        )
    _refuse_foreign(file)
    if _value(file, "llama.expert_count", int, 0):
        raise CheckpointError(f"{file.path} holds a mixture of experts, which is not supported")
    embeddings = tensor_of(file, "token_embd.weight")
    heads = _value(file, "llama.attention.head_count", int)
    hidden = _value(file, "llama.embedding_length", int)
    head_dim = _value(file, "llama.attention.key_length", int, hidden // heads if heads > 0 else 0)
    rotated = _value(file, "llama.rope.dimension_count", int, head_dim)
    if rotated != head_dim:
        raise CheckpointError(
            f"{file.path} rotates {rotated} of each head's {head_dim} values, which is not supported: expected all"
        )
    return TextConfig(
        vocab_size=embeddings.shape[0],
        hidden_size=hidden,
        intermediate_size=_value(file, "llama.feed_forward_length", int),
        num_hidden_layers=_value(file, "llama.block_count", int),
        num_attention_heads=heads,
        num_key_value_heads=_value(file, "llama.attention.head_count_kv", int, heads),
        head_dim=head_dim,
        rms_norm_eps=_value(file, "llama.attention.layer_norm_rms_epsilon", float),
        rope_theta=_value(file, "llama.rope.freq_base", float, 10000.0),
        rope_scaling=_rope_scaling(file),
        max_position_embeddings=_value(file, "llama.context_length", int),
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        bos_token_id=_value(file, "tokenizer.ggml.bos_token_id", int, 1),
        eos_token_id=_ends(file),
    )


def _ends(file: GGUFFile) -> int | tuple[int, ...]:
    """Return the ids that end an answer: eos, and as in llama.cpp the token that ends a turn of a chat."""
    eos = _value(file, "tokenizer.ggml.eos_token_id", int, 2)
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    found = _value(file, "tokenizer.ggml.eot_token_id", int, -1)
    if found < 0 and isinstance(tokens, list):
        found = next((tokens.index(name) for name in _TURN_ENDS if name in tokens), eos)
    return eos if found in (eos, -1) else (eos, found)


def _rope_scaling(file: GGUFFile) -> RopeScaling | None:
    """Return the scaling of positions; as in llama.cpp, a factor without a type is linear, also under its old name."""
    kind = _value(file, "llama.rope.scaling.type", str, "linear")
    if kind == "none":
        return None
    if kind != "linear":
        raise CheckpointError(f"{file.path} states llama.rope.scaling.type {kind!r:.80}: expected 'none' or 'linear'")
    factor = _value(file, "llama.rope.scaling.factor", float, _value(file, "llama.rope.scale_linear", float, 0.0))
    return RopeScaling("linear", factor) if factor else None


def read_vision(file: GGUFFile) -> tuple[VisionConfig, list[str], int]:
    """Return the vision tower's config, what was recognised, and which hidden state the projector takes.

    Raises:
        CheckpointError, ValueError: as in `describe`.
    """
    _refuse_foreign(file)
    if not is_projector(file):
        raise CheckpointError(
            f"{file.path} has the architecture {file.metadata.get(ARCHITECTURE)!r:.80}, expected "
            f"{VISION_ARCHITECTURE!r}: give the model's mmproj file as vision_tower (--vision-tower)"
        )
    if _value(file, "clip.use_silu", bool, False):
        raise CheckpointError(f"{file.path} states clip.use_silu, which is not supported: expected CLIP's activations")
    count = _value(file, "clip.vision.block_count", int)
    patches = tensor_of(file, "v.patch_embd.weight")
    if len(patches.shape) != 4:
        raise CheckpointError(f"v.patch_embd.weight in {file.path} is {list(patches.shape)}, expected 4 dimensions")
    config = VisionConfig(
        hidden_size=_value(file, "clip.vision.embedding_length", int),
        intermediate_size=_value(file, "clip.vision.feed_forward_length", int),
        num_hidden_layers=count,
        num_attention_heads=_value(file, "clip.vision.attention.head_count", int),
        image_size=_value(file, "clip.vision.image_size", int),
        patch_size=_value(file, "clip.vision.patch_size", int),
        num_channels=patches.shape[1],
        hidden_act="gelu" if _value(file, "clip.use_gelu", bool, False) else "quick_gelu",
        layer_norm_eps=_value(file, "clip.vision.attention.layer_norm_epsilon", float),
    )
    layer, why = _selected_layer(file, config)
    return config, [f"image features: hidden state {layer} of {count} layers in the file, {why}"], layer


def _selected_layer(file: GGUFFile, config: VisionConfig) -> tuple[int, str]:
    """Return which hidden state the projector takes, counted from 0, and how that is known.

    The converter of LLaVA's models leaves out the layers that its projector does not use. llama.cpp, given such a file
    without `clip.vision.feature_layer`, runs one layer less than it holds; the model was trained with all of them.
    """
    count = config.num_hidden_layers
    stated = file.metadata.get("clip.vision.feature_layer")
    if stated is not None:
        is_array = isinstance(stated, np.ndarray) and stated.dtype.kind in "iu" and stated.size == 1
        layers = [int(layer) for layer in stated] if is_array else []
        if not layers or not 0 <= layers[0] <= count:
            raise CheckpointError(
                f"{file.path} states clip.vision.feature_layer {stated!r:.80}, expected one number from 0 to {count}"
            )
        return layers[0], "as clip.vision.feature_layer says"
    if CLIP_DEPTHS.get(config.hidden_size) == count:
        return count - 1, "the last but one: the file has all layers of this CLIP"
    return count, "the last: the file's converter dropped the layers that are not used"


def _projector(file: GGUFFile, tower: VisionConfig, text: TextConfig, language: GGUFFile) -> ProjectorConfig:
    """Check that the projector leads from the vision tower to the language model, and return its config."""
    kind = _value(file, "clip.projector_type", str, "mlp")
    if kind != "mlp":
        raise CheckpointError(f"{file.path} has the projector {kind!r:.80}, expected 'mlp', as in LLaVA-1.5")
    widths = [tower.hidden_size]
    while (weight := file.tensors.get(f"mm.{2 * len(widths) - 2}.weight")) is not None:
        if len(weight.shape) != 2 or weight.shape[1] != widths[-1]:
            raise CheckpointError(
                f"{weight.name} in {file.path} is {list(weight.shape)}, expected [n, {widths[-1]}] behind the "
                f"{'projector' if len(widths) > 1 else 'vision tower'}'s {widths[-1]} features"
            )
        widths.append(weight.shape[0])
    if len(widths) == 1:
        raise CheckpointError(f"{file.path} has no projector: no tensor mm.0.weight")
    if widths[-1] != text.hidden_size:
        raise CheckpointError(
            f"the files do not belong together: the projector in {file.path} makes embeddings of width {widths[-1]}, "
            f"but the language model in {language.path} has width {text.hidden_size}. Give the mmproj file of the same "
            "model as vision_tower (--vision-tower)"
        )
    if len(widths) != 3:
        raise CheckpointError(f"{file.path} has a projector of {len(widths) - 1} layers, expected 2: mm.0 and mm.2")
    return ProjectorConfig("mlp2x_gelu", bias="mm.0.bias" in file.tensors)


def tensor_of(file: GGUFFile, name: str) -> GGUFTensor:
    """Return a tensor.

    Raises:
        CheckpointError: the file does not have it, or it has no dimensions.
    """
    tensor = file.tensors.get(name)
    if tensor is None or not tensor.shape:
        raise CheckpointError(f"{file.path} has no tensor {name}: it is incomplete, or holds another kind of model")
    return tensor


def _refuse_foreign(file: GGUFFile) -> None:
    for name, what in _FOREIGN_TENSORS.items():
        if name in file.tensors:
            raise CheckpointError(f"{file.path} has {what} ({name}), which are not supported")


def _value(file: GGUFFile, key: str, kind: type, default: Any = _REQUIRED) -> Any:
    """Return a value of the metadata.

    Raises:
        CheckpointError: it is missing and has no default, or has another type.
    """
    value = file.metadata.get(key, default)
    if value is _REQUIRED:
        raise CheckpointError(f"{file.path} has no {key}: it is incomplete, or holds another kind of model")
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with np.errstate(over="ignore"):
            value = float(str(np.float32(value)))  # the shortest decimal that is stored so: 1e-05, not 9.9999997e-06
    if type(value) is not kind:
        raise CheckpointError(f"{file.path} states {key} {value!r:.80}, expected {_KINDS[kind]}")
    return value


_KINDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
