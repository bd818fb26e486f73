"""Chat templates: how the system prompt, questions and answers become one prompt. Each template is a row of data."""

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
# The missing space before "The visual content" is in the original, so the models were trained with it.
_TAG_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)


@dataclass(frozen=True)
class Template:
    """A prompt format for conversations.

    Attributes:
        name: the name for `get_template`.
        style: "two", "single", "plain", "llama_2" or "tagged": how the parts below are combined.
        roles: names of the user and the assistant in the prompt.
        separators: end of the user's and of the assistant's text ("llama_2": start and end of a turn;
            "tagged": end of a role's tag, and of a turn).
        system: the default system prompt, which a message with the role "system" replaces; empty for none.
        stop_strings: strings that end an answer. In every style an answer also ends at the tokenizer's eos id (`</s>`,
            2 in Vicuna's vocabulary), which is sufficient for "two" and "llama_2".
        image_tags: put each image into a turn of its own, `<Image><image></Image>`, with the answer `Received.`
        question: the question to ask about an image if the caller gives none.
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
        """Return the prompt for a conversation, in the format that the model was trained on.

        Args:
            messages: see `read_messages` for their formats. An optional system message comes first; then user and
                assistant alternate. Image parts become `<image>` and a line end at the front of their message, as in
                training; write `<image>` into a text to place an image elsewhere.
            add_generation_prompt: end with the start of the assistant's answer; False for training, where the answers
                are part of the conversation.

        Raises:
            ValueError: a message is malformed or out of order, or there is no question to answer.

        Example:
            >>> from mindone.models.share4v.processing.chat_templates import get_template
            >>> get_template("share4v_v0").render([{"role": "user", "content": "Hello"}])[-31:]
            'ns.###Human: Hello###Assistant:'
        """
        turns = read_messages(messages)
        system = self.system
        if turns and turns[0].role == "system":
            if self.style == "plain":
                raise ValueError(f"template {self.name!r} has no system prompt; remove the system message")
            system, turns = turns[0].text, turns[1:]
        _check_turns(turns, add_generation_prompt)
        if self.image_tags:
            turns = _with_image_turns(turns)
        return _STYLES[self.style](self, system, turns, add_generation_prompt)

    @property
    def answer_start(self) -> str:
        """The start of the assistant's turn, such as "ASSISTANT:"; empty in the style "plain"."""
        if self.style == "llama_2":
            return "[/INST]"
        if self.style == "tagged":
            return f"{self.roles[1]}{self.separators[0]}"
        return f"{self.roles[1]}:" if self.roles[1] else ""

    def is_complete(self, text: str) -> bool:
        """Return whether a text is a complete prompt of this template, which must not be rendered again.

        Such a text ends with the start of the assistant's answer, as in "USER: <image>\\nWhat is this? ASSISTANT:", or
        begins as the template's prompts do and contains it, when the answer has begun too. The system prompt may be
        missing; see `complete`.

        Example:
            >>> from mindone.models.share4v.processing.chat_templates import get_template
            >>> template = get_template("vicuna_v1")
            >>> template.is_complete("USER: <image>\\nWhat is this? ASSISTANT:"), template.is_complete("What is this?")
            (True, False)
        """
        start, stripped = self.answer_start, text.strip()
        if not start:
            return False
        if stripped.endswith(start.strip()):
            return True
        user = {"llama_2": "[INST]", "tagged": self.roles[0]}.get(self.style, f"{self.roles[0]}:")
        begins = stripped.startswith((user, f"{self.separators[0].strip()}{user}", self.system or user))
        return begins and start in stripped

    def lacks_system(self, text: str) -> bool:
        """Return whether a complete prompt begins with the user's turn, although the template has a system prompt."""
        user = f"{self.separators[0].strip()}{self.roles[0]}:"
        return self.style in ("two", "single") and bool(self.system) and text.startswith((user, f"{self.roles[0]}:"))

    def complete(self, text: str, system: str | None = None) -> str:
        """Return a complete prompt with a system prompt in front if it lacks one; its own text stays as it is.

        The model was trained with the system prompt, and without it gives other answers: `sharegpt4v-tiny`, wrong ones.

        Args:
            text: a prompt for which `is_complete` is true.
            system: the system prompt; by default the template's.

        Example:
            >>> from mindone.models.share4v.processing.chat_templates import get_template
            >>> get_template("vicuna_v1").complete("USER: Why? ASSISTANT:", "Be brief.")
            'Be brief. USER: Why? ASSISTANT:'
        """
        if not self.lacks_system(text):
            return text
        separator = self.separators[0]
        joined = "" if separator.strip() and text.startswith(separator) else separator
        return f"{self.system if system is None else system}{joined}{text}"


def _render_roles(template: Template, system: str, turns: Sequence[Message], open_turn: bool) -> str:
    """Render the styles "two" and "single": `system sep`, then `ROLE: text sep` for each turn."""
    named = dict(zip(("user", "assistant"), zip(template.roles, template.separators, strict=True), strict=True))
    text = system + template.separators[0] if system else ""
    for turn in turns:
        role, separator = named[turn.role]
        text += f"{role}: {turn.text}{separator}"
    return text + f"{template.roles[1]}:" if open_turn else text


