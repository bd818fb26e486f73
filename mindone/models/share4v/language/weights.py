"""Weights of LLaMA: their names in every published format, their shapes, and the blocks the kernels keep them in."""

from __future__ import annotations

from collections.abc import Mapping

from ..configuration import Share4VConfig, TextConfig
from ..kernels.blocks import BlockPlan, Shapes, linear_pieces, linear_shapes, norm_pieces
from ..kernels.packing import SUPER, BlockSpec, MatrixSpec, NormSpec
from ..quantization import Precision, kernel_precision_of

LANGUAGE_MODEL = "language_model.model."
LM_HEAD = "language_model.lm_head."

LLAMA_SUFFIXES = (
    "embed_tokens.weight",
    "layers.{n}.input_layernorm.weight",
    "layers.{n}.post_attention_layernorm.weight",
    *(f"layers.{{n}}.self_attn.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")),
    *(f"layers.{{n}}.mlp.{part}_proj.{kind}" for part in ("gate", "up", "down") for kind in ("weight", "bias")),
    "norm.weight",
)
# Published name -> our name, where {n} is the layer's number. None: a known tensor that is not a weight.
LLAMA: Mapping[str, str | None] = {
    **{name: name for name in LLAMA_SUFFIXES},
    "layers.{n}.self_attn.rotary_emb.inv_freq": None,  # computed from the config
}
# Names written by the converter in mindone's examples/sharegpt_4v; the model class there uses Hugging Face's names.
LLAMA_OF_THE_PORT: Mapping[str, str | None] = {
    "embed_tokens.embedding_table": "embed_tokens.weight",
    "layers.{n}.attention_norm.weight": "layers.{n}.input_layernorm.weight",
    "layers.{n}.ffn_norm.weight": "layers.{n}.post_attention_layernorm.weight",
    "layers.{n}.attention.wq.weight": "layers.{n}.self_attn.q_proj.weight",
    "layers.{n}.attention.wk.weight": "layers.{n}.self_attn.k_proj.weight",
    "layers.{n}.attention.wv.weight": "layers.{n}.self_attn.v_proj.weight",
    "layers.{n}.attention.wo.weight": "layers.{n}.self_attn.o_proj.weight",
    "layers.{n}.feed_forward.w1.weight": "layers.{n}.mlp.gate_proj.weight",
    "layers.{n}.feed_forward.w3.weight": "layers.{n}.mlp.up_proj.weight",
    "layers.{n}.feed_forward.w2.weight": "layers.{n}.mlp.down_proj.weight",
    "norm_out.weight": "norm.weight",
}
# llama.cpp's names.
_GGUF_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
LLAMA_OF_GGUF: Mapping[str, str | None] = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    **{
        f"blk.{{n}}.{theirs}.{kind}": f"layers.{{n}}.{ours}.{kind}"
        for theirs, ours in _GGUF_OF_LAYER.items()
        for kind in ("weight", "bias")
        if f"layers.{{n}}.{ours}.{kind}" in LLAMA_SUFFIXES
    },
}
HEAD: Mapping[str, str | None] = {"weight": "weight"}


def language_shapes(config: TextConfig) -> Shapes:
    """Return the shape of every weight of the language model, under our names."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_size, config.kv_heads * config.head_size
    shapes: Shapes = {"embed_tokens.weight": (config.vocab_size, hidden), "norm.weight": (hidden,)}
    for number in range(config.num_hidden_layers):
        layer = f"layers.{number}"
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        for part, outputs in (("q", queries), ("k", keys), ("v", keys)):
            shapes |= linear_shapes(f"{layer}.self_attn.{part}_proj", hidden, outputs, config.attention_bias)
        shapes |= linear_shapes(f"{layer}.self_attn.o_proj", queries, hidden, config.attention_bias)
        for part in ("gate", "up"):
            shapes |= linear_shapes(f"{layer}.mlp.{part}_proj", hidden, inner, config.mlp_bias)
        shapes |= linear_shapes(f"{layer}.mlp.down_proj", inner, hidden, config.mlp_bias)
    head = {} if config.tie_word_embeddings else {f"{LM_HEAD}weight": (config.vocab_size, hidden)}
    return {**{LANGUAGE_MODEL + name: shape for name, shape in shapes.items()}, **head}


def language_plans(config: Share4VConfig, dtype: str) -> tuple[BlockPlan, ...]:
    """Return the blocks of the language model: embeddings, layers, and the head, which includes the final norm."""
    text, types = config.text_config, kernel_precision_of(dtype, config.stored_layout)
    hidden = text.hidden_size
    table = BlockSpec((MatrixSpec(text.vocab_size, hidden, types.embedding),), is_table=True)
    embedding = f"{LANGUAGE_MODEL}embed_tokens"
    plans = [BlockPlan(embedding, table, tuple(linear_pieces(0, False, (embedding, text.vocab_size))))]
    plans += [_layer_plan(text, layer, types) for layer in range(text.num_hidden_layers)]
    norm = NormSpec("rms", hidden, text.rms_norm_eps)
    head = BlockSpec((MatrixSpec(text.vocab_size, hidden, types.head, False, types.input_group),), (norm,))
    source = embedding if text.tie_word_embeddings else LM_HEAD[:-1]
    pieces = (
        *norm_pieces(0, f"{LANGUAGE_MODEL}norm", hidden, False),
        *linear_pieces(0, False, (source, text.vocab_size)),
    )
    return (*plans, BlockPlan(LM_HEAD[:-1], head, pieces))


def down_hadamard(text: TextConfig) -> int:
    """Return the block size of the Hadamard transform before a rotated down projection; 0 if there can be none."""
    size = min(text.intermediate_size & -text.intermediate_size, SUPER)
    return size if size > 1 else 0


def _layer_plan(text: TextConfig, layer: int, types: Precision) -> BlockPlan:
    name = f"{LANGUAGE_MODEL}layers.{layer}"
    hidden, inner, head_dim = text.hidden_size, text.intermediate_size, text.head_size
    queries, keys = text.num_attention_heads * head_dim, text.kv_heads * head_dim
    norm = NormSpec("rms", hidden, text.rms_norm_eps)
    dtype, group = types.layers, types.input_group
    spec = BlockSpec(
        (
            MatrixSpec(queries + 2 * keys, hidden, dtype, text.attention_bias, group),
            MatrixSpec(hidden, queries, dtype, text.attention_bias, group),
            MatrixSpec(2 * inner, hidden, dtype, text.mlp_bias, group),
            MatrixSpec(hidden, inner, dtype, text.mlp_bias, group, down_hadamard(text) if types.is_rotated else 0),
        ),
        (norm, norm),
        activation="gated_silu",
        heads=text.num_attention_heads,
        kv_heads=text.kv_heads,
        head_dim=head_dim,
        is_rotary=True,
        cache_layer=layer,
        is_rotated=types.is_rotated and layer == 0,
    )
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    qkv = (f"{attention}.q_proj", queries), (f"{attention}.k_proj", keys), (f"{attention}.v_proj", keys)
    pieces = (
        *norm_pieces(0, f"{name}.input_layernorm", hidden, False),
        *norm_pieces(1, f"{name}.post_attention_layernorm", hidden, False),
        *linear_pieces(0, text.attention_bias, *qkv),
        *linear_pieces(1, text.attention_bias, (f"{attention}.o_proj", hidden)),
        *linear_pieces(2, text.mlp_bias, (f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)),
        *linear_pieces(3, text.mlp_bias, (f"{mlp}.down_proj", hidden)),
    )
    return BlockPlan(name, spec, pieces)
