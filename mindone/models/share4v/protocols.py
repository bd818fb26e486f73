"""What a component must offer to be put together with the others; the registries' components keep to these.

Tower and projector are compiled as one graph, so both must be cells whose `construct` MindSpore can compile.

Training in half precision (`training.trainer.Stage.precision`) keeps weights in float32 and passes float32 inputs to a
tower or projector, unless it has the attribute `computes_in_input_dtype = True`: then they are float16 or bfloat16, and
the component must cast its weights where it uses them. The language model must do so.
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
    """A language model with a KV cache for a batch of sequences.

    Attributes:
        chunk: tokens per sequence in one prefill step, a multiple of kv_cache.CHUNK. If padding is skipped, a step may
            have any number C, of up to B * chunk tokens together.
        can_copy_prefix: whether `copy_prefix` is implemented.
        skips_padding: whether prefill skips tokens at position -1, so that a sequence with one token in the chunk costs
            one token.
    """

    chunk: int
    can_copy_prefix: bool
    skips_padding: bool

    def prefill(self, inputs_embeds: Tensor, positions: np.ndarray, totals: np.ndarray, last: np.ndarray) -> Tensor:
        """Process one chunk of each prompt.

        Args:
            inputs_embeds: [B, C, H].
            positions: int [B, C]; -1 marks padding.
            totals: int [B], the length of each whole prompt in tokens.
            last: int [B], the index in the chunk of each prompt's last token; ignored for prompts that do not end in
                this chunk.

        Returns:
            float32 logits [B, V] of the tokens `last`; undefined for prompts that do not end in this chunk.
        """

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> Tensor:
        """Process one token of each sequence: ids and positions int [B] -> float32 logits [B, V].

        A sequence at position -1 is finished; its logits are undefined.
        """

    def copy_sequences(self, source: Any, indices: np.ndarray) -> None:
        """Copy sequence `indices[i]` of `source` to sequence i, for every i.

        `source` is a cache of the same model with the same capacity, or this cache.
        """

    def copy_prefix(self, sequence: int, source: Any, length: int, origin: int = 0) -> None:
        """Copy the first `length` tokens of sequence `origin` of `source` to `sequence`; the others are unchanged.

        `source` is a cache of the same model, or this cache.
        """


class LanguageModel(Protocol):
    """Constructed as `model(config, dtype)`.

    Attributes:
        activations: MindSpore's type of the embeddings.
        allocates_cache_lazily: whether unused capacity of a cache takes no memory, so that every cache may have the
            model's full context as its capacity.
    """

    activations: Any
    allocates_cache_lazily: bool

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None: ...

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> embeddings [B, T, H]."""

    def __call__(self, inputs_embeds: Tensor, lengths: np.ndarray | None = None) -> Tensor:
        """Compute causal logits without a cache: inputs_embeds [B, T, H] -> float32 [B, T, V].

        Positions start at 0; `lengths` [B] are the lengths of padded sequences, None if none is padded.
        """

    def new_cached(self, batch_size: int, capacity: int) -> CachedLanguageModel:
        """Return this model with a cache for `batch_size` sequences of up to `capacity` tokens; weights are shared."""
