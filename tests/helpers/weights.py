"""The weights of a checkpoint as arrays, for tests that compare them."""

from __future__ import annotations

import numpy as np

from mindone.models.share4v.checkpoint import Checkpoint
from mindone.models.share4v.checkpoint.loading import weight_entries


def read_weights(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Return every weight by our name; bfloat16 becomes float32."""
    return {name: tensor.read() for name, tensor in weight_entries(checkpoint).items()}
