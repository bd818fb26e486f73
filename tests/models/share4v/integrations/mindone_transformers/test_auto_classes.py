"""The Auto classes of mindone.transformers 0.5.0 for Share4V, compared with this project's own classes."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import transformers
from PIL import Image

from mindone.models.share4v import Share4V, Share4VConfig, Share4VProcessor
from mindone.models.share4v.processing.image_processor import ImageProcessor

NAME = "sharegpt4v-tiny"
QUESTIONS = ("Describe this image", "What color is the background?")


def chat(*sources: dict[str, Any], question: str = QUESTIONS[0]) -> list[dict[str, Any]]:
    parts = [{"type": "image", **source} for source in sources]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def test_auto_config_wraps_share4v_config(zoo: Any, directory: str) -> None:
    ours = Share4VConfig.from_pretrained(directory)
    for library in (zoo, transformers):
        config = library.AutoConfig.from_pretrained(directory)
        assert config.share4v == ours and config.model_type == "share4v"
        assert config.text_config.hidden_size == ours.text_config.hidden_size
        assert config.text_config.eos_token_id == ours.text_config.eos_token_id
        assert config.vision_config.image_size == ours.vision_config.image_size
        assert library.AutoConfig.for_model("share4v").share4v == Share4VConfig()


def test_saved_config_is_read_by_both_classes(zoo: Any, directory: str, tmp_path: Path) -> None:
    config = zoo.AutoConfig.from_pretrained(directory)
    config.save_pretrained(tmp_path)
    assert Share4VConfig.from_pretrained(tmp_path) == config.share4v
    assert zoo.AutoConfig.from_pretrained(tmp_path).share4v == config.share4v
    assert json.loads(copy.deepcopy(config).to_json_string()) == json.loads(json.dumps(config.share4v.to_dict()))


@pytest.mark.parametrize("auto", ["AutoModelForImageTextToText", "AutoModelForVision2Seq"])
def test_auto_models_generate_what_share4v_does(auto: str, zoo: Any, directory: str, scenes: list[str]) -> None:
    model = getattr(zoo, auto).from_pretrained(directory)
    processor = zoo.AutoProcessor.from_pretrained(directory)
    assert isinstance(processor, zoo.ProcessorMixin) and isinstance(processor, Share4VProcessor)
    inputs = processor(images=scenes[:2], text=list(QUESTIONS), return_tensors="ms")
    assert all(isinstance(value, ms.Tensor) for value in inputs.values())
    native = Share4V.from_pretrained(directory)
    expected = native.generate(**Share4VProcessor.from_pretrained(directory)(scenes[:2], list(QUESTIONS)))
    rows = model.generate(**inputs).asnumpy()
    prompts = inputs["input_ids"].asnumpy()
    np.testing.assert_array_equal(rows[:, : prompts.shape[1]], prompts)
    longest, end = max(map(len, expected)), native.config.text_config.eos_token_id
    assert len({len(ids) for ids in expected}) == 2  # one row is padded
    assert rows[:, prompts.shape[1] :].tolist() == [ids + [end] * (longest - len(ids)) for ids in expected]
    assert processor.batch_decode(rows[:, prompts.shape[1] :]) == processor.batch_decode(expected)
    np.testing.assert_array_equal(model(**inputs).logits.asnumpy(), native(**inputs).logits.asnumpy())


def test_auto_model_passes_load_options(zoo: Any, directory: str) -> None:
    load = zoo.AutoModelForImageTextToText.from_pretrained
    assert load(directory, dtype=ms.float16).share4v.dtype == "float16"
    assert load(directory, dtype="int8", kv_cache_dtype="float32").share4v.dtype == "int8"
    cells = load(directory, language_backend="llama", vision_backend="clip", local_files_only=True).share4v
    assert len(list(cells.get_parameters())) > 50
    assert load(directory, device_map="auto", mindspore_dtype=ms.float16).share4v.dtype == "float16"
    with pytest.raises(ValueError, match=r"revision 'v2' was given, but .* is a directory"):
        load(directory, revision="v2")
    with pytest.raises(TypeError, match="Did you mean 'language_backend'"):
        load(directory, languge_backend="llama")
    with pytest.raises(ValueError, match=r"device_map='cuda' is not supported: .*mindspore.set_device"):
        load(directory, device_map="cuda")


def test_the_generation_config_of_a_model_is_used(zoo: Any, directory: str, scenes: list[str]) -> None:
    model = zoo.AutoModelForImageTextToText.from_pretrained(directory)
    inputs = zoo.AutoProcessor.from_pretrained(directory)(images=scenes[0])
    length = inputs["input_ids"].shape[1]
    model.generation_config.max_new_tokens = 3
    assert model.generate(**inputs).shape[1] == length + 3
    rows = model.generate(**inputs, do_sample=True, seed=1, num_return_sequences=2, no_repeat_ngram_size=3, min_p=0.1)
    assert rows.shape == (2, length + 3)


def test_auto_model_from_config_can_be_trained(zoo: Any, directory: str) -> None:
    config = zoo.AutoConfig.from_pretrained(directory)
    model = zoo.AutoModelForImageTextToText.from_config(config)
    names = [parameter.name for parameter in Share4V(config.share4v).trainable_params()]
    assert [parameter.name for parameter in model.trainable_params()] == names
    with pytest.raises(ValueError, match="was not loaded from a checkpoint: pass processor="):
        _ = model.processor


def test_saved_model_loads_in_all_classes(zoo: Any, directory: str, tmp_path: Path, scenes: list[str]) -> None:
    model = zoo.AutoModelForVision2Seq.from_pretrained(directory)
    processor = zoo.AutoProcessor.from_pretrained(directory)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = zoo.AutoModelForVision2Seq.from_pretrained(tmp_path)
    assert isinstance(zoo.AutoProcessor.from_pretrained(tmp_path), type(processor))
    inputs = processor(images=scenes[0])
    expected = model.generate(**inputs).asnumpy()
    np.testing.assert_array_equal(again.generate(**inputs).asnumpy(), expected)
    native = Share4V.from_pretrained(tmp_path).generate(**Share4VProcessor.from_pretrained(tmp_path)(scenes[0]))
    assert native[0] == expected[0, inputs["input_ids"].shape[1] :].tolist()
    with pytest.raises(ValueError, match="as safetensors only"):
        model.save_pretrained(tmp_path, safe_serialization=False)


@pytest.mark.parametrize("use_fast", [True, False])
def test_auto_tokenizer_ids_equal_share4v(use_fast: bool, directory: str) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(directory, use_fast=use_fast)
    ours = Share4VProcessor.from_pretrained(directory).tokenizer
    prompt = Share4VProcessor.from_pretrained(directory).prompt("What is this?", 1)
    for text in (*QUESTIONS, prompt, "Ünïcødé, 日本 and 😀", "line\nline\tend", "a</s>b", ""):
        ids = ours.encode(text)
        assert theirs.encode(text) == ids
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


@pytest.mark.parametrize("use_fast", [True, False])
def test_auto_tokenizer_is_found_by_model_type(use_fast: bool, directory: str, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(Path(directory) / name, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, use_fast=use_fast)
    assert type(tokenizer).__name__ == ("LlamaTokenizerFast" if use_fast else "LlamaTokenizer")
    assert tokenizer.encode(QUESTIONS[0]) == Share4VProcessor.from_pretrained(directory).tokenizer.encode(QUESTIONS[0])


@pytest.mark.parametrize("aspect_ratio", ["pad", "square"])
def test_auto_image_processor_pixels_equal_share4v(
    aspect_ratio: str, zoo: Any, directory: str, tmp_path: Path, scenes: list[str]
) -> None:
    shutil.copytree(directory, tmp_path / "copy")
    stated_path = tmp_path / "copy" / "preprocessor_config.json"
    stated = json.loads(stated_path.read_text())
    del stated["image_processor_type"]  # so the model type decides
    stated_path.write_text(json.dumps({**stated, "image_aspect_ratio": aspect_ratio}))
    pictures = [Image.open(path) for path in scenes]
    pictures.append(Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 400, 3), dtype=np.uint8)))
    ours = ImageProcessor.from_pretrained(tmp_path / "copy")
    expected = np.stack([ours(picture) for picture in pictures])
    theirs = zoo.AutoImageProcessor.from_pretrained(tmp_path / "copy")
    theirs.save_pretrained(tmp_path / "saved")
    for processor in (theirs, zoo.AutoImageProcessor.from_pretrained(tmp_path / "saved")):
        np.testing.assert_array_equal(processor(pictures, return_tensors="np")["pixel_values"], expected)
    np.testing.assert_array_equal(ImageProcessor.from_pretrained(tmp_path / "saved")(pictures[0]), expected[0])


def test_complete_prompt_is_not_changed(zoo: Any, directory: str, scenes: list[str]) -> None:
    processor = zoo.AutoProcessor.from_pretrained(directory)
    expected = processor(images=scenes[0], text=QUESTIONS[0])
    prompt = processor.apply_chat_template(chat({}), add_generation_prompt=True)
    assert prompt == processor.prompt(QUESTIONS[0], 1)
    for text in (prompt, str(prompt), f"{prompt} "[:-1]):
        assert processor(images=scenes[0], text=text)["input_ids"].tolist() == expected["input_ids"].tolist()
    bare, system = "USER: <image>\nWhat is this? ASSISTANT:", prompt.partition("USER:")[0]
    assert len(system) > 40  # it is put in front of a complete prompt that lacks it
    ids = [processor(images=scenes[0], text=text)["input_ids"].tolist() for text in (bare, system + bare)]
    assert ids[0] == ids[1]
    with pytest.raises(ValueError, match="has 0 <image> but 1 images"):
        processor(images=scenes[0], text="USER: What is this? ASSISTANT:")


def test_end_of_chat_templates(zoo: Any, directory: str) -> None:
    processor = zoo.AutoProcessor.from_pretrained(directory)
    begun = [*chat({}), {"role": "assistant", "content": [{"type": "text", "text": "There is "}]}]
    question = processor.apply_chat_template(chat({}), add_generation_prompt=True)
    assert processor.apply_chat_template(begun, continue_final_message=True) == f"{question} There is"
    assert processor.apply_chat_template(begun) == f"{question} There is </s>"
    assert processor.apply_chat_template([chat({}), begun])[0] + "ASSISTANT:" == question
    assert processor.apply_chat_template(chat({}), "share4v_v0", add_generation_prompt=True).endswith("###Assistant:")
    with pytest.raises(ValueError, match="last message is the assistant's"):
        processor.apply_chat_template(chat({}), continue_final_message=True)
    with pytest.raises(ValueError, match="choose one"):
        processor.apply_chat_template(begun, add_generation_prompt=True, continue_final_message=True)


def test_chats_are_tokenized_with_their_images(zoo: Any, directory: str, scenes: list[str]) -> None:
    processor = zoo.AutoProcessor.from_pretrained(directory)
    chats = [chat({"path": scenes[0]}), chat({"path": scenes[1]}, question=QUESTIONS[1])]
    options = {"add_generation_prompt": True, "tokenize": True, "return_tensors": "np"}
    inputs = processor.apply_chat_template(chats, return_dict=True, **options)
    expected = Share4VProcessor.from_pretrained(directory)(scenes[:2], list(QUESTIONS))
    assert set(inputs) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(inputs[name], value)
    np.testing.assert_array_equal(processor.apply_chat_template(chats, **options), expected["input_ids"])
    assert processor.post_process_image_text_to_text(inputs["input_ids"])[0].endswith("Describe this image ASSISTANT:")
