"""Weights of CLIP's vision tower: names in every published format, shapes, and the blocks the kernels keep them in."""

from __future__ import annotations

from collections.abc import Mapping

from ..configuration import Share4VConfig, VisionConfig
from ..kernels.blocks import BlockPlan, Shapes, linear_pieces, linear_shapes, norm_pieces, norm_shapes
from ..kernels.packing import BlockSpec, MatrixSpec, NormSpec
from ..quantization import kernel_precision_of

VISION_TOWER = "vision_tower."
VISION_MODEL = "vision_tower.vision_model."

CLIP_NORMS = ("pre_layrnorm", "post_layernorm", "encoder.layers.{n}.layer_norm1", "encoder.layers.{n}.layer_norm2")
CLIP_LINEARS = (
    *(f"encoder.layers.{{n}}.self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
    *(f"encoder.layers.{{n}}.mlp.{part}" for part in ("fc1", "fc2")),
)
CLIP_SUFFIXES = (
    "embeddings.class_embedding",
    "embeddings.patch_embedding.weight",
    "embeddings.position_embedding.weight",
    *(f"{layer}.{kind}" for layer in (*CLIP_NORMS, *CLIP_LINEARS) for kind in ("weight", "bias")),
)
# Published name -> our name, where {n} is the layer's number. None: a known tensor that is not a weight.
CLIP: Mapping[str, str | None] = {
    **{name: name for name in CLIP_SUFFIXES},
    "embeddings.position_ids": None,  # always 0, 1, 2, ...
}
# mindone's examples/sharegpt_4v keeps MindSpore's names of embeddings and norms.
CLIP_OF_THE_PORT: Mapping[str, str | None] = {
    "embeddings.position_embedding.embedding_table": "embeddings.position_embedding.weight",
    **{f"{layer}.gamma": f"{layer}.weight" for layer in CLIP_NORMS},
    **{f"{layer}.beta": f"{layer}.bias" for layer in CLIP_NORMS},
}
# llama.cpp's names, of the generation in which ffn_up is the MLP's first matrix.
_GGUF_OF_LAYER = {
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")},
    **{f"ln{number}": f"layer_norm{number}" for number in (1, 2)},
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
CLIP_OF_GGUF: Mapping[str, str | None] = {
    "class_embd": "embeddings.class_embedding",
    "patch_embd.weight": "embeddings.patch_embedding.weight",
    "position_embd.weight": "embeddings.position_embedding.weight",
    **{
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in (
            ("pre_ln", "pre_layrnorm"),
            ("post_ln", "post_layernorm"),
            *((f"blk.{{n}}.{theirs}", f"encoder.layers.{{n}}.{ours}") for theirs, ours in _GGUF_OF_LAYER.items()),
        )
        for kind in ("weight", "bias")
    },
}
# A full CLIP checkpoint also holds a text encoder, which captioning does not use.
CLIP_TEXT_SUFFIXES = (
    "embeddings.token_embedding.weight",
    "embeddings.position_embedding.weight",
    "embeddings.position_ids",
    *(f"final_layer_norm.{kind}" for kind in ("weight", "bias")),
    *(name for name in CLIP_SUFFIXES if name.startswith("encoder.")),
)


def vision_shapes(config: VisionConfig) -> Shapes:
    """Return the shape of every weight of the vision tower, under our names."""
    hidden, patch = config.hidden_size, config.patch_size
    shapes: Shapes = {
        "embeddings.class_embedding": (hidden,),
        "embeddings.patch_embedding.weight": (hidden, config.num_channels, patch, patch),
        "embeddings.position_embedding.weight": (config.num_patches + 1, hidden),
        **norm_shapes("pre_layrnorm", hidden),
        **norm_shapes("post_layernorm", hidden),
    }
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layers.{number}"
        for part in ("q", "k", "v", "out"):
            shapes |= linear_shapes(f"{layer}.self_attn.{part}_proj", hidden, hidden, bias=True)
        shapes |= linear_shapes(f"{layer}.mlp.fc1", hidden, config.intermediate_size, bias=True)
        shapes |= linear_shapes(f"{layer}.mlp.fc2", config.intermediate_size, hidden, bias=True)
        shapes |= norm_shapes(f"{layer}.layer_norm1", hidden) | norm_shapes(f"{layer}.layer_norm2", hidden)
    return {VISION_MODEL + name: shape for name, shape in shapes.items()}


def vision_plans(config: Share4VConfig, dtype: str) -> tuple[BlockPlan, ...]:
    """Return the blocks of CLIP: the patch embedding and every layer, including those after the selected one."""
    vision, types = config.vision_config, kernel_precision_of(dtype, config.stored_layout)
    hidden, inner, heads = vision.hidden_size, vision.intermediate_size, vision.num_attention_heads
    patches = f"{VISION_MODEL}embeddings.patch_embedding"
    inputs = vision.num_channels * vision.patch_size**2
    spec = BlockSpec((MatrixSpec(hidden, inputs, types.patches),))
    plans = [BlockPlan(patches, spec, tuple(linear_pieces(0, False, (patches, hidden))))]
    norm = NormSpec("layer", hidden, vision.layer_norm_eps, bias=True)
    sizes = ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner))
    spec = BlockSpec(
        tuple(MatrixSpec(rows, columns, types.vision, bias=True) for rows, columns in sizes),
        (norm, norm),
        activation=vision.hidden_act,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
    )
    for layer in range(vision.num_hidden_layers):
        name = f"{VISION_MODEL}encoder.layers.{layer}"
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        pieces = (
            *norm_pieces(0, f"{name}.layer_norm1", hidden, True),
            *norm_pieces(1, f"{name}.layer_norm2", hidden, True),
            *linear_pieces(0, True, *((f"{attention}.{part}_proj", hidden) for part in "qkv")),
            *linear_pieces(1, True, (f"{attention}.out_proj", hidden)),
            *linear_pieces(2, True, (f"{mlp}.fc1", inner)),
            *linear_pieces(3, True, (f"{mlp}.fc2", hidden)),
        )
        plans.append(BlockPlan(name, spec, pieces))
    return tuple(plans)
