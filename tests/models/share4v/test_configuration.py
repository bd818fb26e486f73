"""Share4VConfig: every published form read, unknown fields kept, contradictions refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from mindone.models.share4v import ProjectorConfig, Share4VConfig, TextConfig, VisionConfig
from mindone.models.share4v.configuration import RopeScaling
from mindone.models.share4v.language.weights import language_plans

# The fields of Lin-Chen/ShareGPT4V-7B's config.json.
ORIGINAL_7B: dict[str, Any] = {
    "architectures": ["Share4VLlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "image_aspect_ratio": "pad",
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12",
    "model_type": "share4v",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "tune_mm_mlp_adapter": False,
    "use_cache": True,
    "use_mm_proj": True,
    "vocab_size": 32000,
}
CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP |= {"image_size": 336, "patch_size": 14}


def original(**changes: Any) -> Share4VConfig:
    return Share4VConfig.from_dict({**ORIGINAL_7B, **changes})


def test_the_original_7b_config() -> None:
    config = original()
    assert config.vision_config == VisionConfig(**CLIP)
    assert config.projector_config == ProjectorConfig("mlp2x_gelu")
    text = config.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.kv_heads, text.head_size) == (4096, 32, 32, 128)
    assert (text.rope_theta, text.rms_norm_eps, text.rope_scaling) == (10000.0, 1e-5, None)
    assert (text.bos_token_id, text.eos_token_ids, text.pad_token_id) == (1, (2,), 0)
    assert (config.select_layer, config.select_feature, config.image_aspect_ratio) == (-2, "patch", "pad")
    assert (config.num_image_tokens, config.hidden_state_index, text.context_length) == (576, 23, 4096)
    assert config.vision_tower == ORIGINAL_7B["mm_vision_tower"]
    assert (config.use_im_start_end, config.torch_dtype, config.image_token_id) == (False, "bfloat16", -200)


def test_unknown_fields_are_kept_and_written_back(tmp_path: Path) -> None:
    config = original(something_new={"nested": [1, 2]})
    assert config.extra["something_new"] == {"nested": [1, 2]} and config.extra["pretraining_tp"] == 1
    config.save_pretrained(tmp_path)
    assert Share4VConfig.from_pretrained(tmp_path) == config
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_type"] == "share4v"


def test_unknown_fields_of_its_own_form_are_kept(tmp_path: Path) -> None:
    data = {**original(something_old=1).to_dict(), "something_new": {"nested": [1, 2]}}
    config = Share4VConfig.from_dict(data)
    assert config.extra["something_new"] == {"nested": [1, 2]} and config.extra["something_old"] == 1
    config.save_pretrained(tmp_path)
    assert Share4VConfig.from_pretrained(tmp_path) == config
    with pytest.raises(ValueError, match=r"config.json's extra must be a JSON object, got 3"):
        Share4VConfig.from_dict({**data, "extra": 3})


def test_unknown_fields_of_llavas_parts_are_kept(tmp_path: Path) -> None:
    parts = {"text_config": {"new_in_text": 1, "vocab_size": 99}, "vision_config": {"new_in_vision": [2]}}
    config = Share4VConfig.from_dict({"model_type": "llava", **parts})
    assert config.extra == {"text_config": {"new_in_text": 1}, "vision_config": {"new_in_vision": [2]}}
    config.save_pretrained(tmp_path)
    assert Share4VConfig.from_pretrained(tmp_path) == config


CHANGES: list[dict[str, Any]] = [
    {"rope_scaling": {"type": "linear", "factor": 4}},
    {"eos_token_id": [2, 32000]},
    {"mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": 5, "mm_use_im_start_end": True},
    {"head_dim": 64, "num_key_value_heads": 8, "rope_theta": 1e6, "tie_word_embeddings": True, "mlp_bias": True},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_its_own_form_says_all_again(changes: dict[str, Any], tmp_path: Path) -> None:
    config = original(**changes)
    config.save_pretrained(tmp_path)
    again = Share4VConfig.from_pretrained(tmp_path)
    assert again == config and hash(again.text_config) == hash(config.text_config)


@pytest.mark.parametrize("strategy, feature, tokens", [("default", "patch", 36), ("full", "cls_patch", 37)])
def test_what_transformers_writes_for_llava(strategy: str, feature: str, tokens: int, tmp_path: Path) -> None:
    vision = CLIPVisionConfig(hidden_size=48, num_attention_heads=4, image_size=100, patch_size=16, hidden_act="gelu")
    text = LlamaConfig(
        hidden_size=64, num_attention_heads=4, vocab_size=101, rope_theta=5e5, head_dim=24, eos_token_id=7
    )
    LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=100,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-1,
        multimodal_projector_bias=False,
    ).save_pretrained(tmp_path)
    config = Share4VConfig.from_pretrained(tmp_path)
    assert config.vision_config == VisionConfig(48, 3072, 12, 4, 100, 16, hidden_act="gelu")
    assert config.projector_config == ProjectorConfig("mlp2x_gelu", bias=False)
    ours = config.text_config
    assert (ours.hidden_size, ours.head_size, ours.rope_theta, ours.eos_token_ids) == (64, 24, 5e5, (7,))
    assert (ours.max_position_embeddings, ours.rms_norm_eps) == (text.max_position_embeddings, text.rms_norm_eps)
    assert (config.select_feature, config.select_layer, config.image_token_id) == (feature, -1, 100)
    assert (config.num_image_tokens, config.hidden_state_index) == (tokens, 12)


def test_defaults_are_those_of_transformers() -> None:
    for ours, theirs in ((VisionConfig(), CLIPVisionConfig()), (TextConfig(), LlamaConfig())):
        stated = {item.name for item in dataclasses.fields(ours)} - {"rope_scaling", "sliding_window"}
        assert {name: getattr(ours, name) for name in stated} == {name: getattr(theirs, name) for name in stated}


def test_an_old_llava_config_that_leaves_most_to_defaults() -> None:
    config = Share4VConfig.from_dict(
        {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5}}
    )
    assert config.vision_config == VisionConfig(**CLIP)
    assert (config.text_config.vocab_size, config.image_token_id, config.num_image_tokens) == (32064, 32000, 576)


def test_a_separate_vision_tower_takes_the_place_of_what_the_config_says(tmp_path: Path) -> None:
    for name, data in (
        ("main", ORIGINAL_7B),
        ("tower", {"model_type": "clip_vision_model", **CLIP, "image_size": 224}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(data), encoding="utf-8")
    config = Share4VConfig.from_pretrained(tmp_path / "main", tmp_path / "tower")
    assert (config.vision_config.image_size, config.num_image_tokens) == (224, 256)
    whole_clip = {"model_type": "clip", "text_config": {"hidden_size": 7}, "vision_config": {**CLIP, "patch_size": 28}}
    assert Share4VConfig.from_dict(ORIGINAL_7B, whole_clip).vision_config.patch_size == 28


def test_rope_parameters_of_transformers_5_are_read() -> None:
    text = {"hidden_size": 64, "rope_parameters": {"rope_theta": 77.0, "rope_type": "linear", "factor": 2.0}}
    config = Share4VConfig.from_dict({"model_type": "llava", "text_config": text})
    assert config.text_config.rope_theta == 77.0
    assert config.text_config.rope_scaling == RopeScaling("linear", 2.0)
    text["rope_parameters"] = {"rope_theta": 77.0, "rope_type": "default"}
    assert Share4VConfig.from_dict({"model_type": "llava", "text_config": text}).text_config.rope_scaling is None


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "heads do not divide": ({"num_attention_heads": 3}, "hidden_size 4096 is not a multiple of num_attention_heads 3"),
    "groups": ({"num_key_value_heads": 5}, "num_attention_heads 32 is not a multiple of num_key_value_heads 5"),
    "odd head": ({"head_dim": 5}, "head_dim 5 is odd"),
    "no layers": ({"num_hidden_layers": 0}, "TextConfig.num_hidden_layers must be a positive integer, got 0"),
    "text for a number": ({"hidden_size": "4096"}, "TextConfig.hidden_size must be a positive integer, got '4096'"),
    "activation": ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported: expected 'silu'"),
    "theta": ({"rope_theta": 0}, "TextConfig.rope_theta must be a number above 0 and at most 1000000000000.0, got 0"),
    "rope type": ({"rope_scaling": {"type": "yarn", "factor": 2}}, "rope_scaling type 'yarn' is not supported"),
    "rope factor": (
        {"rope_scaling": {"type": "linear", "factor": 0.5}},
        "factor must be a number of at least 1 and",
    ),
    "rope without factor": ({"rope_scaling": {"type": "linear"}}, "names no factor"),
    "rope field": ({"rope_scaling": {"type": "linear", "factor": 2, "beta": 1}}, "not supported: beta"),
    "vision size": ({"mm_hidden_size": 768}, "mm_hidden_size 768 contradicts the vision tower's hidden_size 1024"),
    "layer": ({"mm_vision_select_layer": -26}, "select_layer -26 is not one of the vision tower's 25 hidden states"),
    "layers": ({"mm_vision_select_layer": [-2, -5]}, "is not one of the vision tower's 25 hidden states"),
    "feature": ({"mm_vision_select_feature": "cls"}, "select_feature 'cls' is not supported"),
    "aspect": ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres' is not supported"),
    "identity": ({"mm_projector_type": "identity"}, "projector 'identity' needs equal sizes"),
    "projector": ({"mm_projector_type": 3}, "projector_type must be a text of at most 4096 characters, got 3"),
    "model type": (
        {"model_type": "blip"},
        "config.json has model_type 'blip', which is not a known format",
    ),
}


@pytest.mark.parametrize("changes, message", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_contradiction_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        original(**changes)


LLAVA_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another language model": (
        {"text_config": {"model_type": "qwen2"}},
        "text_config is a 'qwen2', expected 'llama' or 'mistral'",
    ),
    "projector's activation": ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu' is not supported"),
    "strategy": ({"vision_feature_select_strategy": "cls"}, "select_feature 'cls' is not supported"),
    "vision activation": ({"vision_config": {"hidden_act": "relu"}}, "vision hidden_act 'relu' is not supported"),
    "patches": ({"vision_config": {"image_size": 8, "patch_size": 9}}, "patch_size 9 is larger than image_size 8"),
}


@pytest.mark.parametrize("changes, message", LLAVA_REFUSED.values(), ids=LLAVA_REFUSED)
def test_what_llava_could_say_and_is_not_supported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Share4VConfig.from_dict({"model_type": "llava", "text_config": {}, **changes})


def test_files_that_are_no_config_say_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config.json in .*: it is empty"):
        Share4VConfig.from_pretrained(tmp_path)
    for text, message in (("{", "is not valid JSON"), ("[1]", "contains a list, expected a JSON object")):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            Share4VConfig.from_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"config.json's text_config has fields that TextConfig does not know: hiden_size"
    ):
        Share4VConfig.from_dict({"model_type": "share4v", "projector_config": {}, "text_config": {"hiden_size": 1}})


def test_an_end_that_no_vocabulary_has_ends_nothing() -> None:
    assert original(eos_token_id=[2, -1, 32000]).text_config.eos_token_ids == (2,)
    assert original(eos_token_id=-1).text_config.eos_token_ids == ()


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        original().select_layer = -1


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_config_without_a_layout_has_the_oldest(dtype: str) -> None:
    config = dataclasses.replace(Share4VConfig(), quantization=dtype)
    assert config.stored_layout == "groups"
    matrices = [matrix for plan in language_plans(config, dtype)[1:-1] for matrix in plan.spec.matrices]
    assert {(matrix.dtype, matrix.input_group, matrix.hadamard) for matrix in matrices} == {(dtype, 32, 0)}


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"quantization_layout 'woven' is not supported for quantization 'int4'"):
        dataclasses.replace(Share4VConfig(), quantization="int4", quantization_layout="woven")
    with pytest.raises(ValueError, match=r"quantization_layout 'rotated' is not supported for quantization None"):
        dataclasses.replace(Share4VConfig(), quantization_layout="rotated")
