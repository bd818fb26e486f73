"""The worker process of mindnlp's LLaMA, which is Hugging Face's class on MindSpore tensors.

It needs its own process because of what `import mindnlp` does: it puts its own torch into sys.modules, patches
transformers, and replaces methods of MindSpore's Tensor by PyTorch's (`transpose` then takes two axes, `mean` other
arguments), which breaks code written for MindSpore.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np

from .process import serve

GROWTH = 64  # slots by which a cache grows


def main(descriptor: int) -> None:
    """Serve one model on the pipe of this file descriptor."""
    serve(descriptor, MindNLPLlama)


def import_torch() -> Any:
    """Import mindnlp and return its replacement of torch.

    Raises:
        ImportError: PyTorch was imported before, or a dependency of mindnlp is missing or has an incompatible version.
    """
    before = sys.modules.get("torch")
    if before is not None and "mindnlp" not in sys.modules:
        raise ImportError(
            f"PyTorch ({getattr(before, '__file__', 'torch')}) was imported before mindnlp, which replaces the torch "
            "module and must be imported first: remove what imports torch when Python starts "
            "(a .pth file, sitecustomize)"
        )
    try:
        import mindnlp  # noqa: F401
    except Exception as error:  # incompatible versions raise ImportError, AttributeError and others
        raise ImportError(
            f"import mindnlp failed with MindSpore {ms.__version__} ({type(error).__name__}: {error}): pip install "
            "'mindone-share4v[mindnlp]', which pins compatible versions, in a separate environment"
        ) from error
    import torch

    return torch


class SlotCache:
    """Keys and values of a batch by slot; Hugging Face's attention receives it as past_key_values.

    Slot p + 1 of a sequence belongs to position p; padding is written to slot 0.

    Attributes:
        slots: allocated slots per sequence.
        visible: slots per sequence that the current call may attend to.
    """

    def __init__(self, torch: Any, layers: int) -> None:
        self.torch = torch
        self.slots = self.visible = 0
        self.stored: list[tuple[Any, Any]] = [(None, None)] * layers  # key and value [B, Hkv, S, D]
        self.index: Any = None  # slots of the current call's tokens, [B, 1, T, 1]

    def begin(self, positions: np.ndarray) -> np.ndarray:
        """Prepare a call with tokens at positions [B, T] (-1: padding).

        Returns which slots each token may attend to, bool [B, T, S].
        """
        self.visible = -(-(int(positions.max()) + 2) // GROWTH) * GROWTH
        self.slots = max(self.slots, self.visible)
        self.index = self.torch.tensor((positions + 1)[:, None, :, None])
        slots = np.arange(self.visible)
        return (slots > 0) & (slots <= positions[:, :, None] + 1)

    def update(self, key: Any, value: Any, layer: int, cache_kwargs: Any = None) -> tuple[Any, Any]:
        """Write key and value [B, Hkv, T, D] of a layer; return all visible ones, [B, Hkv, S, D]."""
        index = self.index.expand(*key.shape)
        old_keys, old_values = self.stored[layer]
        keys, values = self._write(old_keys, key, index), self._write(old_values, value, index)
        self.stored[layer] = keys, values
        if self.visible < self.slots:  # the cache has held longer sequences
            return keys[:, :, : self.visible], values[:, :, : self.visible]
        return keys, values

    def _write(self, old: Any, new: Any, index: Any) -> Any:
        """Return `old` [B, Hkv, S, D] or None, grown to `self.slots`, with `new` [B, Hkv, T, D] at `index`."""
        size = 0 if old is None else old.shape[2]
        if size < self.slots:
            empty = self.torch.zeros(new.shape[0], new.shape[1], self.slots - size, new.shape[3], dtype=new.dtype)
            old = empty if old is None else self.torch.cat([old, empty], 2)
        return old.scatter(2, index, new)

    def copy_sequences(self, source: SlotCache, indices: np.ndarray) -> None:
        """Copy sequence `indices[i]` of `source` to every sequence i."""
        chosen = self.torch.tensor(indices)
        self.slots = source.slots
        for layer, (key, value) in enumerate(source.stored):  # layer by layer, so that there are never two caches
            self.stored[layer] = (
                (None, None) if key is None else (key.index_select(0, chosen), value.index_select(0, chosen))
            )


class MindNLPLlama:
    """Hugging Face's LlamaForCausalLM on mindnlp, with its caches; arguments and results are NumPy arrays."""

    def __init__(self) -> None:
        self.torch = import_torch()
        if ms.get_context("device_target") == "CPU":
            # Operators run in the calling thread. In MindSpore's pipeline two threads spin while they wait for each
            # other, which takes most of the CPU time of a decoding step, and errors appear at a later operator.
            ms.runtime.launch_blocking()
        self.caches: dict[int, SlotCache] = {}
        self.arrays: dict[str, np.ndarray] = {}

    def build(self, settings: Mapping[str, Any], dtype: str) -> dict[str, tuple[int, ...]]:
        """Create the model without memory for its weights; return their shapes by name.

        Args:
            settings: fields of LlamaConfig.
            dtype: "float32" or "float16", for weights and arithmetic.
        """
        from transformers import LlamaConfig, LlamaForCausalLM

        torch = self.torch
        with torch.device("meta"):
            self.model = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="eager")).eval()
        self.dtype, self.is_tied = dtype, bool(settings["tie_word_embeddings"])
        self.tables: tuple[Any, Any] = (None, None)
        # For dynamic scaling Hugging Face uses the longest sequence's length; our tables use each sequence's own.
        self.model.model.rotary_emb = _precomputed_rotary(torch, self)
        return {name: tuple(int(size) for size in value.shape) for name, value in self.model.named_parameters()}

    def put(self, name: str, array: np.ndarray) -> None:
        """Set a weight; the array is used without copying it."""
        self.arrays[name] = array
        owner, _, leaf = name.rpartition(".")
        weight = self.torch.nn.Parameter(self.torch.from_numpy(array), requires_grad=False)
        setattr(self.model.get_submodule(owner), leaf, weight)
        if self.is_tied and name == "model.embed_tokens.weight":
            self.model.lm_head.weight = weight

    def array(self, name: str) -> np.ndarray:
        """Return a weight."""
        return self.arrays[name]

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """ids [B, T] -> embeddings, float32 [B, T, H]."""
        with self.torch.no_grad():
            return self._array(self.model.model.embed_tokens(self.torch.tensor(ids.astype(np.int64))))

    def new_cache(self, number: int) -> None:
        """Create an empty cache with this number."""
        self.caches[number] = SlotCache(self.torch, self.model.config.num_hidden_layers)

    def free_caches(self, numbers: list[int]) -> None:
        """Free caches."""
        for number in numbers:
            self.caches.pop(number, None)

    def copy_sequences(self, number: int, source: int, indices: np.ndarray) -> None:
        """Copy sequence `indices[i]` of the cache `source` to every sequence i of the cache `number`."""
        self.caches[number].copy_sequences(self.caches[source], indices)

    def forward(
        self,
        number: int,
        tokens: np.ndarray,
        positions: np.ndarray,
        tables: tuple[np.ndarray, np.ndarray],
        last: np.ndarray | None,
    ) -> np.ndarray:
        """Run the model with a cache.

        Args:
            number: the cache's number.
            tokens: ids [B, T] or embeddings [B, T, H].
            positions: int [B, T], -1 for padding.
            tables: rotary cos and sin, float32 [B, T, D].
            last: int [B], the token of each sequence whose logits are returned; None for all tokens.

        Returns:
            float32 logits [B, V] or [B, T, V].
        """
        torch = self.torch
        cache = self.caches[number]
        visible = cache.begin(positions)
        # Far below any score, but finite in both dtypes: a query with all keys masked gives an average instead of NaN.
        mask = np.where(visible, 0, -3e4)[:, None].astype(self.dtype)  # [B, 1, T, S]
        self.tables = tuple(torch.from_numpy(table.astype(self.dtype)) for table in tables)
        with torch.no_grad():
            embeds = tokens if tokens.ndim == 3 else self.embed(tokens)
            hidden = self.model.model(
                inputs_embeds=torch.from_numpy(embeds.astype(self.dtype)),
                attention_mask=torch.from_numpy(mask),
                position_ids=torch.tensor(np.maximum(positions, 0)),
                cache_position=torch.arange(positions.shape[1]),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            if last is not None:
                rows = hidden.reshape(-1, hidden.shape[-1])
                hidden = rows.index_select(0, torch.tensor(np.arange(len(last)) * positions.shape[1] + last))
            return self._array(self.model.lm_head(hidden))

    def _array(self, tensor: Any) -> np.ndarray:
        return np.asarray(tensor.asnumpy(), np.float32)


def _precomputed_rotary(torch: Any, owner: MindNLPLlama) -> Any:
    """Return a module that replaces Hugging Face's rotary embedding and returns the tables of the current call."""

    class PrecomputedRotary(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, position_ids: Any) -> tuple[Any, Any]:
            return owner.tables

    return PrecomputedRotary()
