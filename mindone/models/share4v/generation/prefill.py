"""Prefill: a batch of prompts goes into a cache by chunks of one shape, and the logits of each last token come out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from ..configuration import TextConfig
from ..nn.host_ops import gather_rows
from .kv_cache import KVCache


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, laid out.

    Attributes:
        table: [R, H], all embeddings of the batch (tokens, then image patches).
        index: int32 [B, T], row of `table` at each position.
        ids: int64 [B, T], the id at each position; -1 where an image or filling is.
        lengths: int64 [B].
        names: for each text the names of its chunks (cache.prompt_signature); empty where nothing may be used again.
    """

    table: Tensor
    index: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    names: list[list[bytes]]

    def __len__(self) -> int:
        return len(self.lengths)


def finite(logits: np.ndarray, cache: KVCache) -> np.ndarray:
    """Return `logits`, which `cache` has led to; a cache that led to what is not a number is renewed first."""
    if not np.isfinite(logits).all():
        cache.reset()
    return check_finite(logits)


def check_finite(logits: np.ndarray) -> np.ndarray:
    """Return `logits`.

    Raises:
        FloatingPointError: one is not a number; a caption of such would be a wrong answer without a word.
    """
    if not np.isfinite(logits).all():
        raise FloatingPointError(
            "the model's logits are not finite numbers: the checkpoint is damaged, or its values are too large for "
            "float16"
        )
    return logits


def prefill(prompts: Prompts, cache: KVCache, config: TextConfig) -> np.ndarray:
    """Take `prompts` into `cache`, sparing what it holds of them already; return float32 logits [B, V].

    Texts of the cache beyond the batch stay idle.
    """
    rows, batch = cache.batch_size, len(prompts)
    stretches = config.rope_scaling is not None and config.rope_scaling.rope_type == "dynamic"
    lengths = np.zeros(rows, np.int64)
    lengths[:batch] = prompts.lengths
    # Dynamic rotary scaling turns a long prompt's keys by its length, so that equal beginnings have unequal keys.
    names = [[] if stretches and length > config.max_position_embeddings else held
             for held, length in zip(prompts.names, prompts.lengths, strict=True)]  # fmt: skip
    starts = np.zeros(rows, np.int64)
    starts[:batch] = [cache.common_prefix(text, names[text], int(lengths[text])) for text in range(batch)]
    cache.begin()
    step_size = cache.decoder.chunk
    logits: list[np.ndarray | None] = [None] * batch
    for first in range(0, int((lengths - starts).max()), step_size):
        offsets = starts + first
        positions = offsets[:, None] + np.arange(step_size)  # [rows, C]
        inside = positions < lengths[:, None]
        columns = np.minimum(positions[:batch], prompts.index.shape[1] - 1)
        index = np.zeros((rows, step_size), np.int32)
        index[:batch] = np.where(inside[:batch], np.take_along_axis(prompts.index, columns, 1), 0)
        last = np.clip(lengths - 1 - offsets, 0, step_size - 1)
        embeds = gather_rows(prompts.table, index)
        step = cache.decoder.prefill(embeds, np.where(inside, positions, -1), np.maximum(lengths, 1), last).asnumpy()
        for text in range(batch):
            if offsets[text] <= lengths[text] - 1 < offsets[text] + step_size:
                logits[text] = step[text]
    answers = finite(np.stack([row for row in logits if row is not None]), cache)
    for text in range(batch):
        cache.record(text, names[text])
    return answers
