"""Complete prompts are left as they are: in a question, in a chat, and in every template."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaTokenizer

from mindone.models.share4v import Share4VProcessor, resolve
from mindone.models.share4v.processing.chat_templates import TEMPLATES, get_template
from mindone.models.share4v.processing.prompts import Prompt

LLAVA = "USER: <image>\nDescribe this image\nASSISTANT:"
PICTURE = np.zeros((9, 9, 3), np.uint8)


@pytest.fixture(scope="module")
def processor() -> Share4VProcessor:
    return Share4VProcessor.from_pretrained("sharegpt4v-tiny")


SYSTEM = get_template("vicuna_v1").system


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        (LLAVA, f"{SYSTEM} {LLAVA}"),
        ("USER: <image>\nWhat is this? ASSISTANT:", f"{SYSTEM} USER: <image>\nWhat is this? ASSISTANT:"),
        ("A chat. USER: <image>\nWhy? ASSISTANT:", "A chat. USER: <image>\nWhy? ASSISTANT:"),
        (f"{SYSTEM} {LLAVA}", f"{SYSTEM} {LLAVA}"),
        ("<image>\nWhy? ASSISTANT:", "<image>\nWhy? ASSISTANT:"),
        (f"{LLAVA} Because</s>USER: Where? ASSISTANT:", f"{SYSTEM} {LLAVA} Because</s>USER: Where? ASSISTANT:"),
        (f"{LLAVA} In the top", f"{SYSTEM} {LLAVA} In the top"),
    ],
)
def test_a_complete_prompt_is_not_wrapped_again(processor: Share4VProcessor, prompt: str, wanted: str) -> None:
    """Only the system prompt, with which the model was trained, is put in front if there is none."""
    assert processor.prompt(prompt, 1) == wanted
    assert processor.prompt(wanted, 1) == wanted
    assert processor.prompt([{"role": "user", "content": prompt}], 1) == wanted
    inputs = processor(images=PICTURE, text=prompt)
    assert inputs.input_ids[0].tolist() == processor.encode_prompt(wanted)
    assert processor.prompt(Prompt(prompt), 1) == prompt


def test_the_system_prompt_of_every_template_is_put_in_front(processor: Share4VProcessor) -> None:
    asked = processor.prompt("Why?", 0, "share4v_v0")
    system = get_template("share4v_v0").system
    for short in (asked.removeprefix(system), asked.removeprefix(f"{system}###")):
        assert processor.prompt(short, 0, "share4v_v0") == asked
    llama = "[INST] Why? [/INST]"
    assert processor.prompt(llama, 0, "share4v_llama_2") == llama


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.answer_start])
def test_a_prompt_that_the_template_made_is_complete(processor: Share4VProcessor, name: str) -> None:
    template = get_template(name)
    chat = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "Oh"},
    ]
    for messages in (chat[:1], chat):
        prompt = processor.prompt(messages, 0, name)
        assert template.is_complete(prompt)
        assert processor.prompt(prompt, 0, name) == prompt


@pytest.mark.parametrize(
    "question",
    [
        "Describe this image",
        "What does USER: mean?",
        "Is ASSISTANT: a role in this template?",
        "<image>\nWhy?",
        "[INST]",
    ],
)
def test_a_question_is_not_taken_for_a_prompt(question: str) -> None:
    assert not any(template.is_complete(question) for template in TEMPLATES.values())


def test_a_chat_may_begin_or_go_on_with_a_complete_prompt(processor: Share4VProcessor) -> None:
    def turn(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    chat = [turn("user", LLAVA), turn("assistant", "A circle."), turn("user", "Where?")]
    assert processor.prompt(chat, 1) == f"{SYSTEM} {LLAVA} A circle.</s>USER: Where? ASSISTANT:"
    chat = [turn("user", "<image>\nWhat?"), turn("assistant", "A circle."), turn("user", "USER: Where?\nASSISTANT:")]
    prompt = processor.prompt(chat, 1)
    assert prompt.endswith("USER: <image>\nWhat? ASSISTANT: A circle.</s>USER: Where?\nASSISTANT:")
    assert processor.prompt([turn("system", "Be brief."), turn("user", LLAVA)], 1) == f"Be brief. {LLAVA}"
    with pytest.raises(ValueError, match="the system message would not be used"):
        processor.prompt([turn("system", "Be brief."), turn("user", f"A chat. {LLAVA}")], 1)


def test_ids_of_a_complete_prompt_are_those_of_transformers(processor: Share4VProcessor) -> None:
    """LLaVA's processor tokenizes the prompt as it is, with `<image>` as a token of its own."""
    theirs = LlamaTokenizer(str(resolve("sharegpt4v-tiny") / "tokenizer.model"), legacy=False)
    theirs.add_tokens(["<image>"], special_tokens=True)
    image = theirs.convert_tokens_to_ids("<image>")
    wanted = theirs("USER: <image>")["input_ids"]
    got = processor.encode_prompt("USER: <image>")
    assert [one if one != processor.image_token_id else image for one in got] == wanted


def test_a_chat_template_is_applied_as_by_transformers_processors(processor: Share4VProcessor) -> None:
    parts = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "Why?"}]
    chat = [{"role": "user", "content": parts}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert prompt.endswith("USER: <image>\nWhy? ASSISTANT:")
    inputs = processor(images=[PICTURE], text=[prompt], return_tensors="np")
    tokenized = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
    )
    for name, values in inputs.items():
        np.testing.assert_array_equal(tokenized[name], values)
    assert processor.apply_chat_template([chat, chat]) == [prompt.removesuffix(" ASSISTANT:") + " "] * 2


def test_a_tokenizer_is_called_as_transformers_tokenizers_are(processor: Share4VProcessor) -> None:
    ours = processor.tokenizer
    theirs = LlamaTokenizer(str(resolve("sharegpt4v-tiny") / "tokenizer.model"), legacy=False, padding_side="left")
    theirs.pad_token = "</s>"
    texts = ["a red circle", "two"]
    assert ours(texts[0]) == dict(theirs(texts[0]))
    assert ours(texts) == dict(theirs(texts))
    assert ours(texts, padding=True) == dict(theirs(texts, padding=True))
    assert ours(texts[0], add_special_tokens=False) == dict(theirs(texts[0], add_special_tokens=False))
    for name, values in theirs(texts, padding=True, return_tensors="np").items():
        np.testing.assert_array_equal(ours(texts, padding=True, return_tensors="np")[name], values)
    assert ours.tokenize("a red circle") == theirs.tokenize("a red circle")
    assert ours.encode("two", add_special_tokens=False) == theirs.encode("two", add_special_tokens=False)
    with pytest.raises(ValueError, match="rows of input_ids differ in length: pass padding=True"):
        ours(texts, return_tensors="np")


def test_tensors_of_every_framework(processor: Share4VProcessor) -> None:
    arrays = processor(images=PICTURE)
    for kind in ("np", "ms", "pt"):
        tensors = processor(images=PICTURE, return_tensors=kind)
        for name, values in arrays.items():
            got = tensors[name].asnumpy() if kind == "ms" else np.asarray(tensors[name])
            np.testing.assert_array_equal(got, values)
    with pytest.raises(ValueError, match="unknown return_tensors 'tf'; known: np, ms, pt"):
        processor(images=PICTURE, return_tensors="tf")


def test_a_processor_is_shown_without_an_error(processor: Share4VProcessor, tmp_path: Path) -> None:
    assert repr(processor).startswith("Share4VProcessor(conversation='vicuna_v1', image_token_id=")
