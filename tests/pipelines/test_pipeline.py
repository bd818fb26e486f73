"""pipeline(): results with Hugging Face's shapes, and texts equal to those of generate and the processor."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mindone.models.share4v import Share4V, Share4VProcessor
from mindone.models.share4v.hub import HubError
from mindone.models.share4v.processing import chat_templates
from mindone.models.share4v.processing.chat_templates import Template, get_template
from mindone.models.share4v.processing.image_loading import ImageLoadError, ImageNotFoundError
from mindone.pipelines import TASKS, pipeline
from mindone.pipelines.image_to_text.answering import ImageTextToTextPipeline
from mindone.pipelines.image_to_text.captioning import ImageToTextPipeline
from mindone.pipelines.image_to_text.chat import ChatSession

TOKENS = 20


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Share4V:
    return Share4V.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Share4VProcessor:
    return Share4VProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def captioner(model: Share4V, processor: Share4VProcessor) -> ImageToTextPipeline:
    return pipeline("image-to-text", model, processor)


@pytest.fixture(scope="module")
def answerer(model: Share4V, processor: Share4VProcessor) -> ImageTextToTextPipeline:
    return pipeline("image-text-to-text", model, processor)


@pytest.fixture(scope="module")
def captions(model: Share4V, processor: Share4VProcessor, pictures: list[str]) -> list[str]:
    """The caption of each image, generated one by one; some differ, or the tests below would be too weak."""
    texts = [
        processor.batch_decode(model.generate(**processor(images=[path]), max_new_tokens=TOKENS))[0]
        for path in pictures
    ]
    assert len(set(texts)) > 2
    return texts


def texts_of(results: Any) -> list[str]:
    records = [record for (record,) in results]
    assert all(list(record) == ["generated_text"] for record in records)
    return [record["generated_text"] for record in records]


# Captions


def test_result_shapes_and_captions(captioner: ImageToTextPipeline, pictures: list[str], captions: list[str]) -> None:
    assert captioner(pictures[0], max_new_tokens=TOKENS) == [{"generated_text": captions[0]}]
    assert texts_of(captioner(pictures[:2], max_new_tokens=TOKENS)) == captions[:2]
    assert texts_of(captioner(tuple(pictures[:1]), max_new_tokens=TOKENS)) == captions[:1]
    assert captioner([], max_new_tokens=TOKENS) == []


def test_a_model_without_a_task_captions(
    model: Share4V, processor: Share4VProcessor, pictures: list[str], captions: list[str]
) -> None:
    made = pipeline(model=model, processor=processor)  # Hugging Face finds the task by the model
    assert made(pictures[0], max_new_tokens=TOKENS) == [{"generated_text": captions[0]}]


def test_all_image_source_types(captioner: ImageToTextPipeline, pictures: list[str], captions: list[str]) -> None:
    data = Path(pictures[0]).read_bytes()
    with Image.open(pictures[0]) as image:
        image.load()
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    for source in (Path(pictures[0]), data, uri, image, np.asarray(image)):
        assert captioner(source, max_new_tokens=TOKENS) == [{"generated_text": captions[0]}]


@pytest.mark.parametrize("batch_size", [2, 4])
def test_batch_results_equal_single_calls(
    captioner: ImageToTextPipeline, pictures: list[str], captions: list[str], batch_size: int
) -> None:
    assert texts_of(captioner(pictures, batch_size=batch_size, max_new_tokens=TOKENS)) == captions
    sampled = {"do_sample": True, "temperature": 2.0, "seed": 3}
    single = [captioner(path, max_new_tokens=TOKENS, generate_kwargs=sampled)[0]["generated_text"] for path in pictures]
    batch = captioner(pictures, batch_size=batch_size, max_new_tokens=TOKENS, generate_kwargs=sampled)
    assert texts_of(batch) == single != captions


def test_stream_is_read_one_batch_at_a_time(
    captioner: ImageToTextPipeline, pictures: list[str], captions: list[str]
) -> None:
    read: list[str] = []

    def paths() -> Iterator[str]:
        for path in pictures:
            read.append(path)
            yield path

    results = captioner(paths(), batch_size=2, max_new_tokens=TOKENS)
    assert iter(results) is results and read == []
    assert next(results) == [{"generated_text": captions[0]}] and len(read) == 2
    assert next(results) == [{"generated_text": captions[1]}] and len(read) == 2
    assert texts_of(results) == captions[2:]


def test_endless_stream(captioner: ImageToTextPipeline, pictures: list[str]) -> None:
    def forever() -> Iterator[str]:
        while True:
            yield pictures[0]

    results = captioner(forever(), batch_size=2, max_new_tokens=2)
    assert [len(next(results)) for _ in range(7)] == [1] * 7


def test_data_set_is_a_stream(captioner: ImageToTextPipeline, pictures: list[str], captions: list[str]) -> None:
    class Photos:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> str:
            return pictures[:2][index]

    results: Any = captioner(Photos(), max_new_tokens=TOKENS)  # type: ignore[call-overload]
    assert not isinstance(results, list) and texts_of(results) == captions[:2]


def test_prompt(
    captioner: ImageToTextPipeline, model: Share4V, processor: Share4VProcessor, pictures: list[str]
) -> None:
    for prompt, name in (("What is this?", "vicuna_v1"), ("Why <image>?", "share4v_v1")):
        ids = model.generate(**processor(images=[pictures[1]], text=prompt, conversation=name), max_new_tokens=TOKENS)
        expected = [{"generated_text": processor.batch_decode(ids)[0]}]
        assert captioner(pictures[1], prompt=prompt, conversation=name, max_new_tokens=TOKENS) == expected
        named = pipeline("image-to-text", model, processor, conversation=name)
        assert named(pictures[1], prompt=prompt, max_new_tokens=TOKENS) == expected


def test_beam_search(
    captioner: ImageToTextPipeline, model: Share4V, processor: Share4VProcessor, pictures: list[str]
) -> None:
    settings = {"num_beams": 3, "max_new_tokens": TOKENS}
    expected = [
        processor.batch_decode(model.generate(**processor(images=[path]), **settings))[0] for path in pictures[:2]
    ]
    assert texts_of(captioner(pictures[:2], batch_size=2, generate_kwargs=settings)) == expected


def test_stop_string_ends_the_text_and_is_removed(
    captioner: ImageToTextPipeline, pictures: list[str], captions: list[str]
) -> None:
    stop = captions[0][7:10]
    before = captions[0][: captions[0].index(stop)].strip()
    assert before
    for given in (stop, [stop], ("never said", stop)):
        result = captioner(pictures[0], max_new_tokens=TOKENS, generate_kwargs={"stop": given})
        assert result == [{"generated_text": before}]
    (answer,) = captioner.answer([get_template("vicuna_v1").question], [[pictures[0]]], {"stop": stop})
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("num_beams", [1, 2])
def test_stop_strings_of_the_template_apply(
    captioner: ImageToTextPipeline, pictures: list[str], monkeypatch: pytest.MonkeyPatch, num_beams: int
) -> None:
    settings = {"num_beams": num_beams, "max_new_tokens": TOKENS}
    (whole,) = captioner(pictures[0], generate_kwargs=settings)
    stop = whole["generated_text"][7:10]
    template = Template(**{**vars(get_template("vicuna_v1")), "name": "stopping", "stop_strings": (stop,)})
    monkeypatch.setitem(chat_templates.TEMPLATES, "stopping", template)
    before = whole["generated_text"][: whole["generated_text"].index(stop)].strip()
    assert captioner(pictures[0], generate_kwargs=settings, conversation="stopping") == [{"generated_text": before}]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_answer_attributes(
    captioner: ImageToTextPipeline, model: Share4V, processor: Share4VProcessor, pictures: list[str], num_beams: int
) -> None:
    inputs = processor(images=[pictures[0]])
    length = inputs["input_ids"].shape[1] - 1 + model.config.num_image_tokens
    settings = {"max_new_tokens": 7, "num_beams": num_beams}
    (answer,) = captioner.answer(["Describe this image"], [[pictures[0]]], settings)
    assert answer.token_ids == tuple(model.generate(**inputs, **settings)[0])
    assert (answer.prompt_tokens, len(answer.token_ids), answer.finish_reason) == (length, 7, "length")
    assert answer.seconds > 0


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generate_kwargs": {"tempature": 1.0}}, r"'tempature'.*Did you mean 'temperature'"),
        (
            {"generate_kwargs": {"input_ids": [[1]]}},
            "unknown setting of generate_kwargs 'input_ids'; known: past_key_values, max_new_tokens",
        ),
        ({"generate_kwargs": {"temperature": -1}}, "temperature must be .*-1"),
        ({"generate_kwargs": {"max_new_tokens": 3}, "max_new_tokens": 3}, "given twice"),
        ({"generate_kwargs": {"stop": [""]}}, "each stop string "),
        ({"generate_kwargs": {"stop": "a", "num_beams": 2}}, "cannot be combined"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1"),
        ({"prompt": ["one", "two"]}, "prompt is a list"),
        ({"prompt": "<image> <image>"}, "has 2 <image> but 1 images"),
        ({"conversation": "vicuna_v2"}, "Did you mean 'vicuna_v1'"),
    ],
)
def test_invalid_arguments(
    captioner: ImageToTextPipeline, pictures: list[str], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        captioner(pictures[:1], **arguments)
    if "prompt" not in arguments:  # a stream is checked before its first image is read
        with pytest.raises(ValueError, match=message):
            captioner(iter(pictures[:1]), **arguments)


def test_image_errors_are_raised(captioner: ImageToTextPipeline, pictures: list[str]) -> None:
    with pytest.raises(ImageNotFoundError, match=r"nothing\.png"):
        captioner("nothing.png")
    with pytest.raises(ImageNotFoundError, match=r"nothing\.png"):
        captioner([pictures[0], "nothing.png"], batch_size=2)
    with pytest.raises(ImageLoadError, match="not an image format"):
        captioner(b"no picture")
    with pytest.raises(ImageLoadError, match=r"inputs is a dict .*expected a path"):
        captioner({"picture": pictures[0]})  # type: ignore[call-overload]


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"'image2text'.*image-text-to-text, image-to-text.*Did you mean 'image-to-"):
        pipeline("image2text")  # type: ignore[call-overload]
    with pytest.raises(HubError, match="Did you mean 'sharegpt4v-7b'"):
        pipeline("image-to-text", "sharegpt4v-7")
    assert TASKS.names() == ["image-text-to-text", "image-to-text"]


def test_loaded_model_needs_a_processor_and_refuses_load_options(
    model: Share4V, processor: Share4VProcessor, checkpoint: Path, pictures: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"processor=Share4VProcessor\.from_pretrained"):
        pipeline("image-to-text", model)
    with pytest.raises(ValueError, match="dtype, vision_backend cannot change a model that is already loaded"):
        pipeline("image-to-text", model, processor, dtype="float16", vision_backend="mindone")
    by_name = pipeline("image-to-text", model, str(checkpoint))
    assert by_name(pictures[0], max_new_tokens=2) == pipeline("image-to-text", model, processor)(
        pictures[0], max_new_tokens=2
    )


def test_loading_by_path(checkpoint: Path, pictures: list[str], captions: list[str]) -> None:
    loaded = pipeline("image-to-text", checkpoint, dtype="float16", conversation="share4v_v1")
    assert (loaded.model.dtype, loaded.conversation, loaded.task) == ("float16", "share4v_v1", "image-to-text")
    with pytest.raises(ValueError, match="unknown conversation"):
        pipeline("image-to-text", checkpoint, conversation="none-such")


# Chats


def test_session_equals_complete_conversations(
    answerer: ImageTextToTextPipeline, model: Share4V, processor: Share4VProcessor, pictures: list[str]
) -> None:
    session = ChatSession(answerer, pictures[:2], {"max_new_tokens": 8})
    messages: list[dict[str, str]] = []
    for turn in range(3):
        question = f"Why {turn}?"
        said = "".join(piece.text for piece in session.ask(question)).strip()
        messages.append({"role": "user", "content": question})
        ids = model.generate(**processor(images=pictures[:2], text=messages), max_new_tokens=8)
        assert said == processor.batch_decode(ids)[0]
        messages.append({"role": "assistant", "content": said})
        assert session.messages == messages
    session.reset()
    assert "".join(piece.text for piece in session.ask("Why 0?")).strip() == messages[1]["content"]


def test_session_ends_when_the_context_is_full(answerer: ImageTextToTextPipeline, pictures: list[str]) -> None:
    session = ChatSession(answerer, pictures[:1], {"max_new_tokens": 30})
    with pytest.raises(ValueError, match=r"the prompt has \d+ tokens with its images, but the model's context is 512"):
        for _ in range(40):
            before = list(session.messages)
            list(session.ask("What is this image of? " * 3))
    assert session.messages == before  # the question that did not fit is not added


# Several answers and log-probabilities


def test_several_answers_and_their_logprobs(
    captioner: ImageToTextPipeline, answerer: ImageTextToTextPipeline, pictures: list[str]
) -> None:
    settings = {"do_sample": True, "temperature": 1.5, "seed": 3, "num_return_sequences": 2, "logprobs": 2}
    two = captioner(pictures[:2], batch_size=2, max_new_tokens=5, generate_kwargs=settings)
    assert [len(records) for records in two] == [2, 2] and two[0][0] != two[0][1]
    assert captioner(pictures[1], max_new_tokens=5, generate_kwargs=settings) == two[1]
    for token in two[0][1]["logprobs"]:
        assert list(token) == ["token_id", "token", "logprob", "top_logprobs"]
        assert token["token"] == captioner.processor.tokenizer.token_of(token["token_id"])
        assert len(token["top_logprobs"]) == 2 and token["logprob"] <= token["top_logprobs"][0]["logprob"] <= 0
    asked = answerer(images=pictures[0], text="Why?", max_new_tokens=5, generate_kwargs=settings)
    assert len(asked) == 2 and [record["input_text"] for record in asked] == ["Why?", "Why?"]
    beams = captioner(pictures[0], max_new_tokens=4, generate_kwargs={"num_beams": 3, "num_return_sequences": 2})
    best = captioner(pictures[0], max_new_tokens=4, generate_kwargs={"num_beams": 3})
    assert len(beams) == 2 and beams[:1] == best
    with pytest.raises(ValueError, match="one answer is streamed at a time"):
        captioner.stream("Why?", [pictures[0]], {"num_return_sequences": 2})


# Inputs as data sets and users have them


class Endless:
    """A data set with a length whose items never raise IndexError."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index % len(self.items)]


