"""Tables that turn every published form's weight names into this project's. `{n}` stands for a layer's number."""

from __future__ import annotations

import re
from collections.abc import Mapping

# A form's name -> ours. None: known, and left out on purpose.
Table = Mapping[str, str | None]

LLAMA_SUFFIXES = (
    "embed_tokens.weight",
    "layers.{n}.input_layernorm.weight",
    "layers.{n}.post_attention_layernorm.weight",
    *(f"layers.{{n}}.self_attn.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")),
    *(f"layers.{{n}}.mlp.{part}_proj.{kind}" for part in ("gate", "up", "down") for kind in ("weight", "bias")),
    "norm.weight",
)
LLAMA: Table = {
    **{name: name for name in LLAMA_SUFFIXES},
    "layers.{n}.self_attn.rotary_emb.inv_freq": None,  # follows from the config
}
# The converter of mindone's examples/sharegpt_4v; its model class names its cells as Hugging Face does.
LLAMA_OF_THE_PORT: Table = {
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
CLIP: Table = {**{name: name for name in CLIP_SUFFIXES}, "embeddings.position_ids": None}  # 0, 1, 2, ...
CLIP_OF_THE_PORT: Table = {
    "embeddings.position_embedding.embedding_table": "embeddings.position_embedding.weight",
    **{f"{layer}.gamma": f"{layer}.weight" for layer in CLIP_NORMS},
    **{f"{layer}.beta": f"{layer}.bias" for layer in CLIP_NORMS},
}
# A whole CLIP model has a text half, which captioning does not use.
CLIP_TEXT_SUFFIXES = (
    "embeddings.token_embedding.weight",
    "embeddings.position_embedding.weight",
    "embeddings.position_ids",
    *(f"final_layer_norm.{kind}" for kind in ("weight", "bias")),
    *(name for name in CLIP_SUFFIXES if name.startswith("encoder.")),
)

PROJECTOR: Table = {f"{layer}{kind}": f"{layer}{kind}" for layer in ("", "{n}.") for kind in ("weight", "bias")}
PROJECTOR_OF_LLAVA: Table = {
    f"linear_{number}.{kind}": f"{place}.{kind}" for number, place in ((1, 0), (2, 2)) for kind in ("weight", "bias")
}
HEAD: Table = {"weight": "weight"}

LANGUAGE_MODEL = "language_model.model."
LM_HEAD = "language_model.lm_head."
VISION_MODEL = "vision_tower.vision_model."
MM_PROJECTOR = "mm_projector."
VISION_TOWER = "vision_tower."
COMPONENTS = (VISION_TOWER, MM_PROJECTOR, "language_model.")


def _placed(source: str, target: str, table: Table) -> dict[str, str | None]:
    return {source + name: None if ours is None else target + ours for name, ours in table.items()}


FORMS: dict[str, Table] = {
    "own": {
        **_placed("language_model.model.", LANGUAGE_MODEL, LLAMA),
        **_placed("language_model.lm_head.", LM_HEAD, HEAD),
        **_placed("mm_projector.", MM_PROJECTOR, PROJECTOR),
        **_placed("vision_tower.vision_model.", VISION_MODEL, CLIP),
    },
    "original": {
        **_placed("model.", LANGUAGE_MODEL, LLAMA),
        **_placed("lm_head.", LM_HEAD, HEAD),
        **_placed("model.mm_projector.", MM_PROJECTOR, PROJECTOR),
        **_placed("model.vision_tower.vision_tower.vision_model.", VISION_MODEL, CLIP),
    },
    # What LlavaForConditionalGeneration.save_pretrained writes up to transformers 4.57, and its names in memory.
    "llava": {
        **_placed("language_model.model.", LANGUAGE_MODEL, LLAMA),
        **_placed("language_model.lm_head.", LM_HEAD, HEAD),
        **_placed("multi_modal_projector.", MM_PROJECTOR, PROJECTOR_OF_LLAVA),
        **_placed("vision_tower.vision_model.", VISION_MODEL, CLIP),
    },
    "llava (new names)": {
        **_placed("model.language_model.", LANGUAGE_MODEL, LLAMA),
        **_placed("lm_head.", LM_HEAD, HEAD),
        **_placed("model.multi_modal_projector.", MM_PROJECTOR, PROJECTOR_OF_LLAVA),
        **_placed("model.vision_tower.vision_model.", VISION_MODEL, CLIP),
    },
    "vision tower": {
        **_placed("vision_model.", VISION_MODEL, CLIP),
        **{f"text_model.{name}": None for name in CLIP_TEXT_SUFFIXES},
        "visual_projection.weight": None,
        "text_projection.weight": None,
        "logit_scale": None,
    },
    "mindspore port": {
        **_placed("model.", LANGUAGE_MODEL, LLAMA_OF_THE_PORT),
        **_placed("vision_tower.vision_model.", VISION_MODEL, CLIP_OF_THE_PORT),
    },
    "mindspore port (class)": {
        **_placed("vision_model.", VISION_MODEL, CLIP_OF_THE_PORT),
        **_placed("vision_tower.vision_tower.vision_model.", VISION_MODEL, {**CLIP, **CLIP_OF_THE_PORT}),
        **_placed("model.vision_tower.vision_tower.vision_model.", VISION_MODEL, CLIP_OF_THE_PORT),
    },
}
# No two forms give one name different meanings (a test holds them to it), so one look-up serves all.
ALL_NAMES: Table = {name: ours for table in FORMS.values() for name, ours in table.items()}
_NUMBER = re.compile(r"(?<![^.])(0|[1-9][0-9]*)(?![^.])")


def is_known(name: str) -> bool:
    """Tell whether any published form has this name."""
    return _NUMBER.sub("{n}", name) in ALL_NAMES


def our_name(name: str) -> str | None:
    """Turn a published name into ours; None where the tensor is left out on purpose.

    Raises:
        KeyError: no form has this name.

    Example:
        >>> from mindone.models.share4v.checkpoint.weights import our_name
        >>> our_name("model.layers.7.self_attn.q_proj.weight")
        'language_model.model.layers.7.self_attn.q_proj.weight'
        >>> our_name("multi_modal_projector.linear_2.bias")
        'mm_projector.2.bias'
    """
    numbers = _NUMBER.findall(name)
    ours = ALL_NAMES[_NUMBER.sub("{n}", name)]
    return ours if ours is None or not numbers else ours.format(n=numbers[0])