def _render_plain(template: Template, system: str, turns: Sequence[Message], open_turn: bool) -> str:
    """Render the texts and separators only. In stage 1's data no separator follows a question that is only an image."""
    user_end, assistant_end = template.separators
    text = ""
    for turn in turns:
        only_images = turn.role == "user" and not turn.text.replace(IMAGE_TOKEN, "").strip()
        ending = user_end if turn.role == "user" else assistant_end
        text += turn.text.strip() if only_images else turn.text + ending
    return text


def _render_llama_2(template: Template, system: str, turns: Sequence[Message], open_turn: bool) -> str:
    """Render `[INST] <<SYS>>...<</SYS>> question [/INST] answer </s>`; the tokenizer adds the first `<s>`."""
    start, end = template.separators
    text = ""
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            text += f" {turn.text} {end}"
            continue
        head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if index == 0 and system else ""
        text += f"{start if index else ''}[INST] {head}{turn.text} [/INST]"
    return text


def _render_tagged(template: Template, system: str, turns: Sequence[Message], open_turn: bool) -> str:
    """Render ChatML and LLaMA 3: each turn, the system prompt too, as `tag text end`."""
    head, end = template.separators
    tags = dict(zip(("user", "assistant"), template.roles, strict=True))
    text = f"{template.roles[0].replace('user', 'system')}{head}{system}{end}" if system else ""
    for turn in turns:
        text += f"{tags[turn.role]}{head}{turn.text}{end}"
    return text + template.answer_start if open_turn else text


_STYLES = {
    "two": _render_roles,
    "single": _render_roles,
    "plain": _render_plain,
    "llama_2": _render_llama_2,
    "tagged": _render_tagged,
}

_V1 = {"style": "two", "roles": ("USER", "ASSISTANT"), "separators": (" ", "</s>")}
_V0 = {"style": "single", "roles": ("Human", "Assistant"), "separators": ("###", "###"), "stop_strings": ("###",)}
_LLAMA_2 = {"style": "llama_2", "roles": ("USER", "ASSISTANT"), "separators": ("<s>", "</s>")}
_PLAIN = {"style": "plain", "separators": ("\n", "\n"), "stop_strings": ("\n",), "question": ""}
_CHATML = {
    "style": "tagged",
    "roles": ("<|im_start|>user", "<|im_start|>assistant"),
    "separators": ("\n", "<|im_end|>\n"),
}
_LLAMA_3_TAG = "<|start_header_id|>{}<|end_header_id|>"
_LLAMA_3 = {
    "style": "tagged",
    "roles": (_LLAMA_3_TAG.format("user"), _LLAMA_3_TAG.format("assistant")),
    "separators": ("\n\n", "<|eot_id|>"),
}
_SMOLLM_2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_ROWS: dict[str, dict[str, Any]] = {
    "vicuna_v1": {**_V1, "system": _USER_SYSTEM},  # stage 2 was trained with it
    "plain": _PLAIN,  # stage 1
    "share4v_v1": {**_V1, "system": _HUMAN_SYSTEM},
    "share4v_v0": {**_V0, "system": _HUMAN_SYSTEM},
    "share4v_llama_2": {**_LLAMA_2, "system": _LLAMA_2_SYSTEM},
    "v0_mmtag": {**_V0, "system": _TAG_SYSTEM, "image_tags": True},
    "v1_mmtag": {**_V1, "system": _TAG_SYSTEM, "image_tags": True},
    # Of language models and of LLaVA on them.
    "chatml": _CHATML,
    "smollm2": {**_CHATML, "system": _SMOLLM_2_SYSTEM},
    "llama_3": _LLAMA_3,
}
TEMPLATES: dict[str, Template] = {name: Template(name=name, **row) for name, row in _ROWS.items()}


def get_template(name: str) -> Template:
    """Return the template of this name.

    Raises:
        ValueError: the name is unknown; the message lists the known names and the closest match.
    """
    if isinstance(name, str) and name in TEMPLATES:
        return TEMPLATES[name]
    raise ValueError(unknown("conversation template", name, sorted(TEMPLATES)))


def _check_turns(turns: Sequence[Message], add_generation_prompt: bool) -> None:
    for index, turn in enumerate(turns):
        expected = "user" if index % 2 == 0 else "assistant"
        if turn.role != expected:
            raise ValueError(
                f"turn {index} after the system prompt has the role {turn.role!r}, expected {expected!r}: user and "
                "assistant must alternate, starting with the user"
            )
    if not turns:
        raise ValueError("the conversation has no question: add a message with the role 'user'")
    if add_generation_prompt and turns[-1].role == "assistant":
        raise ValueError("the last message has the role 'assistant', so there is nothing to answer: add a user message")


def _with_image_turns(turns: Sequence[Message]) -> list[Message]:
    """Put each image into a turn of its own, before the turn that contains its `<image>`."""
    result = []
    for turn in turns:
        count = turn.text.count(IMAGE_TOKEN) if turn.role == "user" else 0
        result += [Message("user", f"<Image>{IMAGE_TOKEN}</Image>"), Message("assistant", "Received.")] * count
        result.append(Message(turn.role, turn.text.replace(IMAGE_TOKEN, "").strip()) if count else turn)
    return result
