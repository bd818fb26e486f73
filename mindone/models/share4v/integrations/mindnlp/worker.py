"""mindnlp's LLaMA, which is Hugging Face's class on MindSpore's tensors: what runs in its own process.

`import mindnlp` puts its own torch into sys.modules, patches transformers, and gives MindSpore's Tensor the methods of
PyTorch's (`transpose` takes two axes then, `mean` other arguments), so that code written for MindSpore fails beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np

from .process import serve

SLOTS = 64  # a cache grows by so many


def main(descriptor: int) -> None:
    """Serve one model on a pipe."""
    serve(descriptor, MindNLPLlama)


def import_torch() -> Any:
    """Import mindnlp, and return the torch that it brings.

    Raises:
        ImportError: PyTorch itself was imported before, or what mindnlp needs is missing or too new.
    """
    before = sys.modules.get("torch")
    if before is not None and "mindnlp" not in sys.modules:
        raise ImportError(
            f"PyTorch ({getattr(before, '__file__', 'torch')}) was imported before mindnlp, which puts its own in that "
            "place and must come first: remove what imports torch when Python starts (a .pth file, sitecustomize)"
        )
    try:
        import mindnlp  # noqa: F401
    except Exception as error:  # missing names and attributes, where versions do not go together
        raise ImportError(
            f"import mindnlp failed with MindSpore {ms.__version__} ({type(error).__name__}: {error}): pip install "
            "'mindone-share4v[mindnlp]', which pins versions that go together, into an environment of its own"
        ) from error
    import torch

    return torch


class SlotCache:
    """Keys and values of a batch, by slot: what Hugging Face's attention calls past_key_values.

    Slot p + 1 of a text belongs to position p; slot 0 takes what padding writes.
    """

    def __init__(self, torch: Any, layers: int) -> None:
        self.torch = torch
        self.slots = self.visible = 0
        self.held: list[tuple[Any, Any]] = [(None, None)] * layers
        self.index: Any = None

    def begin(self, positions: np.ndarray) -> np.ndarray:
        """Make ready for tokens at positions [B, T] (-1: padding); return which slots each may see, bool [B, T, S]."""
        self.visible = -(-(int(positions.max()) + 2) // SLOTS) * SLOTS
        self.slots = max(self.slots, self.visible)
        self.index = self.torch.tensor((positions + 1)[:, None, :, None])  # [B, 1, T, 1]
        slots = np.arange(self.visible)
        return (slots > 0) & (slots <= positions[:, :, None] + 1)

    def update(self, key: Any, value: Any, layer: int, cache_kwargs: Any = None) -> tuple[Any, Any]:
        """Write keys and values [B, H, T, D] of a layer, and return what may be seen of all, [B, H, S, D]."""
        index = self.index.expand(*key.shape)
        old = self.held[layer]
        keys, values = self.held[layer] = self._written(old[0], key, index), self._written(old[1], value, index)
        if self.visible < self.slots:  # a longer text stood here before
            return keys[:, :, : self.visible], values[:, :, : self.visible]
        return keys, values

    def _written(self, kept: Any, new: Any, index: Any) -> Any:
        have = 0 if kept is None else kept.shape[2]
        if have < self.slots:
            room = self.torch.zeros(new.shape[0], new.shape[1], self.slots - have, new.shape[3], dtype=new.dtype)
            kept = room if kept is None else self.torch.cat([kept, room], 2)
        return kept.scatter(2, index, new)

    def copy_sequences(self, source: SlotCache, texts: np.ndarray) -> None:
        """Let text i hold what text `texts`[i] of `source` holds."""
        chosen = self.torch.tensor(texts)
        self.slots = source.slots
        self.held = [
            (None, None) if key is None else (key.index_select(0, chosen), value.index_select(0, chosen))
            for key, value in source.held
        ]


class MindNLPLlama:
    """Hugging Face's LlamaForCausalLM by way of mindnlp, and the caches made for it. Arrays go in and come out."""

    def __init__(self) -> None:
        self.torch = import_torch()
        self.caches: dict[int, SlotCache] = {}
        self.arrays: dict[str, np.ndarray] = {}

    def build(self, settings: Mapping[str, Any], dtype: str) -> dict[str, tuple[int, ...]]:
        """Make the model without memory for its weights; return their shapes by name.

        Args:
            settings: fields of LlamaConfig.
            dtype: "float32" or "float16", the type of weights and arithmetic.
        """
        from transformers import LlamaConfig, LlamaForCausalLM

        torch = self.torch
        with torch.device("meta"):
            self.model = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="eager")).eval()
        self.dtype, self.is_tied = dtype, bool(settings["tie_word_embeddings"])
        self.tables: tuple[Any, Any] = (None, None)
        # Our tables turn every text by its own length, also where dynamic scaling would go by the longest.
        self.model.model.rotary_emb = _given_tables(torch, self)
        return {name: tuple(int(size) for size in value.shape) for name, value in self.model.named_parameters()}

    def put(self, name: str, array: np.ndarray) -> None:
        """Take a weight; the array is used as it is, not copied."""
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
        """Make an empty cache, under a number."""
        self.caches[number] = SlotCache(self.torch, self.model.config.num_hidden_layers)

    def free_caches(self, numbers: list[int]) -> None:
        """Forget caches."""
        for number in numbers:
            self.caches.pop(number, None)

    def copy_sequences(self, number: int, source: int, texts: np.ndarray) -> None:
        """Let a cache's text i go on from text `texts`[i] of another."""
        self.caches[number].copy_sequences(self.caches[source], texts)

    def forward(
        self,
        number: int,
        tokens: np.ndarray,
        positions: np.ndarray,
        tables: tuple[np.ndarray, np.ndarray],
        last: np.ndarray | None,
    ) -> np.ndarray:
        """Run tokens through the model over a cache.

        Args:
            number: the cache's.
            tokens: ids [B, T] or embeddings [B, T, H].
            positions: int [B, T], -1 for padding.
            tables: cosines and sines, float32 [B, T, D].
            last: int [B], the token of each text whose logits are wanted; None: every token's.

        Returns:
            float32 logits [B, V] or [B, T, V].
        """
        torch = self.torch
        cache = self.caches[number]
        visible = cache.begin(positions)
        # Finite in either type, and far below any score: a row that sees nothing gives an average and not NaN.
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


def _given_tables(torch: Any, owner: MindNLPLlama) -> Any:
    """Return a module in place of Hugging Face's rotary embedding, which has what the next call needs."""

    class GivenTables(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, position_ids: Any) -> tuple[Any, Any]:
            return owner.tables

    return GivenTables()
