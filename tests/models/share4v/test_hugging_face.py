"""What users of Hugging Face's libraries type: arguments, objects and streamers, on the embedded model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from helpers.llava import IMAGE, Reference
from helpers.published_formats import write_original
from PIL import Image
from safetensors import safe_open
from transformers import TextIteratorStreamer, TextStreamer

from mindone.models.share4v import AutoConfig, AutoModel, AutoProcessor, Share4V, Share4VProcessor, Tokenizer
from mindone.models.share4v.checkpoint import CheckpointError
from mindone.models.share4v.generation.arguments import SETTING_NAMES, GenerationConfig
from mindone.models.share4v.hub import RepoOptions, resolve
from mindone.models.share4v.hugging_face import ARGUMENTS, GENERATE, _say_once, check_arguments, split_arguments
from mindone.models.share4v.load_options import LoadOptions, dtype_name, option_names
from mindone.models.share4v.processing.image_loading import ImageLoadError
from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.captioning import ImageToTextPipeline

Pair = tuple[Reference, Share4V]
TINY = "sharegpt4v-tiny"


@pytest.fixture(scope="module")
def model() -> Share4V:
    return Share4V.from_pretrained(TINY)


@pytest.fixture(scope="module")
def processor() -> Share4VProcessor:
    return Share4VProcessor.from_pretrained(TINY)


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return Image.fromarray(np.full((96, 96, 3), 200, np.uint8))


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What was said once, as if nothing had been said before; the list grows."""
    _say_once.cache_clear()
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mindone.models.share4v.hugging_face")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


# The table


def test_the_table_has_each_argument_of_a_function_once() -> None:
    pairs = [(row.name, place) for row in ARGUMENTS for place in row.places]
    assert len(pairs) == len(set(pairs))
    assert not {row.name for row in ARGUMENTS if GENERATE in row.places} & set(SETTING_NAMES)
    for row in ARGUMENTS:
        assert not (row.note and row.instead), f"{row.name} is both ignored and refused"
        assert row.note or row.instead or row.is_harmless("anything"), f"{row.name} needs a note or advice"


def test_harmless_values_are_accepted_silently_and_notes_are_said_once(notes: list[str]) -> None:
    check_arguments(GENERATE, {"use_cache": True, "pad_token_id": 0, "stopping_criteria": None}, ())
    assert notes == []
    for _ in range(2):
        check_arguments(GENERATE, {"use_cache": False}, ())
    assert notes == ["use_cache=False has no effect: keys and values are always cached"]


def test_unknown_and_unsupported_arguments_say_what_to_use() -> None:
    with pytest.raises(TypeError, match=r"unknown argument of generate 'max_new_token'.*Did you mean 'max_new_tokens'"):
        split_arguments(GENERATE, {"max_new_token": 3}, SETTING_NAMES, {})
    with pytest.raises(ValueError, match=r"stopping_criteria=\[1\] is not supported: pass stop="):
        split_arguments(GENERATE, {"stopping_criteria": [1]}, SETTING_NAMES, {})
    with pytest.raises(ValueError, match="stop is given twice, also as stop_strings"):
        split_arguments(GENERATE, {"stop": "a", "stop_strings": "b"}, SETTING_NAMES, {"stop_strings": "stop"})


# Loading


@pytest.mark.parametrize(
    "dtype",
    [ms.float16, np.float16, np.dtype("float16"), torch.float16, "float16", "torch.float16", "fp16", "half"],
    ids=str,
)
def test_types_of_every_library_mean_their_names(dtype: Any) -> None:
    assert dtype_name(dtype) == "float16"
    assert LoadOptions(dtype=dtype).dtype == "float16"


