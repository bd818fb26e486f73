"""What a component must offer to be put together with the others; the registries' components keep to these.

Tower and projector are compiled as one graph, so both must be cells whose `construct` MindSpore can compile.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from mindspore import Tensor

from .configuration import Share4VConfig


class VisionTower(Protocol):
    """Made as `tower(config, dtype)`."""

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None: ...

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] float32 -> features [B, N, D], N = config.num_image_tokens."""


class Projector(Protocol):
    """Made as `projector(config, dtype)`."""

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None: ...

    def __call__(self, features: Tensor) -> Tensor:
        """features [B, N, D] -> embeddings [B, N, H], H = config.text_config.hidden_size."""


class CachedLanguageModel(Protocol):
    """A language model with room for a batch of texts.

    `chunk` is how many tokens of each text one prefill step takes, a multiple of cache.CHUNK; `shares_prefixes` says
    whether `copy_prefix` is there; `skips_idle_rows` whether prefill spends nothing on tokens at position -1, so that a
    text whose chunk is one token costs one token.
    """

    chunk: int
    shares_prefixes: bool
    skips_idle_rows: bool

    def prefill(self, inputs_embeds: Tensor, positions: np.ndarray, totals: np.ndarray, last: np.ndarray) -> Tensor:
        """Take in a chunk [B, C, H] at positions [B, C] (-1: padding) of prompts of `totals` [B] tokens.

        Returns float32 logits [B, V] of the token at index `last` [B] of the chunk, for texts whose prompt ends there;
        another text's are of no use.
        """

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> Tensor:
        """Take in one token of each text, ids and positions [B] (-1: text is done) -> float32 logits [B, V]."""

    def take(self, source: Any, texts: np.ndarray) -> None:
        """Let text i go on from what text `texts`[i] of `source`, a model of the same kind, has kept."""

    def copy_prefix(self, text: int, source: Any, length: int) -> None:
        """Let `text` hold the first `length` tokens of the first text of `source`; the other texts stay."""


class LanguageModel(Protocol):
    """Made as `model(config, dtype)`.

    `activations` is the type of embeddings; `takes_memory_as_used` says that room for more tokens than come costs
    nothing, so that every cache may be as long as the model's context.
    """

    activations: Any
    takes_memory_as_used: bool

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None: ...

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> embeddings [B, T, H]."""

    def __call__(self, inputs_embeds: Tensor, lengths: np.ndarray | None = None) -> Tensor:
        """inputs_embeds [B, T, H], texts beginning at position 0 -> float32 logits [B, T, V], causal.

        `lengths` [B] are the texts' own; None: all are full.
        """

    def new_cached(self, batch_size: int, capacity: int) -> CachedLanguageModel:
        """Return this model with room for `batch_size` texts of up to `capacity` tokens, sharing the weights."""
