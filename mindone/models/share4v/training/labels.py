"""Training texts: a conversation's ids, and labels that name the answers alone."""

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
    """One conversation: ids int [L], and labels int [L], IGNORE_INDEX wherever nothing is to be learnt."""

    input_ids: np.ndarray
    labels: np.ndarray


def tokenize_conversation(
    processor: Share4VProcessor, messages: Sequence[Mapping[str, str]], conversation: str | None = None
) -> TrainingText:
    """Tokenize a whole conversation; only what the assistant says, its closing separator included, is learnt.

    Args:
        messages: user and assistant in turn, `<image>` in the text where an image goes.
        conversation: the template; by default the processor's.

    Raises:
        ValueError: a message is malformed, the template is not known, or there is no answer to learn.

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
        answer = slice(_shared(before, ids), _shared(after, ids))
        labels[answer] = ids[answer]
    if (labels == IGNORE_INDEX).all():
        raise ValueError("the conversation has no answer to learn: no message of the assistant")
    return TrainingText(ids, labels)


def _shared(prefix: Sequence[int], ids: np.ndarray) -> int:
    """How many ids agree from the start; a piece may reach over the end of a prefix, and then does not count."""
    length = min(len(prefix), len(ids))
    differs = np.flatnonzero(np.asarray(prefix[:length]) != ids[:length])
    return int(differs[0]) if differs.size else length


def collate(texts: Sequence[TrainingText], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pad texts on the right to [B, width]: input_ids, attention_mask and labels.

    Raises:
        ValueError: a text is longer than `width`.
    """
    input_ids = np.zeros((len(texts), width), np.int64)
    attention_mask = np.zeros_like(input_ids)
    labels = np.full_like(input_ids, IGNORE_INDEX)
    for row, text in enumerate(texts):
        length = len(text.input_ids)
        if length > width:
            raise ValueError(f"a training text has {length} ids, more than the width of {width}")
        input_ids[row, :length] = text.input_ids
        attention_mask[row, :length] = 1
        labels[row, :length] = text.labels
    return input_ids, attention_mask, labels
