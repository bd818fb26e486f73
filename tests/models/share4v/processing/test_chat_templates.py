"""Chat templates, compared with prompts that are written out in full."""

from __future__ import annotations

import dataclasses

import pytest

from mindone.models.share4v.processing.chat_templates import TEMPLATES, get_template
from mindone.models.share4v.processing.messages import Message

ONE = [{"role": "user", "content": "<image>\nDescribe this image"}]
THREE = [
    {"role": "user", "content": "<image>\nWhat is it?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Which colour?"},
]
USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
LLAMA = (
    "<<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
)
TAGS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using natural language.The "
    "visual content will be provided with the following format: <Image>visual content</Image>."
)
SMOLLM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
GOLDEN = {
    "vicuna_v1": (
        f"{USER} USER: <image>\nDescribe this image ASSISTANT:",
        f"{USER} USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Which colour? ASSISTANT:",
    ),
    "plain": ("<image>\nDescribe this image\n", "<image>\nWhat is it?\nA cat.\nWhich colour?\n"),
    "share4v_v1": (
        f"{HUMAN} USER: <image>\nDescribe this image ASSISTANT:",
        f"{HUMAN} USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Which colour? ASSISTANT:",
    ),
    "share4v_v0": (
        f"{HUMAN}###Human: <image>\nDescribe this image###Assistant:",
        f"{HUMAN}###Human: <image>\nWhat is it?###Assistant: A cat.###Human: Which colour?###Assistant:",
    ),
    "share4v_llama_2": (
        f"[INST] {LLAMA}<image>\nDescribe this image [/INST]",
        f"[INST] {LLAMA}<image>\nWhat is it? [/INST] A cat. </s><s>[INST] Which colour? [/INST]",
    ),
    "v0_mmtag": (
        f"{TAGS}###Human: <Image><image></Image>###Assistant: Received.###Human: Describe this image###Assistant:",
        f"{TAGS}###Human: <Image><image></Image>###Assistant: Received.###Human: What is it?###Assistant: A cat."
        "###Human: Which colour?###Assistant:",
    ),
    "v1_mmtag": (
        f"{TAGS} USER: <Image><image></Image> ASSISTANT: Received.</s>USER: Describe this image ASSISTANT:",
        f"{TAGS} USER: <Image><image></Image> ASSISTANT: Received.</s>USER: What is it? ASSISTANT: A cat.</s>"
        "USER: Which colour? ASSISTANT:",
    ),
    "chatml": (
        "<|im_start|>user\n<image>\nDescribe this image<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "smollm2": (
        f"{SMOLLM}<|im_start|>user\n<image>\nDescribe this image<|im_end|>\n<|im_start|>assistant\n",
        f"{SMOLLM}<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama_3": (
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nDescribe this image<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhich colour?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}


def test_every_template_has_an_expected_prompt() -> None:
    assert set(GOLDEN) == set(TEMPLATES)
    assert all(template.name == name for name, template in TEMPLATES.items())


@pytest.mark.parametrize("name", GOLDEN)
def test_prompts(name: str) -> None:
    template = get_template(name)
    assert template.render(ONE) == GOLDEN[name][0]
    assert template.render(THREE) == GOLDEN[name][1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vicuna_v1", f"{USER} USER: Hi ASSISTANT: Hello!</s>"),
        ("share4v_v0", f"{HUMAN}###Human: Hi###Assistant: Hello!###"),
        ("share4v_llama_2", f"[INST] {LLAMA}Hi [/INST] Hello! </s>"),
        ("plain", "Hi\nHello!\n"),
    ],
)
def test_prompts_for_training_end_after_the_answer(name: str, expected: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    assert get_template(name).render(messages, add_generation_prompt=False) == expected


def test_plain_template_has_no_separator_between_image_and_caption() -> None:
    plain = get_template("plain")
    assert plain.render([{"role": "user", "content": "<image>\n"}]) == "<image>"
    pair = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "A red cube."}]
    assert plain.render(pair, add_generation_prompt=False) == "<image>A red cube.\n"


