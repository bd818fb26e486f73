"""A language model that says what a test tells it to, so that the loops above it can be watched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindone.models.share4v import Share4VConfig


class ScriptedDecoder:
    """Text i is answered by `scripts[i]`, whatever was asked; behind its end comes the end-of-text token."""

    chunk = 64

    def __init__(self, model: ScriptedModel, batch_size: int) -> None:
        self.model = model
        self.totals = np.zeros(batch_size, np.int64)

    def _say(self, numbers: np.ndarray) -> Tensor:
        logits = np.zeros((len(numbers), self.model.vocab_size), np.float32)
        for text, number in enumerate(numbers):
            script = self.model.scripts[text] if text < len(self.model.scripts) else []
            wanted = script[number] if 0 <= number < len(script) else self.model.end
            logits[text, wanted] = 9
        return Tensor(logits)

    def prefill(self, inputs_embeds: Tensor, positions: np.ndarray, totals: np.ndarray, last: np.ndarray) -> Tensor:
        self.model.prefills.append(positions.copy())
        self.totals = totals
        return self._say(np.zeros(len(totals), np.int64))

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> Tensor:
        self.model.decodes.append((ids.copy(), positions.copy()))
        return self._say(positions - self.totals + 1)

    def copy_sequences(self, source: ScriptedDecoder, texts: np.ndarray) -> None:
        self.totals = source.totals[texts]


class ScriptedModel:
    """Registered by tests as a language model; `scripts` are the ids of each text's answer."""

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None:
        self.vocab_size = config.text_config.vocab_size
        self.width = config.text_config.hidden_size
        self.end = config.text_config.eos_token_ids[0]
        self.activations = ms.float32
        self.allocates_cache_lazily = False
        self.scripts: Sequence[Sequence[int]] = []
        self.prefills: list[np.ndarray] = []
        self.decodes: list[tuple[np.ndarray, np.ndarray]] = []

    def embed(self, ids: Tensor) -> Tensor:
        return Tensor(np.zeros((*ids.shape, self.width), np.float32))

    def new_cached(self, batch_size: int, capacity: int) -> Any:
        return ScriptedDecoder(self, batch_size)
