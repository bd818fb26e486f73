"""Tokenization of conversations for training, with labels for the answers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..configuration import IGNORE_INDEX
from ..processing.chat_templates import get_template
from ..processing.messages import read_messages
from ..processing.processor import Share4VProcessor


@dataclass(frozen=True)
class TrainingText:
    """A tokenized conversation: input_ids int [L], and labels int [L], IGNORE_INDEX except in the answers."""

    input_ids: np.ndarray
    labels: np.ndarray


def tokenize_conversation(
    processor: Share4VProcessor, messages: Sequence[Mapping[str, str]], conversation: str | None = None
) -> TrainingText:
    """Tokenize a conversation; labels are the assistant's messages, including their closing separators.

    Args:
        messages: alternating messages of user and assistant, with `<image>` in the text for each image.
        conversation: name of the chat template; by default the processor's.

    Raises:
        ValueError: a message is malformed, the template is unknown, or no message is the assistant's.

    Example:
        >>> from mindone.models.share4v import IGNORE_INDEX, Share4VProcessor
        >>> from mindone.models.share4v.training.labels import tokenize_conversation
        >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
        >>> text = tokenize_conversation(processor, [
        ...     {"role": "user", "content": "<image>\\nDescribe this image"},
        ...     {"role": "assistant", "content": "A red circle."}])
        >>> processor.decode(text.labels[text.labels != IGNORE_INDEX].tolist())
        'A red circle.'
    """
    template = get_template(processor.conversation if conversation is None else conversation)
    turns = read_messages(messages)
    ids = np.array(processor.encode_prompt(template.render(turns, add_generation_prompt=False)), np.int64)
    labels = np.full_like(ids, IGNORE_INDEX)
    for number, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before = processor.encode_prompt(template.render(turns[:number], add_generation_prompt=True))
        after = processor.encode_prompt(template.render(turns[: number + 1], add_generation_prompt=False))
        answer = slice(_common_prefix(before, ids), _common_prefix(after, ids))
        labels[answer] = ids[answer]
    if (labels == IGNORE_INDEX).all():
        raise ValueError("the conversation has no message with role 'assistant', so there is nothing to train on")
    return TrainingText(ids, labels)


def _common_prefix(prefix: Sequence[int], ids: np.ndarray) -> int:
    """Return the length of the common prefix.

    It can be shorter than `prefix`: in the full conversation a token may span the end of `prefix`.
    """
    length = min(len(prefix), len(ids))
    differs = np.flatnonzero(np.asarray(prefix[:length]) != ids[:length])
    return int(differs[0]) if differs.size else length


def collate(texts: Sequence[TrainingText], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pad on the right, and return input_ids, attention_mask and labels, each int [B, width].

    Raises:
        ValueError: a conversation is longer than `width`.
    """
    input_ids = np.zeros((len(texts), width), np.int64)
    attention_mask = np.zeros_like(input_ids)
    labels = np.full_like(input_ids, IGNORE_INDEX)
    for row, text in enumerate(texts):
        length = len(text.input_ids)
        if length > width:
            raise ValueError(f"conversation {row} of the batch has {length} ids, more than the width of {width}")
        input_ids[row, :length] = text.input_ids
        attention_mask[row, :length] = 1
        labels[row, :length] = text.labels
    return input_ids, attention_mask, labels
