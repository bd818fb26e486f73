"""The importance of each input of each matrix: its mean square over a short run of the language model."""

from __future__ import annotations

import numpy as np

from ..configuration import TextConfig
from ..kernels.blocks import BlockPlan
from ..language.weights import LANGUAGE_MODEL
from .reference import run_layer
from .rotation import Reader

TOKENS = 256
SEED = 0


class Importance:
    """Runs the layers one after the other on random ids, as their blocks are packed, in order.

    Random ids suffice: what matters is which channels are large, and in a trained model the same ones are large for
    every text.

    Args:
        config: the language model.
        read: returns a weight of the checkpoint by its name.
    """

    def __init__(self, config: TextConfig, read: Reader) -> None:
        self.config, self.read = config, read
        self._hidden: np.ndarray | None = None

    def of(self, plan: BlockPlan) -> dict[int, np.ndarray]:
        """Return the importance, float32 [K], of each matrix of a layer's block; empty for other blocks."""
        if not plan.name.startswith(f"{LANGUAGE_MODEL}layers."):
            return {}
        if self._hidden is None:
            ids = np.random.RandomState(SEED).randint(0, self.config.vocab_size, TOKENS)
            self._hidden = np.asarray(self.read(f"{LANGUAGE_MODEL}embed_tokens.weight")[ids], np.float32)
        found: dict[int, np.ndarray] = {}

        def observe(number: int, inputs: np.ndarray) -> None:
            found[number] = normalized((inputs * inputs).mean(0))

        with np.errstate(all="ignore"):  # weights that are not finite are reported when they are packed
            self._hidden = run_layer(self.config, plan.name, self.read, self._hidden, observe)
        return found


def normalized(squares: np.ndarray) -> np.ndarray:
    """Return mean squares [K] relative to their mean, positive and finite float32 whatever the activations are."""
    mean = float(squares.mean())
    if not np.isfinite(mean) or mean <= 0:
        return np.ones(len(squares), np.float32)
    return np.clip(squares / mean, 1e-6, 1e6).astype(np.float32)