def test_system_message_replaces_the_default() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert get_template("vicuna_v1").render(messages) == "Be brief. USER: Hi ASSISTANT:"
    assert get_template("share4v_llama_2").render(messages) == "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"
    messages[0] = {"role": "system", "content": ""}
    assert get_template("vicuna_v1").render(messages) == "USER: Hi ASSISTANT:"
    assert get_template("share4v_llama_2").render(messages) == "[INST] Hi [/INST]"


def test_image_parts_come_first_and_text_is_unchanged() -> None:
    template = get_template("vicuna_v1")
    parts = [{"type": "text", "text": "What\r\n is "}, {"type": "image"}, {"type": "text", "text": "this? "}]
    got = template.render([{"role": "user", "content": parts}])
    assert got == f"{USER} USER: <image>\nWhat\r\n is this?  ASSISTANT:"
    two = [{"type": "image", "url": "a.png"}, {"type": "image_url", "image_url": {"url": "b.png"}}]
    got = template.render([{"role": "user", "content": [*two, {"type": "text", "text": "Same?"}]}])
    assert got == f"{USER} USER: <image>\n<image>\nSame? ASSISTANT:"
    assert template.render([Message("user", "Hi")]) == template.render([{"role": "user", "content": "Hi"}])


def test_tag_templates_put_each_image_into_its_own_turn() -> None:
    messages = [
        {"role": "user", "content": "<image>\n<image>\nCompare."},
        {"role": "assistant", "content": "Same."},
        {"role": "user", "content": "And <image>?"},
    ]
    shown = "USER: <Image><image></Image> ASSISTANT: Received.</s>"
    expected = f"{TAGS} {shown}{shown}USER: Compare. ASSISTANT: Same.</s>{shown}USER: And ? ASSISTANT:"
    assert get_template("v1_mmtag").render(messages) == expected


def test_stop_strings() -> None:
    stops = {name: template.stop_strings for name, template in TEMPLATES.items() if template.stop_strings}
    assert stops == {"share4v_v0": ("###",), "v0_mmtag": ("###",), "plain": ("\n",)}


def test_templates_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_template("plain").system = "x"  # type: ignore[misc]


def test_unknown_name_lists_known_names_and_closest_match() -> None:
    with pytest.raises(
        ValueError, match=r"'vicuna_v2'; known: chatml, .*v1_mmtag, vicuna_v1\. Did you mean 'vicuna_v1'\?"
    ):
        get_template("vicuna_v2")
    with pytest.raises(ValueError, match="unknown conversation template None"):
        get_template(None)  # type: ignore[arg-type]


USER_TURN = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no question"),
        ([{"role": "system", "content": "x"}], "no question"),
        ([ANSWER], "turn 0 after the system prompt has the role 'assistant', expected 'user'"),
        ([USER_TURN, USER_TURN], "turn 1 .* has the role 'user', expected 'assistant'"),
        ([USER_TURN, {"role": "system", "content": "x"}], "turn 1 .* has the role 'system'"),
        ([USER_TURN, ANSWER], "nothing to answer"),
        ([{"role": "tool", "content": "x"}], "message 0 has the role 'tool', expected one of system, user, assistant"),
        ([{"role": "user"}], "message 0 is .* expected"),
        (["Hi"], "message 0 is 'Hi', expected"),
        ([{"role": "user", "content": 3}], "content of type int"),
        ([{"role": "user", "content": [{"type": "video"}]}], "message 0, part 0 is .*video"),
        ([{"role": "user", "content": ["Hi"]}], "message 0, part 0 is 'Hi'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 0, part 0 is"),
        (
            [USER_TURN, {"role": "assistant", "content": [{"type": "image"}]}],
            "message 1 .*'assistant' and 1 image parts",
        ),
        (USER_TURN, "got a dict; put it in a list"),
    ],
)
def test_malformed_conversations(messages: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_template("vicuna_v1").render(messages)


def test_plain_template_refuses_system_messages() -> None:
    with pytest.raises(ValueError, match="'plain' has no system prompt"):
        get_template("plain").render([{"role": "system", "content": "x"}, USER_TURN])
