"""Batches for training, for a reference of helpers.llava and for our model of the same weights."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from mindone.models.share4v import IGNORE_INDEX, Share4V
from mindone.models.share4v.training.loss import Batch, CaptionLoss, make_batch

from .backends import CELLS
from .llava import IMAGE, Reference, padded

Pair = tuple[Reference, Share4V]
Texts = tuple[list[list[int]], list[list[int]]]


def texts_with(reference: Reference, *images: int) -> Texts:
    """Prompts with so many images each, and labels: of some tokens none is learnt, images never."""
    prompts, labels = [], []
    for number, count in enumerate(images):
        prompt = [1, *reference.text(2), *[IMAGE] * count, *reference.text(4 + 2 * number), 2]
        prompts.append(prompt)
        labels.append([item if place > 2 + count else IGNORE_INDEX for place, item in enumerate(prompt)])
    return prompts, labels


def copy_of(model: Share4V) -> Share4V:
    """A model on MindSpore's cells with the same weights."""
    copied = Share4V(model.config, **CELLS)
    for (_, ours), (_, theirs) in zip(copied.parameters_and_names(), model.parameters_and_names(), strict=True):
        ours.set_data(Tensor(theirs.asnumpy()))
    return copied


def batch_of(model: Share4V, texts: Texts, pixels: np.ndarray, length: int | None = None) -> Batch:
    ids, mask = padded(texts[0], "right")
    labels = np.where(mask == 1, padded(texts[1], "right")[0], IGNORE_INDEX)
    return make_batch(model, pixels, ids, mask, labels, length)


def loss_of(model: Share4V, batch: Batch) -> CaptionLoss:
    return CaptionLoss(model, *batch.index.shape)


def our_name(name: str) -> str:
    """transformers' name of a weight as ours."""
    for theirs, ours in (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.linear_1.", "mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "mm_projector.2."),
        ("lm_head.", "language_model.lm_head."),
    ):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise KeyError(name)
