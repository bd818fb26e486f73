"""Prompts of conversations: which texts are prompts already, and how the last turn of a chat ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .chat_templates import Template
from .messages import IMAGE_TOKEN, Message, read_messages


class Prompt(str):
    """A complete prompt, to which the template has already been applied."""


class Chat(list[Message]):
    """Parsed messages, and how their prompt ends.

    Attributes:
        ending: "open" starts the assistant's answer, "continue" leaves the assistant's last message open, "closed" ends
            after the last message, and "verbatim" means that the one message is a complete prompt.
        given: the messages before parsing.
    """

    def __init__(self, messages: Any, ending: str) -> None:
        super().__init__(read_messages(messages))
        self.ending, self.given = ending, list(messages)


def render_chat(messages: Sequence[Message], num_images: int, template: Template, allow_complete: bool = True) -> str:
    """Return the prompt of a conversation; a Chat ends as it says, any other with the start of the answer.

    If no message has an `<image>`, `num_images` of them are put in front of the first question. A question that is a
    complete prompt of the template (`Template.is_complete`) is not put into the template again.

    Args:
        messages: the conversation.
        num_images: number of its images.
        template: the template.
        allow_complete: whether a question may be a complete prompt; False for a stranger's texts.

    Raises:
        ValueError: a message is out of order or empty, or the last message cannot be continued.
    """
    ending = messages.ending if isinstance(messages, Chat) else "open"
    if ending == "verbatim":
        return messages[0].text
    if ending == "closed":
        return template.render(messages, add_generation_prompt=False)
    if ending == "continue":
        if not messages or messages[-1].role != "assistant":
            raise ValueError("continue_final_message needs a chat whose last message is the assistant's")
        prompt = render_chat(list(messages[:-1]), num_images, template, allow_complete)
        return prompt + (" " if template.answer_start else "") + messages[-1].text.strip()
    turns = list(messages)
    if allow_complete and any(turn.role == "user" and template.is_complete(turn.text) for turn in turns):
        return _with_complete_questions(turns, template)
    if num_images and not any(IMAGE_TOKEN in turn.text for turn in turns):
        first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
        if first is not None:
            turns[first] = replace(turns[first], text=f"{IMAGE_TOKEN}\n" * num_images + turns[first].text)
    if any(turn.role == "user" and not turn.text.strip() for turn in turns):
        raise ValueError("a question is empty and has no image: write what to ask, or give an image")
    return template.render(turns)


def _with_complete_questions(turns: Sequence[Message], template: Template) -> str:
    """Render a conversation in which some questions are complete prompts, whose text stays as it is."""
    system = turns[0].text if turns[0].role == "system" else None
    first = turns[0 if system is None else 1]
    if system is not None and template.is_complete(first.text) and not template.lacks_system(first.text):
        raise ValueError(
            "the question is a complete prompt with its own beginning, so the system message would not be used: leave "
            "one of the two out"
        )
    prompt, before = "", ""  # `before` is what the template makes of the turns so far
    for index, turn in enumerate(turns):
        if turn.role == "system":
            continue
        is_question = turn.role == "user"
        rendered = template.render(turns[: index + 1], add_generation_prompt=is_question)
        if is_question and template.is_complete(turn.text):
            prompt += template.complete(turn.text, system) if turn is first else turn.text
        else:
            prompt += rendered[len(before) :]
        before = rendered
    return prompt
