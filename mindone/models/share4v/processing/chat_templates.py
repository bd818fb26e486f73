"""Conversation templates: how system prompt, questions and answers become one prompt text. Every template is data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..suggestions import unknown
from .messages import IMAGE_TOKEN, Message, read_messages

DEFAULT_TEMPLATE = "vicuna_v1"
DEFAULT_QUESTION = "Describe this image"

_USER_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_HUMAN_SYSTEM = _USER_SYSTEM.replace("user", "human")
_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
# The missing space before "The visual content" is the original's, so models were trained with it.
_TAG_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)


@dataclass(frozen=True)
class Template:
    """One way to write a conversation as text.

    Attributes:
        name: what `get_template` knows it by.
        style: "two", "single", "plain" or "llama_2"; says how the parts below are put together.
        roles: what the user and the assistant are called.
        separators: what ends the user's and the assistant's text ("llama_2": what starts a turn and what ends it).
        system: the system prompt; a message with the role "system" takes its place. Empty: none.
        stop_strings: texts that end an answer. In every style an answer also ends at the tokenizer's eos id
            (`</s>`, 2 in Vicuna's vocabulary), which is all that "two" and "llama_2" need.
        image_tags: each picture is a turn of its own, `<Image><image></Image>`, answered `Received.`
        question: what is asked of a picture when nothing is.
    """

    name: str
    style: str
    roles: tuple[str, str] = ("", "")
    separators: tuple[str, str] = ("", "")
    system: str = ""
    stop_strings: tuple[str, ...] = ()
    image_tags: bool = False
    question: str = DEFAULT_QUESTION

    def render(self, messages: Sequence[Mapping[str, Any] | Message], add_generation_prompt: bool = True) -> str:
        """Write a conversation as the prompt text that the model was trained on.

        Args:
            messages: `{"role": "system" | "user" | "assistant", "content": ...}`, where the content is a string or a
                list of parts `{"type": "text", "text": ...}` and `{"type": "image"}`. The system's, if any, comes
                first; then user and assistant take turns. Image parts are put at the front of their message, each as
                `<image>` and a line end, as in training; write `<image>` in a text to have a picture elsewhere.
            add_generation_prompt: end with the assistant's open turn; False for training, where answers are given.

        Raises:
            ValueError: a message is malformed or out of turn, or there is no question to answer.

        Example:
            >>> from mindone.models.share4v.processing.chat_templates import get_template
            >>> get_template("share4v_v0").render([{"role": "user", "content": "Hello"}])[-31:]
            'ns.###Human: Hello###Assistant:'
        """
        turns = read_messages(messages)
        system = self.system
        if turns and turns[0].role == "system":
            if self.style == "plain":
                raise ValueError(f"template {self.name!r} has no system prompt; leave the system message out")
            system, turns = turns[0].text, turns[1:]
        _check_turns(turns, add_generation_prompt)
        if self.image_tags:
            turns = _with_image_turns(turns)
        return _STYLES[self.style](self, system, turns, add_generation_prompt)


def _render_roles(template: Template, system: str, turns: Sequence[Message], open_turn: bool) -> str:
    """Styles "two" and "single": `system sep`, then `ROLE: text sep` a turn."""
    named = dict(zip(("user", "assistant"), zip(template.roles, template.separators, strict=True), strict=True))
    text = system + template.separators[0] if system else ""
    for turn in turns:
        role, separator = named[turn.role]
        text += f"{role}: {turn.text}{separator}"
    return text + f"{template.roles[1]}:" if open_turn else text


def _render_plain(template: Template, system: str, turns: Sequence[Message], open_turn: bool) -> str:
    """The texts and the separators alone. Stage 1's data have no separator between a lone picture and its caption."""
    user_end, assistant_end = template.separators
    text = ""
    for turn in turns:
        lone_images = turn.role == "user" and not turn.text.replace(IMAGE_TOKEN, "").strip()
        ending = user_end if turn.role == "user" else assistant_end
        text += turn.text.strip() if lone_images else turn.text + ending
    return text


def _render_llama_2(template: Template, system: str, turns: Sequence[Message], open_turn: bool) -> str:
    """`[INST] <<SYS>>...<</SYS>> question [/INST] answer </s>`; the first `<s>` is the tokenizer's to add."""
    start, end = template.separators
    text = ""
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            text += f" {turn.text} {end}"
            continue
        head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if index == 0 and system else ""
        text += f"{start if index else ''}[INST] {head}{turn.text} [/INST]"
    return text


_STYLES = {"two": _render_roles, "single": _render_roles, "plain": _render_plain, "llama_2": _render_llama_2}

_V1 = {"style": "two", "roles": ("USER", "ASSISTANT"), "separators": (" ", "</s>")}
_V0 = {"style": "single", "roles": ("Human", "Assistant"), "separators": ("###", "###"), "stop_strings": ("###",)}
_LLAMA_2 = {"style": "llama_2", "roles": ("USER", "ASSISTANT"), "separators": ("<s>", "</s>")}
_PLAIN = {"style": "plain", "separators": ("\n", "\n"), "stop_strings": ("\n",), "question": ""}
_ROWS: dict[str, dict[str, Any]] = {
    "vicuna_v1": {**_V1, "system": _USER_SYSTEM},  # stage 2 was trained with it
    "plain": _PLAIN,  # stage 1
    "share4v_v1": {**_V1, "system": _HUMAN_SYSTEM},
    "share4v_v0": {**_V0, "system": _HUMAN_SYSTEM},
    "share4v_llama_2": {**_LLAMA_2, "system": _LLAMA_2_SYSTEM},
    "v0_mmtag": {**_V0, "system": _TAG_SYSTEM, "image_tags": True},
    "v1_mmtag": {**_V1, "system": _TAG_SYSTEM, "image_tags": True},
}
TEMPLATES: dict[str, Template] = {name: Template(name=name, **row) for name, row in _ROWS.items()}


def get_template(name: str) -> Template:
    """Return the template of that name.

    Raises:
        ValueError: the name is not known; the message lists the known ones and the closest.
    """
    if isinstance(name, str) and name in TEMPLATES:
        return TEMPLATES[name]
    raise ValueError(unknown("conversation template", name, sorted(TEMPLATES)))


def _check_turns(turns: Sequence[Message], add_generation_prompt: bool) -> None:
    for index, turn in enumerate(turns):
        expected = "user" if index % 2 == 0 else "assistant"
        if turn.role != expected:
            raise ValueError(
                f"turn {index} after the system prompt is the {turn.role}'s, expected the {expected}'s: "
                "user and assistant take turns, the user first"
            )
    if not turns:
        raise ValueError("the conversation has no question: add a message with the role 'user'")
    if add_generation_prompt and turns[-1].role == "assistant":
        raise ValueError("the last message is the assistant's, so there is nothing to answer: add a user message")


def _with_image_turns(turns: Sequence[Message]) -> list[Message]:
    """Give each picture a turn of its own, before the turn that named it."""
    result = []
    for turn in turns:
        count = turn.text.count(IMAGE_TOKEN) if turn.role == "user" else 0
        result += [Message("user", f"<Image>{IMAGE_TOKEN}</Image>"), Message("assistant", "Received.")] * count
        result.append(Message(turn.role, turn.text.replace(IMAGE_TOKEN, "").strip()) if count else turn)
    return result
