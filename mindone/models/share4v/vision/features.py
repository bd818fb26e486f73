"""Images to features in the language model's space; those of the last few images are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from ..kernels.component import IMAGE_BATCH_SIZES, runs_on_kernels, weight_holders
from ..nn.host_ops import concat_rows, split_rows


class ImageEncoder(nn.Cell):
    """Tower and projector as one graph, which goes when the model goes (what `mindspore.jit` compiles stays)."""

    def __init__(self, vision_tower: nn.Cell, mm_projector: nn.Cell) -> None:
        super().__init__(auto_prefix=False)  # the weights keep the names they have in the model
        self.vision_tower = vision_tower
        self.mm_projector = mm_projector

    def construct(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] -> [B, P, H]."""
        return self.mm_projector(self.vision_tower(pixel_values))


class ImageFeatures:
    """Encodes images, and does not encode the last few again.

    An image's features do not depend on what else is in the batch: on the kernels because a row never does, elsewhere
    because images go through one by one.

    Args:
        vision_tower, mm_projector: the model's.
        keep: how many images' features are held in memory.
    """

    def __init__(self, vision_tower: Any, mm_projector: Any, keep: int = 8) -> None:
        self._tower, self._projector, self._keep = vision_tower, mm_projector, keep
        self._sizes = IMAGE_BATCH_SIZES if runs_on_kernels(vision_tower) and runs_on_kernels(mm_projector) else (1,)
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()  # [1, P, H] by digest, the last used at the end
        self.reset_graphs()

    def reset_graphs(self) -> None:
        """Drop what was compiled: weights were replaced."""
        if weight_holders(self._tower, self._projector):
            self._encode = self._in_parts
        else:
            self._encode = ImageEncoder(self._tower, self._projector).compile_and_run

    def reset(self) -> None:
        """Drop what was computed: weights changed."""
        self._features.clear()

    def of(self, pixels: np.ndarray, digests: Sequence[bytes]) -> Tensor | None:
        """pixel_values [N, 3, S, S] float32 with their digests -> features [N, P, H]; None where there is no image."""
        if not len(pixels):
            return None
        known = {digest: self._features[digest] for digest in digests if digest in self._features}
        numbers = {digest: number for number, digest in reversed(list(enumerate(digests)))}  # where each stands first
        missing = sorted(number for digest, number in numbers.items() if digest not in known)
        for group in _groups(missing, self._sizes):
            encoded = self._encode(Tensor(pixels[group]))
            parts = [encoded] if len(group) == 1 else split_rows(encoded, [1] * len(group))
            known |= zip([digests[number] for number in group], parts, strict=True)
        for digest in digests:
            self._features[digest] = known[digest]
            self._features.move_to_end(digest)
        while len(self._features) > self._keep:
            self._features.popitem(last=False)
        return concat_rows([known[digest] for digest in digests])

    def _in_parts(self, pixel_values: Tensor) -> Tensor:
        """As ImageEncoder; packed components have graphs of their own."""
        features: Tensor = self._projector(self._tower(pixel_values))
        return features


def pixel_digest(pixel_values: np.ndarray) -> bytes:
    """Return 16 bytes that name an image's pixel_values [3, S, S]."""
    return blake2b(np.ascontiguousarray(pixel_values).tobytes(), digest_size=16).digest()


def _groups(numbers: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Numbers in groups of these sizes, the largest first."""
    groups, rest = [], list(numbers)
    for size in sizes:
        while len(rest) >= size:
            groups.append(rest[:size])
            rest = rest[size:]
    return groups
