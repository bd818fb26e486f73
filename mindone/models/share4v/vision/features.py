"""Encodes images to features in the language model's embedding space, and caches the features of recent images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from ..kernels.component import IMAGE_BATCH_SIZES, runs_on_kernels, weight_holders
from ..nn.graph import Graph
from ..nn.host_ops import concat_rows, split_rows

_USUAL_CAPACITY = 8  # images


class ImageEncoder(Graph):
    """Vision tower and projector in one graph, which is freed with the model, unlike what `mindspore.jit` compiles."""

    def __init__(self, vision_tower: nn.Cell, mm_projector: nn.Cell) -> None:
        super().__init__()  # keep the weights' names in the model
        self.vision_tower = vision_tower
        self.mm_projector = mm_projector

    def construct(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] -> [B, P, H]."""
        return self.mm_projector(self.vision_tower(pixel_values))


class ImageFeatures:
    """Encodes images; the features of the most recently used ones are cached.

    An image's features do not depend on the rest of the batch: on the kernels because rows never do, elsewhere because
    images are encoded one by one.

    Args:
        vision_tower, mm_projector: the model's components.

    Attributes:
        max_bytes: maximum size of all cached features, but for one image; None for that of 8 images.
        hits: number of images whose features were cached.
        misses: number of images that were encoded.
    """

    def __init__(self, vision_tower: Any, mm_projector: Any) -> None:
        self._tower = vision_tower
        self._projector = mm_projector
        self.max_bytes: int | None = None
        self.hits = self.misses = 0
        on_kernels = runs_on_kernels(vision_tower) and runs_on_kernels(mm_projector)
        self._batch_sizes = IMAGE_BATCH_SIZES if on_kernels else (1,)
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()  # digest -> [1, P, H], most recently used last
        self.reset_graphs()

    def reset_graphs(self) -> None:
        """Discard the compiled graph; call this when weights were replaced by other Parameters."""
        if weight_holders(self._tower, self._projector):
            self._encode = self._run_components
        else:
            self._encode = ImageEncoder(self._tower, self._projector).compile_and_run

    def reset(self) -> None:
        """Discard the cached features; call this when weights changed."""
        self._features.clear()

    def of(self, pixels: np.ndarray, digests: Sequence[bytes]) -> Tensor | None:
        """Return the features [N, P, H] of images; None if there are no images.

        Args:
            pixels: float32 [N, 3, S, S].
            digests: `pixel_digest` of each image.
        """
        if not len(pixels):
            return None
        known = {digest: self._features[digest] for digest in digests if digest in self._features}
        first_index = {digest: index for index, digest in reversed(list(enumerate(digests)))}  # skips duplicates
        missing = sorted(index for digest, index in first_index.items() if digest not in known)
        self.misses += len(missing)
        self.hits += len(digests) - len(missing)
        for batch in _batches(missing, self._batch_sizes):
            encoded = self._encode(Tensor(pixels[batch]))
            parts = [encoded] if len(batch) == 1 else split_rows(encoded, [1] * len(batch))
            known |= zip([digests[index] for index in batch], parts, strict=True)
        for digest in digests:
            self._features[digest] = known[digest]
            self._features.move_to_end(digest)
        size = known[digests[0]].nbytes  # of one image; all have the same shape
        capacity = _USUAL_CAPACITY if self.max_bytes is None else self.max_bytes // size
        while len(self._features) > max(capacity, 1):
            self._features.popitem(last=False)
        return concat_rows([known[digest] for digest in digests])

    def _run_components(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] -> [B, P, H], for components that compile their own graphs."""
        features: Tensor = self._projector(self._tower(pixel_values))
        return features


def pixel_digest(pixel_values: np.ndarray) -> bytes:
    """Return a 16-byte digest that identifies an image by its pixel_values [3, S, S]."""
    return blake2b(np.ascontiguousarray(pixel_values).tobytes(), digest_size=16).digest()


def _batches(indices: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Divide `indices` into batches of the given sizes, which are tried from the first to the last."""
    batches, rest = [], list(indices)
    for size in sizes:
        while len(rest) >= size:
            batches.append(rest[:size])
            rest = rest[size:]
    return batches
