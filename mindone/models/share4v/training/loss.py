"""The loss of the recipe: cross-entropy of the next token, over answers alone."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ..configuration import IGNORE_INDEX
from ..merging import check_vocabulary, plan_merge
from ..modeling import Share4V, check_pixels


@dataclass(frozen=True)
class Batch:
    """A batch of fixed shapes: B texts of T tokens (an image's patches counted), L ids each, N images.

    Attributes:
        pixel_values: float32 [N, 3, S, S].
        input_ids: int32 [B, L], placeholders replaced by 0.
        index: int32 [B, T], see merging.MergePlan.
        targets: int32 [B, T], the id that follows each position; IGNORE_INDEX where nothing is learnt.
    """

    pixel_values: Tensor
    input_ids: Tensor
    index: Tensor
    targets: Tensor


def make_batch(
    model: Share4V,
    pixel_values: np.ndarray,
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    labels: np.ndarray,
    length: int | None = None,
) -> Batch:
    """Lay out input_ids, attention_mask and labels [B, L] and pixel_values [N, 3, S, S] for `CaptionLoss`.

    Args:
        length: pad to this many tokens, so that every batch has one shape; None takes the longest text.

    Raises:
        ValueError: a text is longer than `length`, images and placeholders disagree, an id or a label is not in the
            vocabulary, or there is nothing to learn.
    """
    config, vocabulary = model.config, model.config.text_config.vocab_size
    plan = plan_merge(input_ids, attention_mask, len(pixel_values), config.num_image_tokens, config.image_token_id)
    check_vocabulary(plan, plan.place(input_ids, 0), vocabulary)
    wanted = plan.place(labels, IGNORE_INDEX)
    wrong = wanted[(wanted != IGNORE_INDEX) & ((wanted < 0) | (wanted >= vocabulary))]
    if wrong.size:
        raise ValueError(f"labels has id {wrong[0]}; the vocabulary goes from 0 to {vocabulary - 1}")
    if (wanted[:, 1:] == IGNORE_INDEX).all():
        raise ValueError(f"no text of the batch has anything to learn: every label is {IGNORE_INDEX}")
    pixels = check_pixels(config.vision_config, pixel_values)
    if not len(pixels):  # a graph has no tensor without rows: an image that no text shows, and no gradient reaches
        pixels = np.zeros((1, *pixels.shape[1:]), np.float32)
    targets = np.full_like(wanted, IGNORE_INDEX)
    targets[:, :-1] = wanted[:, 1:]  # what follows a position is what it must predict
    longest = targets.shape[1]
    if length is not None and longest > length:
        raise ValueError(f"a training text has {longest} tokens with its images, more than the length of {length}")
    room = ((0, 0), (0, (length or longest) - longest))
    return Batch(
        Tensor(pixels),
        Tensor(np.where((input_ids < 0) | (input_ids >= vocabulary), 0, input_ids).astype(np.int32)),
        Tensor(np.pad(plan.index, room).astype(np.int32)),
        Tensor(np.pad(targets, room, constant_values=IGNORE_INDEX).astype(np.int32)),
    )


class CaptionLoss(nn.Cell):
    """Mean cross-entropy over the positions that have a target, as transformers computes it."""

    def __init__(self, model: Share4V, batch_size: int, length: int) -> None:
        super().__init__(auto_prefix=False)  # the weights keep their names
        self.model = model
        self.cos, self.sin, self.mask = model.language_model.tables(batch_size, length)

    def construct(self, pixel_values: Tensor, input_ids: Tensor, index: Tensor, targets: Tensor) -> Tensor:
        features = self.model.mm_projector(self.model.vision_tower(pixel_values))
        embeds = self.model.merge(self.model.language_model.embed(input_ids), features, index)
        logits = self.model.language_model.forward(embeds, self.cos, self.sin, self.mask)
        return mean_cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(logits [R, V])[targets [R]] over the rows whose target is not IGNORE_INDEX.

    The fused operator takes one pass; ops.cross_entropy takes ten times as long on a CPU.
    """
    learnt = (targets != IGNORE_INDEX).astype(ms.float32)
    wanted = ops.one_hot(ops.maximum(targets, 0), logits.shape[-1], Tensor(1.0, ms.float32), Tensor(0.0, ms.float32))
    losses = ops.SoftmaxCrossEntropyWithLogits()(logits, wanted)[0]
    return (losses * learnt).sum() / learnt.sum()
