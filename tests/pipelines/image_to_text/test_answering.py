"""The task "image-text-to-text", compared with transformers' pipeline: the same inputs and result shapes."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mindone.models.share4v import Share4V, Share4VProcessor
from mindone.models.share4v.processing.image_loading import ImageNotFoundError
from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.answering import ImageTextToTextPipeline

QUESTION = "<image>\nWhat is this?"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{% if part.type == 'image' %} <image>{% else %} "
    "{{ part.text }}{% endif %}{% endfor %} {% endfor %}assistant:"
)


@pytest.fixture(scope="module")
def theirs(vocabulary: Path) -> Any:
    """transformers' pipeline with a LLaVA model of random weights."""
    torch.manual_seed(0)
    tokenizer = transformers.LlamaTokenizer(str(vocabulary), legacy=False, pad_token="<pad>", padding_side="left")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    vision = transformers.CLIPVisionConfig(8, 12, 8, 2, 2, image_size=28, patch_size=14)
    text = transformers.LlamaConfig(
        len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    )
    config = transformers.LlavaConfig(vision, text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    image_processor = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = transformers.LlavaProcessor(
        image_processor, tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config).eval()
    return transformers.ImageTextToTextPipeline(model=model, processor=processor, device="cpu")


@pytest.fixture(scope="module")
def answerer(checkpoint: Path) -> ImageTextToTextPipeline:
    return pipeline("image-text-to-text", checkpoint)


def skeleton(result: Any) -> Any:
    """Return a result without its answers, which depend on random weights."""
    if isinstance(result, list) and result and "role" not in result[0]:
        return [skeleton(one) for one in result]
    if isinstance(result, list):
        assert isinstance(result[-1]["content"], str)
        return [*result[:-1], {**result[-1], "content": "ANSWER"}]
    assert isinstance(result, dict)
    text, full = result["input_text"], result["generated_text"]
    if isinstance(full, list):
        return {**result, "generated_text": skeleton(full)}
    return {**result, "generated_text": "TEXT+ANSWER" if isinstance(text, str) and full.startswith(text) else "ANSWER"}


def chat(*parts: dict[str, Any], question: str = "What is this?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


Call = Callable[[Any, list[str]], Any]
CALLS: dict[str, Call] = {
    "a question": lambda run, p: run(images=p[0], text=QUESTION),
    "a question, only the answer": lambda run, p: run(images=p[0], text=QUESTION, return_full_text=False),
    "two images": lambda run, p: run(images=p[:2], text=f"<image>{QUESTION}"),
    "questions": lambda run, p: run(images=p[:2], text=[QUESTION, f"{QUESTION} Why?"]),
    "a dict": lambda run, p: run({"images": p[0], "text": QUESTION}),
    "a text without images": lambda run, p: run(text="Why?"),
    "texts without images": lambda run, p: run(text=["Why?", "What is red?"]),
    "a chat": lambda run, p: run(text=chat({"type": "image", "path": p[0]})),
    "a chat by position": lambda run, p: run(chat({"type": "image", "image": p[0]})),
    "a chat, only the answer": lambda run, p: run(text=chat({"type": "image", "path": p[0]}), return_full_text=False),
    "a chat with a separate image": lambda run, p: run(images=p[0], text=chat({"type": "image"})),
    "a chat in OpenAI's format": lambda run, p: run(text=chat({"type": "image_url", "image_url": {"url": p[0]}})),
    "chats": lambda run, p: run(text=[chat({"type": "image", "path": p[0]}), chat({"type": "image", "path": p[1]})]),
    "chats with separate images": lambda run, p: run(
        images=p[:2], text=[chat({"type": "image"}), chat({"type": "image"})]
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_result_shapes_equal_transformers(
    answerer: ImageTextToTextPipeline, theirs: Any, pictures: list[str], name: str
) -> None:
    ours = CALLS[name](lambda *args, **kwargs: answerer(*args, **kwargs, max_new_tokens=3), pictures)
    expected = CALLS[name](lambda *args, **kwargs: theirs(*args, **kwargs, max_new_tokens=3), pictures)
    assert skeleton(ours) == skeleton(expected)


def test_answers_equal_generate(answerer: ImageTextToTextPipeline, pictures: list[str]) -> None:
    model: Share4V = answerer.model
    processor: Share4VProcessor = answerer.processor

    def expected(images: list[str], text: Any, name: str = "vicuna_v1") -> str:
        inputs = processor(images=images, text=text, conversation=name)
        return processor.batch_decode(model.generate(**inputs, max_new_tokens=12))[0]

    settings: dict[str, Any] = {"max_new_tokens": 12, "return_full_text": False}
    (one,) = answerer(images=pictures[0], text="Why?", **settings)
    assert one == {"input_text": "Why?", "generated_text": expected(pictures[:1], "Why?")}
    (full,) = answerer(images=pictures[0], text="Why?", max_new_tokens=12)
    assert full["generated_text"] == f"Why? {one['generated_text']}"
    (other,) = answerer(images=pictures[:1], text="Why?", conversation="share4v_v1", **settings)
    assert other["generated_text"] == expected(pictures[:1], "Why?", "share4v_v1")
    texts = ["Why?", "What is red and small?", "Where?"]
    many = answerer(images=[pictures[0], pictures[1:3], []], text=texts, batch_size=2, **settings)
    assert [record["generated_text"] for record in many] == [
        expected(images, text) for images, text in zip([pictures[:1], pictures[1:3], []], texts, strict=True)
    ]


def test_chat_continues(answerer: ImageTextToTextPipeline, pictures: list[str]) -> None:
    encoded = base64.b64encode(Path(pictures[0]).read_bytes()).decode()
    for part in ({"path": pictures[0]}, {"url": f"data:image/png;base64,{encoded}"}, {"base64": encoded}):
        first = chat({"type": "image", **part})
        kept = copy.deepcopy(first)
        (record,) = answerer(text=first, max_new_tokens=6)
        assert first == kept  # the caller's chat is not changed
        longer = [*record["generated_text"], {"role": "user", "content": "Why?"}]
        (second,) = answerer(text=longer, max_new_tokens=6, return_full_text=False)
        plain = [
            {"role": "user", "content": "What is this?"},
            {"role": "assistant", "content": record["generated_text"][-1]["content"]},
            {"role": "user", "content": "Why?"},
        ]
        inputs = answerer.processor(images=pictures[:1], text=plain)
        ids = answerer.model.generate(**inputs, max_new_tokens=6)
        assert second["generated_text"] == answerer.processor.batch_decode(ids)[0]


def test_stream_is_read_one_batch_at_a_time(answerer: ImageTextToTextPipeline, pictures: list[str]) -> None:
    asked = [{"images": path, "text": f"Why {number}?"} for number, path in enumerate(pictures)]
    read: list[int] = []

    def requests() -> Iterator[Any]:
        for number, request in enumerate(asked):
            read.append(number)
            yield request

    results = answerer(requests(), batch_size=2, max_new_tokens=4)
    assert read == []
    first = next(results)  # type: ignore[arg-type]
    assert len(read) == 2
    assert [first, *results] == [answerer(**one, max_new_tokens=4) for one in asked]
    assert len(list(answerer(text=iter(["Why?", chat()]), max_new_tokens=4))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither images nor text"),
        ({"images": "a.png"}, 'the task "image-to-text"'),
        ({"images": ["a.png", "b.png"], "text": ["Why?"]}, r"there are 1 texts, but images has 2"),
        ({"images": "a.png", "text": ["Why?", "What?"]}, "images has one image, not a list"),
        ({"text": 3}, "text is 3, expected a question"),
        ({"text": []}, r"text is \[\]"),
        ({"text": [3]}, "got 3, expected a question"),
        ({"text": chat({"type": "image"})}, "1 image parts without an image, but 0 images were given"),
        (
            {"text": chat({"type": "image"}), "images": ["a", "b"]},
            "1 image parts without .*, but 2 images were given",
        ),
        ({"text": [{"role": "robot", "content": "Why?"}]}, "the role 'robot'"),
        ({"text": [{"role": "user", "content": [{"type": "sound"}]}]}, "message 0, part 0 is {'type': 'sound'}"),
        ({"text": "<image> Why?"}, "has 1 <image> but 0 images"),
        ({"text": iter(["Why?"]), "images": "a.png"}, "images cannot be combined with a stream of texts"),
        ({"text": "Why?", "generate_kwargs": {"top_q": 1}}, "Did you mean 'top_"),
        ({"text": "Why?", "conversation": "none"}, "unknown conversation template 'none'"),
    ],
)
def test_invalid_arguments(answerer: ImageTextToTextPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        answerer(**arguments)


def test_missing_image(answerer: ImageTextToTextPipeline) -> None:
    with pytest.raises(ImageNotFoundError, match=r"nothing\.png"):
        answerer(images="nothing.png", text="Why?")
    with pytest.raises(ImageNotFoundError, match=r"nothing\.png"):
        answerer(text=chat({"type": "image", "path": "nothing.png"}))
