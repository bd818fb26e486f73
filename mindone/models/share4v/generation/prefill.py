"""Prefill: process a batch of prompts in chunks of one fixed shape and return the logits of their last tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from ..configuration import TextConfig
from ..nn.host_ops import gather_rows
from .kv_cache import KVCache


@dataclass(frozen=True)
class Prompts:
    """A batch of B prompts as embeddings, with image features in place of image placeholders.

    Attributes:
        table: [R, H], the embeddings of the whole batch: first the tokens', then the image patches'.
        index: int32 [B, T], row of `table` at each position.
        ids: int64 [B, T], token id at each position; -1 at image patches and padding.
        lengths: int64 [B], tokens in each prompt, image patches included.
        names: for each prompt the hashes of its chunks (`kv_cache.prompt_signature`); an empty list disables reuse of
            cached keys and values.
    """

    table: Tensor
    index: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    names: list[list[bytes]]

    def __len__(self) -> int:
        return len(self.lengths)

    def check_context(self, context_length: int) -> None:
        """Check that each prompt leaves space for at least one new token.

        Raises:
            ValueError: a prompt fills the model's context.
        """
        check_context(int(self.lengths.max()), context_length)


def check_context(longest: int, context_length: int) -> None:
    """Check that a prompt of `longest` tokens leaves space for at least one new token.

    Raises:
        ValueError: the prompt fills the model's context.
    """
    if longest >= context_length:
        raise ValueError(
            f"the prompt has {longest} tokens with its images, but the model's context is {context_length}: "
            "shorten the text, send fewer images, or use a model with a longer context"
        )


def check_length(longest: int, context_length: int | None, text: TextConfig) -> None:
    """Check the longest of several sequences, before anything is computed.

    Args:
        longest: number of its tokens.
        context_length: of the model, if an answer is generated; None if the sequence is only read.
        text: its window of attention limits what is read, too.

    Raises:
        ValueError: it is too long.
    """
    if context_length is not None:
        check_context(longest, context_length)
    text.check_window(longest)


def require_finite(logits: np.ndarray, cache: KVCache) -> np.ndarray:
    """Return `logits` if all are finite; otherwise reset `cache`, which may hold NaNs, and raise.

    Raises:
        FloatingPointError: as `check_finite`.
    """
    if not np.isfinite(logits).all():
        cache.reset()
    return check_finite(logits)


def check_finite(logits: np.ndarray) -> np.ndarray:
    """Return `logits`.

    Raises:
        FloatingPointError: a value is NaN or infinite; choosing a token from it would silently give a wrong answer.
    """
    if not np.isfinite(logits).all():
        raise FloatingPointError(
            "the model's logits are not finite numbers: the checkpoint is damaged, or its values are too large for "
            "float16; use another checkpoint or dtype"
        )
    return logits


def prefill(prompts: Prompts, cache: KVCache, config: TextConfig) -> np.ndarray:
    """Process `prompts` into `cache`, skipping the prefix it already stores; return float32 logits [B, V].

    Rows of the cache beyond the batch stay idle.

    Raises:
        FloatingPointError: the logits are not finite.
    """
    rows, batch = cache.batch_size, len(prompts)
    is_dynamic = config.rope_scaling is not None and config.rope_scaling.rope_type == "dynamic"
    lengths = np.zeros(rows, np.int64)
    lengths[:batch] = prompts.lengths
    # Dynamic rotary scaling depends on the prompt's length, so long prompts with equal prefixes have different keys.
    names = [
        [] if is_dynamic and length > config.max_position_embeddings else chunk_names
        for chunk_names, length in zip(prompts.names, prompts.lengths, strict=True)
    ]
    starts = np.zeros(rows, np.int64)
    starts[:batch] = [cache.common_prefix(row, names[row], int(lengths[row])) for row in range(batch)]
    cache.begin()
    chunk = cache.decoder.chunk
    logits: list[np.ndarray | None] = [None] * batch
    for first in range(0, int((lengths - starts).max()), chunk):
        offsets = starts + first
        positions = offsets[:, None] + np.arange(chunk)  # [rows, C]
        inside = positions < lengths[:, None]
        columns = np.minimum(positions[:batch], prompts.index.shape[1] - 1)
        index = np.zeros((rows, chunk), np.int32)
        index[:batch] = np.where(inside[:batch], np.take_along_axis(prompts.index, columns, 1), 0)
        last = np.clip(lengths - 1 - offsets, 0, chunk - 1)
        embeds = gather_rows(prompts.table, index)  # [rows, C, H]
        step = cache.decoder.prefill(embeds, np.where(inside, positions, -1), np.maximum(lengths, 1), last).asnumpy()
        for row in range(batch):
            if offsets[row] <= lengths[row] - 1 < offsets[row] + chunk:
                logits[row] = step[row]
    result = require_finite(np.stack([row for row in logits if row is not None]), cache)
    for row in range(batch):
        cache.record(row, names[row])
    return result
