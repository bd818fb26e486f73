"""The weights that a config asks for, and their shapes: what a checkpoint is checked against before it is read."""

from __future__ import annotations

import re

from ..configuration import Share4VConfig, TextConfig, VisionConfig
from .weights import LANGUAGE_MODEL, LM_HEAD, MM_PROJECTOR, VISION_MODEL

Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, inputs: int, outputs: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def _norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def vision_shapes(config: VisionConfig) -> Shapes:
    hidden, patch = config.hidden_size, config.patch_size
    shapes: Shapes = {
        "embeddings.class_embedding": (hidden,),
        "embeddings.patch_embedding.weight": (hidden, config.num_channels, patch, patch),
        "embeddings.position_embedding.weight": (config.num_patches + 1, hidden),
        **_norm("pre_layrnorm", hidden),
        **_norm("post_layernorm", hidden),
    }
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layers.{number}"
        for part in ("q", "k", "v", "out"):
            shapes |= _linear(f"{layer}.self_attn.{part}_proj", hidden, hidden, bias=True)
        shapes |= _linear(f"{layer}.mlp.fc1", hidden, config.intermediate_size, bias=True)
        shapes |= _linear(f"{layer}.mlp.fc2", config.intermediate_size, hidden, bias=True)
        shapes |= _norm(f"{layer}.layer_norm1", hidden) | _norm(f"{layer}.layer_norm2", hidden)
    return {VISION_MODEL + name: shape for name, shape in shapes.items()}


def _language(config: TextConfig) -> Shapes:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_size, config.kv_heads * config.head_size
    shapes: Shapes = {"embed_tokens.weight": (config.vocab_size, hidden), "norm.weight": (hidden,)}
    for number in range(config.num_hidden_layers):
        layer = f"layers.{number}"
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        for part, outputs in (("q", queries), ("k", keys), ("v", keys)):
            shapes |= _linear(f"{layer}.self_attn.{part}_proj", hidden, outputs, config.attention_bias)
        shapes |= _linear(f"{layer}.self_attn.o_proj", queries, hidden, config.attention_bias)
        for part in ("gate", "up"):
            shapes |= _linear(f"{layer}.mlp.{part}_proj", hidden, inner, config.mlp_bias)
        shapes |= _linear(f"{layer}.mlp.down_proj", inner, hidden, config.mlp_bias)
    head = {} if config.tie_word_embeddings else {f"{LM_HEAD}weight": (config.vocab_size, hidden)}
    return {**{LANGUAGE_MODEL + name: shape for name, shape in shapes.items()}, **head}


def _projector(kind: str, bias: bool, inputs: int, outputs: int) -> Shapes | None:
    """None where another package registered the projector, so that only it knows its weights."""
    if kind == "identity":
        return {}
    if kind == "linear":
        return _linear(MM_PROJECTOR[:-1], inputs, outputs, bias)
    depth = re.fullmatch(r"mlp([1-9][0-9]*)x_gelu", kind)
    if depth is None:
        return None
    shapes = _linear(f"{MM_PROJECTOR}0", inputs, outputs, bias)
    for number in range(1, int(depth[1])):
        shapes |= _linear(f"{MM_PROJECTOR}{2 * number}", outputs, outputs, bias)
    return shapes


def expected_shapes(config: Share4VConfig) -> tuple[Shapes, bool]:
    """Return the shape of every weight under our names, and whether the projector's are among them.

    Example:
        >>> from mindone.models.share4v import Share4VConfig
        >>> from mindone.models.share4v.checkpoint.shapes import expected_shapes
        >>> shapes, _ = expected_shapes(Share4VConfig())
        >>> shapes["language_model.lm_head.weight"]
        (32000, 4096)
    """
    projector = _projector(
        config.projector_config.projector_type,
        config.projector_config.bias,
        config.vision_config.hidden_size,
        config.text_config.hidden_size,
    )
    shapes = {**vision_shapes(config.vision_config), **(projector or {}), **_language(config.text_config)}
    return shapes, projector is not None
