"""The training loss: cross-entropy of the next token, over the answers only."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ..configuration import IGNORE_INDEX
from ..embedding_merging import check_vocabulary, plan_merge
from ..inputs import check_pixels
from ..modeling import Share4V


@dataclass(frozen=True)
class Batch:
    """A batch of B sequences of T tokens, image patches included, from L ids each, with N images.

    Attributes:
        pixel_values: float32 [N, 3, S, S].
        input_ids: int32 [B, L], with image placeholders replaced by 0.
        index: int32 [B, T], see merging.MergePlan.
        targets: int32 [B, T], the id that each position must predict; IGNORE_INDEX for none.
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
    """Prepare input_ids, attention_mask and labels [B, L] and pixel_values [N, 3, S, S] for `CaptionLoss`.

    Args:
        length: pad to this number of tokens T, and the ids as well, so that all batches of as many images have the same
            shapes and share one compiled step; by default T is the longest sequence's, and L is kept.

    Raises:
        ValueError: a sequence is longer than `length`, the numbers of images and placeholders differ, an id or a label
            is not in the vocabulary, or no label is set.
    """
    config, vocabulary = model.config, model.config.text_config.vocab_size
    given = input_ids.shape  # what does not fit together is refused below, with the shapes that were received
    if length is not None and len(given) == 2 and attention_mask.shape == labels.shape == given:
        columns = (0, 0), (0, max(0, length - given[1]))
        input_ids, attention_mask = np.pad(input_ids, columns), np.pad(attention_mask, columns)
        labels = np.pad(labels, columns, constant_values=IGNORE_INDEX)
    plan = plan_merge(input_ids, attention_mask, len(pixel_values), config.num_image_tokens, config.image_token_id)
    check_vocabulary(plan, plan.place(input_ids, 0), vocabulary)
    placed = plan.place(labels, IGNORE_INDEX)  # [B, T]
    invalid = placed[(placed != IGNORE_INDEX) & ((placed < 0) | (placed >= vocabulary))]
    if invalid.size:
        raise ValueError(f"labels contains id {invalid[0]}; valid ids are 0 to {vocabulary - 1} and {IGNORE_INDEX}")
    if (placed[:, 1:] == IGNORE_INDEX).all():
        raise ValueError(f"the batch has nothing to train on: every label is {IGNORE_INDEX}")
    pixels = check_pixels(config, pixel_values)
    if not len(pixels):  # graphs do not support empty tensors: add an image to which `index` does not refer
        pixels = np.zeros((1, *pixels.shape[1:]), np.float32)
    config.text_config.check_window(placed.shape[1])
    targets = np.full_like(placed, IGNORE_INDEX)
    targets[:, :-1] = placed[:, 1:]  # each position predicts the next id
    longest = targets.shape[1]
    if length is not None and longest > length:
        raise ValueError(f"a sequence has {longest} tokens with its images, more than the length of {length}")
    padding = ((0, 0), (0, (length or longest) - longest))
    return Batch(
        Tensor(pixels),
        Tensor(np.where((input_ids < 0) | (input_ids >= vocabulary), 0, input_ids).astype(np.int32)),
        Tensor(np.pad(plan.index, padding).astype(np.int32)),
        Tensor(np.pad(targets, padding, constant_values=IGNORE_INDEX).astype(np.int32)),
    )


class CaptionLoss(nn.Cell):
    """Mean cross-entropy over all positions with a target, as in transformers.

    Args:
        model: the model.
        batch_size, length: B and T of all batches.
        dtype: what the components compute in, whatever the dtype of their weights; those that always compute in their
            weights' dtype (protocols.py) still do. The loss, norms, softmax and activation functions are float32.
    """

    def __init__(self, model: Share4V, batch_size: int, length: int, dtype: ms.Type = ms.float32) -> None:
        super().__init__(auto_prefix=False)  # keep the weights' names
        self.model = model
        self.cos, self.sin, self.mask = model.language_model.tables(batch_size, length)
        self.dtype = dtype
        self.pixels_dtype, self.features_dtype = (
            dtype if getattr(component, "computes_in_input_dtype", False) else ms.float32
            for component in (model.vision_tower, model.mm_projector)
        )

    def construct(self, pixel_values: Tensor, input_ids: Tensor, index: Tensor, targets: Tensor) -> Tensor:
        features = self.model.vision_tower(pixel_values.astype(self.pixels_dtype))  # [N, P, D]
        features = self.model.mm_projector(features.astype(self.features_dtype))  # [N, P, H]
        # Merged in float32, so that the gradients of a token that occurs several times are added up in float32.
        tokens = self.model.language_model.embed(input_ids).astype(ms.float32)
        embeds = self.model.merge(tokens, features.astype(ms.float32), index).astype(self.dtype)  # [B, T, H]
        logits = self.model.language_model.forward(embeds, self.cos, self.sin, self.mask)  # [B, T, V]
        return mean_cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of -log softmax(logits [R, V])[targets [R]] over the rows whose target is not IGNORE_INDEX.

    Uses the fused operator, because ops.cross_entropy takes ten times as long on a CPU.
    """
    has_target = (targets != IGNORE_INDEX).astype(ms.float32)  # [R]
    one_hot = ops.one_hot(ops.maximum(targets, 0), logits.shape[-1], Tensor(1.0, ms.float32), Tensor(0.0, ms.float32))
    losses = ops.SoftmaxCrossEntropyWithLogits()(logits, one_hot)[0]  # [R]
    return (losses * has_target).sum() / has_target.sum()