def test_a_data_set_ends_at_its_length(
    captioner: ImageToTextPipeline, answerer: ImageTextToTextPipeline, pictures: list[str], captions: list[str]
) -> None:
    assert texts_of(captioner(Endless(pictures[:3]), batch_size=2, max_new_tokens=TOKENS)) == captions[:3]
    requests = Endless([{"image": pictures[0], "text": "Why?"}, {"images": [pictures[1]], "text": "Why?"}])
    answers = list(answerer(requests, max_new_tokens=4, return_full_text=False))
    assert answers == [
        [answerer(images=pictures[n], text="Why?", max_new_tokens=4, return_full_text=False)[0]] for n in (0, 1)
    ]


def test_arrays_files_and_dicts_are_inputs(
    captioner: ImageToTextPipeline, answerer: ImageTextToTextPipeline, pictures: list[str], captions: list[str]
) -> None:
    pixels = [np.asarray(Image.open(path).resize((28, 28))) for path in pictures[:2]]
    wanted = captioner(pixels, max_new_tokens=6)
    assert captioner(np.stack(pixels), max_new_tokens=6) == wanted
    with Path(pictures[0]).open("rb") as file:
        assert captioner(file, max_new_tokens=TOKENS)[0]["generated_text"] == captions[0]
    assert captioner({"image": pictures[0]}, max_new_tokens=TOKENS)[0]["generated_text"] == captions[0]
    asked = captioner([{"image": pictures[0], "text": "Why?"}], max_new_tokens=6)
    assert asked == [captioner(pictures[0], prompt="Why?", max_new_tokens=6)]
    alone = answerer(text=["Why?"], images=pictures[0], max_new_tokens=4)
    assert alone == answerer(text="Why?", images=pictures[0], max_new_tokens=4)


@pytest.mark.parametrize("wrong", [5, None, {"role": "user"}], ids=repr)
def test_what_is_not_an_image_is_refused_before_anything_is_computed(
    captioner: ImageToTextPipeline, pictures: list[str], wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioner.model, "encode_images", None)
    with pytest.raises(ImageLoadError, match=f"image 1 is a {type(wrong).__name__} "):
        captioner([pictures[0], wrong])
    with pytest.raises(ImageLoadError, match=f"inputs is a {type(wrong).__name__} "):
        captioner(wrong)
