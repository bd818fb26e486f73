"""Other published models of this architecture, each as a small random checkpoint in its format, against transformers.

The config.json files have the fields of the published ones; only sizes are small. Nothing was downloaded. What public
sources confirm of them (searched in November 2026):

- liuhaotian/llava-v1.5-13b and -7b: every field of ORIGINAL_LLAVA and SIZES_13B, and `pad`, mm_hidden_size 1024 and
  mlp2x_gelu, in copies of the two config.json in the source code of other loaders and in a printed LlavaConfig.
- TinyLlama 1.1B: the sizes in TINY_LLAMA, in a copy of its config.json. Of bczhou/tiny-llava-v1-hf only the name, in
  TinyLLaVA_Factory's README.
- Mistral 7B v0.1: 32 layers, 8 key heads, 14336, epsilon 1e-05, sliding_window 4096 (its params.json, quoted in
  ggml-org/llama.cpp#3362). That BakLLaVA-1 has these sizes, a context of 32768 and mlp2x_gelu is said in an article.
- microsoft/llava-med-v1.5-mistral-7b: the model type llava_mistral (huggingface/transformers#37087); its window and
  rope_theta were not found.
- llava-hf/llava-1.5-13b-hf and bakLlava-v1-hf: no copy of config.json was found. transformers' converter, which wrote
  them, sets pad_token_id 32001 and image_token_index 32000, and pads the vocabulary to a multiple of 64 (32064).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.llava import IMAGE, Reference, Shape
from helpers.published_formats import write_llava, write_original
from transformers import LlamaConfig, MistralConfig

from mindone.models.share4v import Share4V, Share4VConfig, Tokenizer
from mindone.models.share4v.checkpoint import Checkpoint
from mindone.models.share4v.checkpoint.weights import expected_shapes
from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.generation.engine import Engine, Request
from mindone.models.share4v.hub import PRESETS, resolve
from mindone.models.share4v.training.loss import make_batch

CLIP = {"image_size": 28, "patch_size": 14, "num_hidden_layers": 2}
VISION = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
VICUNA = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064,
}
SIZES_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40}
SIZES_13B |= {"num_hidden_layers": 40, "num_key_value_heads": 40}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
TINY_LLAMA = {**VICUNA, "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 2048}
TINY_LLAMA |= {"num_hidden_layers": 22, "num_key_value_heads": 4}


def hf_config(text: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": VISION,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        **fields,
    }


# Published config.json -> parameters of the language model.
PUBLISHED = {
    "llava-hf/llava-1.5-7b-hf": (hf_config(VICUNA), 6_738_939_904),
    "llava-hf/llava-1.5-13b-hf": (hf_config({**VICUNA, **SIZES_13B}), 13_016_519_680),
    "llava-hf/bakLlava-v1-hf": (hf_config(MISTRAL), 7_242_256_384),
    "bczhou/tiny-llava-v1-hf": (hf_config(TINY_LLAMA), 1_100_310_528),
}
# The original format, as llava-v1.5, LLaVA-Med v1.5 and BakLLaVA-1 have it.
ORIGINAL: dict[str, Any] = {
    "freeze_mm_mlp_adapter": False,
    "freeze_mm_vision_resampler": False,
    "image_grid_pinpoints": None,
    "mm_resampler_type": None,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": False,
}
ORIGINAL |= {"max_length": 4096, "pretraining_tp": 1, "use_cache": True, "use_mm_proj": True}
ORIGINAL_LLAVA = {**ORIGINAL, "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}
ORIGINAL_MISTRAL = {**ORIGINAL, "model_type": "llava_mistral", "architectures": ["LlavaMistralForCausalLM"]}


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_size_of_the_model(name: str) -> None:
    data, parameters = PUBLISHED[name]
    config = Share4VConfig.from_dict(data)
    shapes = expected_shapes(config)[0]
    count = sum(int(np.prod(shape)) for weight, shape in shapes.items() if weight.startswith("language_model."))
    assert count == parameters and config.num_image_tokens == 576 and config.image_token_id == 32000


SHAPES = {
    "llama": Shape(CLIP, {"num_hidden_layers": 2, "rms_norm_eps": 1e-5}, seed=11),
    "tiny-llama": Shape(CLIP, {"num_hidden_layers": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}, seed=12),
    "mistral": Shape(
        CLIP,
        {"num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "sliding_window": 16},
        seed=13,
        language=MistralConfig,
    ),
}


@pytest.fixture(scope="module", params=SHAPES)
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference(SHAPES[request.param])


def published_hf(reference: Reference, directory: Path) -> Path:
    """As transformers wrote it when these models were published: names until 4.51, and fields with small sizes."""
    write_llava(reference, directory)
    written = json.loads((directory / "config.json").read_text())
    names = {"llama": TINY_LLAMA, "mistral": MISTRAL}[written["text_config"]["model_type"]]
    sizes = {"hidden_size", "num_attention_heads", "num_hidden_layers", *names}
    text = {name: written["text_config"][name] for name in sizes if name in written["text_config"]}
    vision = {name: written["vision_config"].get(name, value) for name, value in VISION.items()}
    config = hf_config(text, vision_config=vision, image_token_index=reference.image_token)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def published_original(reference: Reference, directory: Path) -> Path:
    """The main checkpoint, with the tower in the folder that its name leads to."""
    is_mistral = reference.shape.language is MistralConfig
    main = write_original(reference, directory, "float16", **(ORIGINAL_MISTRAL if is_mistral else ORIGINAL_LLAVA))
    (directory / "vit-tiny-l3").rename(directory / "clip-vit-large-patch14-336")
    return main


@pytest.mark.parametrize("write", [published_hf, published_original])
def test_logits_are_those_of_transformers(reference: Reference, tmp_path: Path, write: Any) -> None:
    model = Share4V.from_pretrained(write(reference, tmp_path / "model"))
    reference.reseed(1)
    prompt, images = [1, *reference.text(5), IMAGE, *reference.text(6)], reference.images(1)
    ids = np.where(np.array(prompt) == IMAGE, model.config.image_token_id, prompt)
    ours = model(input_ids=ids[None], pixel_values=images).logits.asnumpy()[0]
    theirs = reference.logits(prompt, images)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-4 if write is published_hf else 5e-2)


def test_a_window_of_attention_limits_the_context(tmp_path: Path) -> None:
    """Up to its length, attention within a window is attention to everything; beyond it, no answer is computed."""
    reference = Reference(SHAPES["mistral"])
    model = Share4V.from_pretrained(published_hf(reference, tmp_path / "model"))
    assert model.config.text_config.context_length == 16
    ids = np.array([[1, *reference.text(15)]])
    theirs = reference.logits(ids[0].tolist(), reference.images(0))
    np.testing.assert_allclose(model(input_ids=ids).logits.asnumpy()[0], theirs, rtol=0, atol=5e-4)
    longer = np.array([[1, *reference.text(16)]])
    with pytest.raises(ValueError, match="the prompt has 17 tokens with its images, but the model's context is 16"):
        model.generate(input_ids=longer)
    model.tokenizer = Tokenizer.from_pretrained("sharegpt4v-tiny")  # which an engine needs
    engine: Engine[int] = Engine(model, 1)
    engine.submit(Request(1, longer, GenerationSettings()))
    (completion,) = engine.step()
    assert "the model's context is 16" in str(completion.error)
    for compute in (
        lambda: model(input_ids=longer),
        lambda: model.prepare_inputs(input_ids=longer),
        lambda: make_batch(model, np.zeros((0, 3, 28, 28), np.float32), longer, np.ones_like(longer), longer),
    ):
        with pytest.raises(ValueError, match="17 tokens with its images, but the model"):
            compute()
    copied = Share4VConfig.from_dict(model.config.to_dict())
    assert copied == model.config and copied.text_config.sliding_window == 16


@pytest.mark.parametrize(
    ("fields", "window", "length"),
    [({}, 4096, 4096), ({"sliding_window": None}, None, 32768), ({"max_position_embeddings": 2048}, 4096, 2048)],
)
def test_mistrals_defaults_are_those_of_transformers(fields: dict[str, Any], window: Any, length: int) -> None:
    published = {**MISTRAL, **fields}
    text = Share4VConfig.from_dict(hf_config(published)).text_config
    theirs = MistralConfig(**published)
    assert theirs.sliding_window == window and text.context_length == length
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "kv_heads",
        "rope_theta",
    ):
        assert getattr(text, name) == getattr(theirs, name.replace("kv_heads", "num_key_value_heads"))
    unstated = {"model_type": "mistral"}  # transformers does not write what is its default
    assert (
        Share4VConfig.from_dict(hf_config(unstated)).text_config.intermediate_size == MistralConfig().intermediate_size
    )
    assert Share4VConfig.from_dict(hf_config(unstated)).text_config.kv_heads == MistralConfig().num_key_value_heads


def test_a_window_that_is_no_number() -> None:
    for value in (0, "long", 2.5):
        with pytest.raises(ValueError, match="sliding_window must be a positive integer"):
            Share4VConfig.from_dict(hf_config({**MISTRAL, "sliding_window": value}))


FULL = {
    **LlamaConfig(vocab_size=32000).to_dict(),
    **ORIGINAL_LLAVA,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"model_type": "llava_next", "text_config": {}}, "cuts images into tiles"),
        ({**FULL, "image_aspect_ratio": "anyres"}, "models that cut images into tiles"),
        ({**FULL, "mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type is 'spatial_unpad'.* LLaVA-1.6"),
        ({**FULL, "mm_resampler_type": "perceiver"}, "no resampler"),
        ({"model_type": "vipllava", "text_config": {}}, "several layers of the vision tower"),
        ({"model_type": "llava_onevision", "text_config": {}}, "LLaVA-OneVision"),
        ({**FULL, "architectures": ["LlavaQwenForCausalLM"]}, "'LlavaQwenForCausalLM', .*language model is a Qwen"),
        ({**FULL, "model_type": "moe_llava_llama"}, "mixture of experts"),
        ({**FULL, "model_type": "llava_mixtral"}, "mixture of experts"),
        ({**FULL, "moe": {"moe_enable": True}}, "mixture of experts"),
        ({"model_type": "tinyllava", "llm_model_name_or_path": "x"}, "SigLIP.*bczhou/tiny-llava-v1-hf loads"),
        ({**FULL, "architectures": ["TinyLlavaLlamaForCausalLM"]}, "SigLIP"),
        ({"model_type": "llava-phi", "hidden_size": 1}, "language model is a Phi"),
        (hf_config({"model_type": "qwen2"}), "text_config is a 'qwen2', expected 'llama' or 'mistral'"),
        (hf_config({"model_type": "mixtral"}), "text_config is a 'mixtral', expected"),
        (
            hf_config(MISTRAL, vision_config={"model_type": "pixtral"}),
            "vision tower is a 'pixtral', expected 'clip_vision_model': only CLIP's is supported",
        ),
        (hf_config(VICUNA, vision_feature_layer=[-2, -5]), "select_layer a list is not one of"),
    ],
)
def test_what_does_not_load_says_why(data: dict[str, Any], why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=why):
        Checkpoint.open(tmp_path, weights=False)


def test_a_tower_of_another_kind_says_what_it_is(tmp_path: Path) -> None:
    main = write_original(Reference(SHAPES["llama"]), tmp_path)
    tower = tmp_path / "vit-tiny-l3" / "config.json"
    tower.write_text(json.dumps({**json.loads(tower.read_text()), "model_type": "siglip_vision_model"}))
    with pytest.raises(ValueError, match="vision tower is a 'siglip_vision_model'"):
        Checkpoint.open(main)


def test_a_model_without_tokenizer_model_says_what_is_missing(tmp_path: Path) -> None:
    """LLaVA with LLaMA 3: its tokenizer is not a sentencepiece model."""
    from mindone.models.share4v import Share4VProcessor

    directory = published_hf(Reference(SHAPES["llama"]), tmp_path / "model")
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model"):
        Share4VProcessor.from_pretrained(directory)


def in_hugging_face_cache(directory: Path, repo: str, cache: Path) -> None:
    """Move a checkpoint to where huggingface_hub's download of a repository is."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c" * 40)
    (folder / "snapshots").mkdir()
    shutil.move(directory, folder / "snapshots" / ("c" * 40))


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b", "llava-1.5-7b-hf", "llava-1.5-13b-hf"])
def test_llava_1_5_is_loaded_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "huggingface"))
    reference = Reference(SHAPES["llama"])
    is_original = not name.endswith("-hf")
    main = (published_original if is_original else published_hf)(reference, tmp_path / "new")
    shutil.copy(resolve("sharegpt4v-tiny") / "tokenizer.model", main)
    tower = main.parent / "clip-vit-large-patch14-336" if is_original else main
    (tower / "preprocessor_config.json").write_text(json.dumps({"crop_size": 28, "size": 28}))
    parts = {PRESETS[name].repo: main, **({PRESETS["llava-1.5-vision-tower"].repo: tower} if is_original else {})}
    for repo, directory in parts.items():
        in_hugging_face_cache(directory, str(repo), tmp_path / "huggingface")
    model = Share4V.from_pretrained(name)
    assert model.config.image_aspect_ratio == ("pad" if is_original else "square")
    assert model.generate(input_ids=np.array([[1, 5, 6]]), max_new_tokens=2)
