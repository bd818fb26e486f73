"""AutoConfig, AutoModel, AutoProcessor: config.json decides; what it says is not guessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mindone.models.share4v import AutoConfig, AutoModel, AutoProcessor, Share4V, Share4VConfig, Share4VProcessor
from mindone.models.share4v.hub import HubError

VISION = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
TEXT = {"vocab_size": 402, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_config(directory: Path, **fields: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


@pytest.fixture
def llava(tmp_path: Path, vocabulary: Path) -> Path:
    """A checkpoint of LLaVA's form, written by transformers."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT), image_token_index=400
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "llava")
    shutil.copyfile(vocabulary, tmp_path / "llava" / "tokenizer.model")
    (tmp_path / "llava" / "added_tokens.json").write_text('{"<image>": 400, "<pad>": 401}')
    return tmp_path / "llava"


def test_own_form(checkpoint: Path) -> None:
    config = AutoConfig.from_pretrained(checkpoint)
    assert isinstance(config, Share4VConfig) and config == Share4VConfig.from_pretrained(checkpoint)
    model = AutoModel.from_pretrained(str(checkpoint))
    assert isinstance(model, Share4V) and model.config == config and model.dtype == "float32"
    assert isinstance(AutoProcessor.from_pretrained(checkpoint), Share4VProcessor)


def test_every_argument_reaches_the_model(checkpoint: Path) -> None:
    assert AutoModel.from_pretrained(checkpoint, dtype="float16").dtype == "float16"
    small = AutoModel.from_pretrained(checkpoint, dtype="int4", kv_cache_dtype="int8")
    assert (small.dtype, small.language_model.kv_cache_dtype) == ("int4", "int8")
    with pytest.raises(ValueError, match="none-such"):
        AutoModel.from_pretrained(checkpoint, language_backend="none-such")
    with pytest.raises(ValueError, match="none-such"):
        AutoModel.from_pretrained(checkpoint, vision_backend="none-such")
    with pytest.raises(ValueError, match="none-such"):
        AutoModel.from_pretrained(checkpoint, vision_tower="none-such")


def test_llava_form(llava: Path) -> None:
    config = AutoConfig.from_pretrained(llava)
    assert isinstance(config, Share4VConfig)
    assert (config.image_token_id, config.text_config.hidden_size, config.vision_config.patch_size) == (400, 16, 14)
    model = AutoModel.from_pretrained(llava, language_backend="llama")
    weights = dict(model.parameters_and_names())
    theirs = LlavaForConditionalGeneration.from_pretrained(llava).state_dict()["lm_head.weight"]
    np.testing.assert_array_equal(weights["language_model.lm_head.weight"].asnumpy(), theirs.numpy())
    assert AutoProcessor.from_pretrained(llava).image_token_id == 400


def test_original_form_takes_the_vision_tower_that_is_named(tmp_path: Path) -> None:
    directory = write_config(tmp_path / "main", model_type="share4v", **TEXT, mm_hidden_size=8, mm_vision_tower="x/y")
    tower = write_config(tmp_path / "tower", model_type="clip_vision_model", **VISION)
    (tower / "model.safetensors").touch()
    config = AutoConfig.from_pretrained(directory, vision_tower=tower)
    assert (config.vision_config.hidden_size, config.vision_config.image_size) == (8, 28)


@pytest.mark.parametrize("auto", [AutoConfig, AutoModel, AutoProcessor])
def test_an_unknown_model_type_names_the_known_ones(auto: type, tmp_path: Path) -> None:
    directory = write_config(tmp_path / "other", model_type="blip-2", text_config={})
    with pytest.raises(ValueError, match=r"'blip-2'.*llava, llava_llama, llava_mistral, share4v"):
        auto.from_pretrained(directory)
    with pytest.raises(ValueError, match=r"model_type None"):
        auto.from_pretrained(write_config(tmp_path / "none", hidden_size=8))


@pytest.mark.parametrize("auto", [AutoConfig, AutoModel, AutoProcessor])
def test_nothing_there(auto: type, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        auto.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        auto.from_pretrained(tmp_path / "missing")
    with pytest.raises(HubError, match="sharegpt4v-7b"):
        auto.from_pretrained("sharegpt4v-7bb")
    with pytest.raises(HubError, match="local_files_only"):
        auto.from_pretrained("someone/some-model", cache_dir=tmp_path / "cache", local_files_only=True)