def test_arguments_of_loading(notes: list[str]) -> None:
    loaded = Share4V.from_pretrained(
        TINY,
        torch_dtype=torch.float16,
        device_map="auto",
        trust_remote_code=True,
        low_cpu_mem_usage=True,
        revision=None,
    )
    assert loaded.dtype == "float16" and loaded.half() is loaded and notes == []
    assert AutoModel.from_pretrained(TINY, dtype="auto", device_map={"": "cpu"}).dtype == "float32"
    assert AutoProcessor.from_pretrained(TINY, use_fast=True, trust_remote_code=True, revision="main").conversation
    assert AutoConfig.from_pretrained(TINY, trust_remote_code=True).model_type == "share4v"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device_map": "cuda"}, ValueError, r"device_map='cuda' is not supported: .*mindspore.set_device"),
        ({"load_in_4bit": True}, ValueError, "load_in_4bit=True is not supported: pass dtype='int4'"),
        ({"quantization_config": {}}, ValueError, "weights are quantized by dtype"),
        ({"use_auth_token": "x"}, ValueError, "pass token="),
        ({"torch_dtype": "float16", "dtype": "float32"}, ValueError, "dtype is given twice, also as torch_dtype"),
        ({"languge_backend": "auto"}, TypeError, "Did you mean 'language_backend'"),
        ({"dtype": "float17"}, ValueError, "float17"),
    ],
    ids=str,
)
def test_refused_arguments_of_loading(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Share4V.from_pretrained(TINY, **arguments)
    with pytest.raises(error, match=message):
        pipeline("image-to-text", TINY, **arguments)


def test_a_revision_needs_a_repository(tmp_path: Path) -> None:
    for name in (TINY, tmp_path):
        assert resolve(name, repo_options=RepoOptions("main")) == resolve(name)
        with pytest.raises(ValueError, match=r"revision 'v2' was given, but .* which has none: leave revision out"):
            resolve(name, repo_options=RepoOptions("v2"))
    for options in (RepoOptions("a b"), RepoOptions("../x"), RepoOptions(subfolder="../x"), RepoOptions(token=3)):
        with pytest.raises(ValueError, match=r"malformed|token must be"):
            resolve("owner/name", repo_options=options)
    (tmp_path / "inner").mkdir()
    assert resolve(tmp_path, repo_options=RepoOptions(subfolder="inner")) == tmp_path / "inner"


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(LoadOptions(token="secret"))
    assert "token" in option_names(LoadOptions)


# Objects


def test_the_model_has_the_methods_that_users_call(model: Share4V) -> None:
    assert model.device == "cpu" and model.eval() is model and model.to("cpu") is model and model.to(model.device)
    with safe_open(resolve(TINY) / "model.safetensors", "numpy") as file:
        names = list(file.keys())
        sizes = [int(np.prod(file.get_slice(name).get_shape())) for name in names]
    assert model.num_parameters() == sum(sizes)
    with pytest.raises(ValueError, match="device 'cuda' is not the one in use"):
        model.to("cuda")


@pytest.mark.parametrize("backend", ["kernels", "mindspore"])
def test_a_model_is_converted_in_place(pair_of: Callable[..., Pair], tmp_path: Path, backend: str) -> None:
    """Its answers and weights are those of the checkpoint that is loaded in that type."""
    reference, _ = pair_of("small")  # one layer: MindSpore compiles each of the models
    path = write_original(reference, tmp_path, "float16")
    load = partial(Share4V.from_pretrained, path, language_backend=backend, vision_backend=backend)
    model, half = load(), load(dtype="float16")
    rng = np.random.default_rng(0)
    ids = np.array([[1, *rng.integers(3, 90, 9), IMAGE, *rng.integers(3, 90, 6)]])
    inputs = {"input_ids": ids, "pixel_values": rng.standard_normal((1, 3, 28, 28)).astype(np.float32)}

    def logits(one: Share4V) -> np.ndarray:
        return np.asarray(one(**inputs).logits.asnumpy())

    single, wanted = logits(model), logits(half)
    assert model.half() is model and model.dtype == "float16"
    np.testing.assert_array_equal(logits(model), wanted)
    assert model.generate(**inputs, max_new_tokens=8) == half.generate(**inputs, max_new_tokens=8)
    types = {name: str(one.dtype) for name, one in model.parameters_and_names()}
    assert types == {name: str(one.dtype) for name, one in half.parameters_and_names()}
    assert ("Float16" in types.values()) == (backend == "mindspore")
    np.testing.assert_array_equal(logits(model.float()), single)  # the checkpoint's weights are float16
    assert model.dtype == "float32" and load().to(np.float32).to("cpu").dtype == "float32"


@pytest.mark.parametrize("backend", ["kernels", "mindspore"])
def test_a_conversion_that_fails_leaves_the_model_as_it_was(
    processor: Share4VProcessor, scene: Image.Image, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    from mindone.models.share4v import backends, modeling
    from mindone.models.share4v.checkpoint import casting

    model = Share4V.from_pretrained(TINY, language_backend=backend, vision_backend=backend)
    inputs = processor(images=scene, text="Describe this image")
    cache, parameters = model.image_cache, model.parameters_dict()
    wanted = model.generate(**inputs, max_new_tokens=8) if backend == "kernels" else None
    chosen = backends.choose_components("float16", *model._choices)
    steps = [
        (chosen.vision_tower, "__init__"),
        (chosen.language_model, "__init__"),
        (backends, "make_projector"),
        (casting, "fill_parameters"),
        (modeling, "ImageFeatures"),
        *([(casting, "fill")] if backend == "kernels" else []),
    ]
    for owner, name in steps:
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, failing)
            with pytest.raises(MemoryError, match="injected"):
                model.half()
        assert model.dtype == "float32" and model.image_cache is cache, name
        assert wanted is None or model.generate(**inputs, max_new_tokens=8) == wanted, name
        assert all(one is parameters[key] for key, one in model.parameters_dict().items()), name
    if backend == "kernels":  # the last component fails when the others are filled
        calls: list[object] = []
        real = casting.fill

        def fail_at_last(*arguments: object) -> None:
            calls.append(arguments)
            if len(calls) == len(model.packed_components()):
                failing()
            real(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(casting, "fill", fail_at_last)
            with pytest.raises(MemoryError, match="injected"):
                model.half()
        assert len(calls) > 1 and model.generate(**inputs, max_new_tokens=8) == wanted
    assert model.half().dtype == "float16"


def failing(*arguments: object, **options: object) -> None:
    raise MemoryError("injected")


def test_what_is_not_converted() -> None:
    model = Share4V.from_pretrained(TINY, dtype="int8")
    for wanted in ("float16", "int4"):
        with pytest.raises(ValueError, match=rf"weights of int8 are not .* from_pretrained\(..., dtype='{wanted}'\)"):
            model.to(wanted)
    assert model.to("int8") is model
    model = Share4V.from_pretrained(TINY, language_backend="mindspore")
    with pytest.raises(ValueError, match="'bfloat16' needs the CPU kernels"):
        model.bfloat16()
    model = Share4V.from_pretrained(TINY, vision_backend="mindspore")
    parameter = next(iter(model.vision_tower.get_parameters()))
    matrix = next(one for one in model.vision_tower.get_parameters() if one.ndim > 1)
    matrix[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"values up to 1e\+06, too large for float16"):
        model.half()
    assert model.dtype == "float32" and next(iter(model.vision_tower.get_parameters())) is parameter


def test_the_generation_config_is_used(model: Share4V, processor: Share4VProcessor, scene: Image.Image) -> None:
    inputs = processor(images=scene).to(model.device, torch.float16)
    try:
        model.generation_config.max_new_tokens = 3
        assert len(model.generate(**inputs)[0]) == 3
        assert len(model.generate(**inputs, max_new_tokens=5)[0]) == 5
        assert len([piece for piece in model.stream(**inputs) if piece.token_id is not None]) == 3
        captioner = pipeline("image-to-text", model, processor)
        model.generation_config.num_beams = 2
        assert captioner(scene, max_new_tokens=4)[0] == captioner(scene, max_new_tokens=4, num_beams=2)[0]
        with pytest.raises(ValueError, match="beam search cannot be streamed"):
            model.stream(**inputs)
        with pytest.raises(ValueError, match="temperature must be a number"):
            model.generation_config.temperature = -1
        with pytest.raises(TypeError, match="Did you mean 'num_beams'"):
            model.generation_config.num_beam = 2
        assert model.generation_config.top_k == 0 and model.generation_config.to_diff_dict() == {
            "max_new_tokens": 3,
            "num_beams": 2,
        }
    finally:
        model.generation_config = GenerationConfig()


def test_files_that_save_pretrained_writes_are_read(processor: Share4VProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = Share4VProcessor.from_pretrained(tmp_path)
    assert repr(again) == repr(processor) and again.conversation == processor.conversation
    question = {"text": "What is this?", "images": np.zeros((9, 9, 3), np.uint8)}
    for name, values in processor(**question).items():
        np.testing.assert_array_equal(again(**question)[name], values)
    by_name = Tokenizer.from_pretrained(TINY)
    assert by_name("a red")["input_ids"] == Tokenizer.from_pretrained(tmp_path)("a red")["input_ids"]
    config = AutoConfig.from_pretrained(TINY)
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(TINY) == config == type(config).from_pretrained(tmp_path)
    assert type(processor.image_processor).from_pretrained(TINY) == processor.image_processor


def test_push_to_hub_uploads_what_save_pretrained_writes(
    model: Share4V, processor: Share4VProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    calls: list[Any] = []

    class Api:
        def __init__(self, **options: Any) -> None:
            calls.append(options)

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            calls.append((repo_id, options))
            return type("Created", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> Any:
            calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir()), commit_message))
            return type("Commit", (), {"commit_url": "the commit"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert model.push_to_hub("mine", private=True, token="t") == "the commit"
    assert processor.push_to_hub("mine", commit_message="processor") == "the commit"
    assert calls[0]["token"] == "t" and calls[1] == ("mine", {"private": True, "exist_ok": True})
    assert calls[2] == ("me/mine", ["config.json", "model.safetensors"], "Upload with share4v")
    assert calls[5][1:] == (
        ["preprocessor_config.json", "processor_config.json", "tokenizer.model", "tokenizer_config.json"],
        "processor",
    )


# Generation


def test_transformers_streamers_receive_the_answer(
    model: Share4V, processor: Share4VProcessor, scene: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = processor(images=scene)
    ids = model.generate(**inputs, max_new_tokens=12)
    text = processor.tokenizer.decode(ids[0])
    capsys.readouterr()
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    assert model.generate(**inputs, max_new_tokens=12, streamer=streamer) == ids
    assert capsys.readouterr().out.strip() == text
    with_prompt = TextStreamer(processor.tokenizer)
    model.generate(**inputs, max_new_tokens=12, streamer=with_prompt)
    assert capsys.readouterr().out.strip().endswith(text)
    iterator = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=300)
    options = {**inputs, "max_new_tokens": 12, "streamer": iterator}
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    assert "".join(iterator).strip() == text
    thread.join()
    captioner = pipeline("image-to-text", model, processor)
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True)
    caption = captioner(scene, max_new_tokens=12, streamer=streamer)[0]["generated_text"]
    assert capsys.readouterr().out.strip() == caption == text.strip()


def test_a_streamer_is_ended_after_an_error(model: Share4V, processor: Share4VProcessor) -> None:
    iterator = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=300)
    with pytest.raises(ValueError, match="a streamer takes one sequence, got 2"):
        model.generate(**processor(text=["Why?", "What?"]), streamer=iterator)
    assert "".join(iterator) == ""


def test_arguments_of_generate(
    model: Share4V, processor: Share4VProcessor, scene: Image.Image, notes: list[str]
) -> None:
    inputs = processor(images=scene, text="Describe this image", return_tensors="pt", padding=True)
    assert isinstance(inputs.pixel_values, torch.Tensor)
    plain = model.generate(**processor(images=scene), max_new_tokens=6)
    given = {"use_cache": True, "pad_token_id": 0, "top_p": None, "stop_strings": None, "early_stopping": False}
    assert model.generate(**inputs, max_new_tokens=6, **given) == plain
    assert notes == []
    for arguments, message in (
        ({"generation_config": object()}, "set model.generation_config"),
        ({"stopping_criteria": [object()]}, "pass stop="),
        ({"max_length": 9}, "pass max_new_tokens"),
        ({"return_dict_in_generate": True}, "finish_reasons"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, **arguments)


# Pipelines


def test_arguments_at_construction_are_defaults_of_calls(scene: Image.Image, notes: list[str]) -> None:
    captioner = pipeline(
        "image-to-text",
        TINY,
        device=-1,
        torch_dtype="auto",
        model_kwargs={"kv_cache_dtype": "float16", "low_cpu_mem_usage": True},
        trust_remote_code=True,
        use_fast=True,
        batch_size=2,
        max_new_tokens=4,
        generate_kwargs={"do_sample": True, "seed": 1},
        timeout=3.0,
    )
    assert notes == [] and captioner.defaults.batch_size == 2
    assert len(captioner.processor.tokenizer(captioner(scene)[0]["generated_text"])["input_ids"]) <= 5
    own = captioner([scene, scene], max_new_tokens=6, do_sample=False)
    plain = pipeline("image-to-text", captioner.model, captioner.processor)
    assert own == plain([scene, scene], max_new_tokens=6) and own[0] == own[1]
    assert captioner(scene, generate_kwargs={"seed": 1}) == plain(scene, max_new_tokens=4, do_sample=True, seed=1)
    with pytest.raises(ValueError, match="do_sample is given twice"):
        plain(scene, do_sample=True, generate_kwargs={"do_sample": True})
    with pytest.raises(TypeError, match=r"unknown argument of pipeline call 'temprature'.*Did you mean 'temperature'"):
        plain(scene, temprature=1.0)
    with pytest.raises(ValueError, match="max_new_tokens must be an integer"):
        pipeline("image-to-text", TINY, max_new_tokens=0)
    with pytest.raises(ValueError, match="dtype is given twice, as an argument and in model_kwargs"):
        pipeline("image-to-text", TINY, dtype="int8", model_kwargs={"dtype": "int8"})
    with pytest.raises(TypeError, match="Did you mean 'batch_size'"):
        pipeline("image-to-text", TINY, batchsize=1)


def test_further_ids_that_end_an_answer(model: Share4V, processor: Share4VProcessor, scene: Image.Image) -> None:
    inputs = processor(images=scene, text="Describe this image")
    ids = model.generate(**inputs, max_new_tokens=12)[0]
    end = ids[5]
    wanted = ids[: ids.index(end)]
    for given in (end, [end], (end, 639), np.array([end])):
        answer = model.generate(**inputs, max_new_tokens=12, eos_token_id=given)
        assert answer == [wanted] and answer.finish_reasons == ["eos"]
    assert model.generate(**inputs, max_new_tokens=12, eos_token_id=end, num_beams=2) is not None
    own = model.generate(**inputs, max_new_tokens=300, eos_token_id=model.config.text_config.vocab_size - 1)
    assert own == model.generate(**inputs, max_new_tokens=300) and own.finish_reasons == ["eos"]
    captioner = pipeline("image-to-text", model, processor, generate_kwargs={"eos_token_id": end})
    assert captioner(scene, max_new_tokens=12)[0]["generated_text"] == processor.decode(wanted)
    assert "".join(piece.text for piece in model.stream(**inputs, max_new_tokens=12, eos_token_id=[end])).strip() == (
        processor.decode(wanted)
    )
    for wrong, message in ((-1, "must be a token id or a list"), ("</s>", "must be a token id"), (10**9, "vocabulary")):
        with pytest.raises(ValueError, match=f"eos_token_id .*{message}"):
            model.generate(**inputs, eos_token_id=wrong)


def test_lines_of_older_examples(
    model: Share4V, processor: Share4VProcessor, scene: Image.Image, tmp_path: Path
) -> None:
    """The text first, types as arguments of `to`, names of other pipelines' arguments, and torch's methods."""
    prompt = "USER: <image>\nDescribe this image\nASSISTANT:"
    wanted = processor(images=scene, text=prompt)
    for inputs in (processor(prompt, scene), processor([prompt], [scene])):
        assert inputs.input_ids.tolist() == wanted.input_ids.tolist()
        np.testing.assert_array_equal(inputs.pixel_values, wanted.pixel_values)
    assert wanted.to("cpu", torch.float16).to(torch.float16) is wanted
    assert processor.batch_decode([[5]], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert model.cpu() is model and model.train() is model and model.training and not model.eval().training
    with pytest.raises(ValueError, match="device 'cuda' is not the one in use"):
        model.cuda()
    model.save_pretrained(tmp_path / "saved", safe_serialization=True)
    with pytest.raises(ValueError, match="safetensors only"):
        model.save_pretrained(tmp_path / "other", safe_serialization=False)
    captioner = pipeline("image-to-text", model, processor)
    refused: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
        (captioner, {"images": scene}, "pass the image, or a list of images, as the first argument"),
        (partial(captioner, scene), {"text": "Why?"}, "pass prompt="),
        (partial(captioner, scene), {"question": "Why?"}, "pass prompt= to 'image-to-text'"),
        (model.generate, {"inputs": [[1]]}, "pass input_ids="),
        (model.generate, {"images": [scene]}, "pass pixel_values="),
    ]
    for call, arguments, advice in refused:
        with pytest.raises(ValueError, match=advice):
            call(**arguments)


def test_the_limit_of_pixels_is_an_argument_wherever_images_are_given(
    processor: Share4VProcessor, model: Share4V, tmp_path: Path
) -> None:
    path = str(tmp_path / "a.png")
    Image.new("RGB", (20, 10)).save(path)
    calls: list[Callable[..., Any]] = [processor.image_processor, processor]
    for task in ("image-to-text", "image-text-to-text"):
        made = pipeline(task, model, processor, max_new_tokens=1)
        calls.append(partial(made, [path], "Why?") if task == "image-text-to-text" else made)
        strict = pipeline(task, model, processor, max_image_pixels=199)
        with pytest.raises(ImageLoadError, match="more than the limit of 199"):
            strict([path], text=["Why?"]) if task == "image-text-to-text" else strict(path)
    for call in calls:
        given = () if isinstance(call, partial) else (path,)
        with pytest.raises(ImageLoadError, match=r"20 x 10 pixels are more than the limit of 100; .* to 200$"):
            call(*given, max_image_pixels=100)
        assert call(*given, max_image_pixels=200) is not None
    with pytest.raises(ValueError, match="max_image_pixels must be an integer of at least 1, got 0"):
        pipeline("image-to-text", max_image_pixels=0)


def test_num_workers_has_no_effect_and_says_so(
    model: Share4V, processor: Share4VProcessor, scene: Image.Image, notes: list[str]
) -> None:
    captioner: ImageToTextPipeline = pipeline("image-to-text", model, processor)
    captioner(scene, max_new_tokens=1, num_workers=4)
    assert notes == ["num_workers=4 has no effect: images are decoded in the calling thread"]
