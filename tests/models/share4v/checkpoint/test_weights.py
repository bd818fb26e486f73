"""Every published form's weight names, as the libraries themselves give them, become ours."""

from __future__ import annotations

import pytest
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from mindone.models.share4v import Share4VConfig
from mindone.models.share4v.checkpoint.weights import ALL_NAMES, FORMATS, expected_shapes, is_known, our_name

VISION = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 12, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
TEXT = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 11, "num_attention_heads": 2}


def our_shapes(**changes) -> dict[str, tuple[int, ...]]:
    config = {"model_type": "share4v", **TEXT, "mm_hidden_size": 8, "mm_projector_type": "mlp2x_gelu", **changes}
    return expected_shapes(Share4VConfig.from_dict(config, VISION))[0]


def shapes_of(state: dict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def renamed(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {our_name(name): shape for name, shape in shapes.items() if our_name(name) is not None}


def language_state() -> dict[str, tuple[int, ...]]:
    return shapes_of(LlamaForCausalLM(LlamaConfig(**TEXT)).state_dict())


def vision_state() -> dict[str, tuple[int, ...]]:
    return shapes_of(CLIPVisionModel(CLIPVisionConfig(**VISION)).state_dict())


def projector_state(prefix: str) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{i}.{kind}": shape for i in (0, 2) for kind, shape in (("weight", (8, 8)), ("bias", (8,)))}


def llava_state() -> dict[str, tuple[int, ...]]:
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT))
    return shapes_of(LlavaForConditionalGeneration(config).state_dict())


def old_llava_name(name: str) -> str:
    """Name a weight as transformers did before 4.52 and still writes to disk."""
    for new, old in (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")):
        if name.startswith(new):
            return old + name[len(new) :]
    return name.removeprefix("model.")


def test_names_of_the_original_form() -> None:
    state = {**language_state(), **projector_state("model.mm_projector"), **vision_state()}
    state["model.layers.3.self_attn.rotary_emb.inv_freq"] = (2,)
    state["vision_model.embeddings.position_ids"] = (1, 5)
    assert renamed(state) == our_shapes()


def test_names_of_an_original_form_with_the_tower_inside() -> None:
    inside = {f"model.vision_tower.vision_tower.{name}": shape for name, shape in vision_state().items()}
    assert renamed({**language_state(), **projector_state("model.mm_projector"), **inside}) == our_shapes()


def test_names_of_llava_in_memory_and_on_disk() -> None:
    assert renamed(llava_state()) == our_shapes()
    assert renamed({old_llava_name(name): shape for name, shape in llava_state().items()}) == our_shapes()


def test_a_whole_clip_model_gives_its_vision_half() -> None:
    text = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    state = shapes_of(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION)).state_dict())
    state["text_model.embeddings.position_ids"] = (1, 77)
    wanted = {name: shape for name, shape in our_shapes().items() if name.startswith("vision_tower.")}
    assert all(is_known(name) for name in state)
    assert renamed(state) == wanted


def name_of_the_port(name: str) -> str:
    """The earlier port's converter, as the facts tell it."""
    if name.startswith("model.layers"):
        for old, new in {
            "self_attn.q_proj": "attention.wq",
            "self_attn.k_proj": "attention.wk",
            "self_attn.v_proj": "attention.wv",
            "self_attn.o_proj": "attention.wo",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3",
            "mlp.down_proj": "feed_forward.w2",
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "ffn_norm",
        }.items():
            name = name.replace(old, new)
    elif name.startswith("vision_model"):
        name = "vision_tower." + name.replace("position_embedding.weight", "position_embedding.embedding_table")
        if "norm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
    else:
        name = name.replace("model.norm", "model.norm_out")
    return name.replace("embed_tokens.weight", "embed_tokens.embedding_table")


def test_names_of_the_earlier_port() -> None:
    state = {**language_state(), **projector_state("model.mm_projector"), **vision_state()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = (2,)  # its converter leaves this in
    assert renamed({name_of_the_port(name): shape for name, shape in state.items()}) == our_shapes()


@pytest.mark.parametrize(
    "prefix", ["", "vision_tower.", "vision_tower.vision_tower.", "model.vision_tower.vision_tower."]
)
@pytest.mark.parametrize("mindspore_norms", [False, True])
def test_names_of_the_earlier_ports_class(prefix: str, mindspore_norms: bool) -> None:
    vision = vision_state()
    if mindspore_norms:
        vision = {name_of_the_port(name).removeprefix("vision_tower."): shape for name, shape in vision.items()}
    vision = {prefix + name: shape for name, shape in vision.items()}
    assert renamed({**language_state(), **projector_state("model.mm_projector"), **vision}) == our_shapes()


def test_our_own_names_stay() -> None:
    shapes = our_shapes(attention_bias=True, mlp_bias=True)
    assert renamed(shapes) == shapes
    assert "language_model.model.layers.10.self_attn.q_proj.bias" in shapes


def test_biases_are_where_transformers_has_them() -> None:
    llama = LlamaForCausalLM(LlamaConfig(**TEXT, attention_bias=True, mlp_bias=True))
    state = {**shapes_of(llama.state_dict()), **projector_state("model.mm_projector"), **vision_state()}
    assert renamed(state) == our_shapes(attention_bias=True, mlp_bias=True)


def test_no_two_forms_give_one_name_different_meanings() -> None:
    for form, table in FORMATS.items():
        for name, ours in table.items():
            assert ALL_NAMES[name] == ours, (form, name)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.lm_head.weight",
        "model.layers.x.mlp.up_proj.weight",
        "model.layers.01.mlp.up_proj.weight",
        "model.layers.{n}x.mlp.up_proj.weight",
        "vision_model.encoder.layers.1.self_attn.o_proj.weight",
    ],
)
def test_names_that_no_form_has_are_unknown(name: str) -> None:
    assert not is_known(name)
    with pytest.raises(KeyError):
        our_name(name)
