"""What the components on the kernels use of MindSpore, where MindSpore cannot run: under qemu. See environment.sh."""

from __future__ import annotations

import numpy as np

float32 = np.float32


class Tensor:
    """An array, as MindSpore passes it between the components."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape = array.shape

    def asnumpy(self) -> np.ndarray:
        return self._array
