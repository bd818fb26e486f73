"""Mixed precision: float32 weights and moments, products in half precision, and the loss scale that float16 needs."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms

from ..load_options import dtype_name
from ..nn.device_operators import device_operators
from ..nn.layers import DTYPES

MIN_SCALE = 1.0


@dataclass(frozen=True)
class LossScaling:
    """Dynamic loss scaling (Micikevicius et al. 2018, section 3.2); the defaults are those of PyTorch's GradScaler.

    Small gradients are 0 in float16. So the loss is multiplied by a scale before the gradients are computed, and the
    gradients are divided by it in float32. If one is not finite, the scale was too large: the step is skipped and the
    scale halved. After `growth_interval` steps in a row without that, the scale is doubled.

    Attributes:
        initial: the first scale.
        growth_interval: number of steps without a skipped one after which the scale is doubled.

    Raises:
        ValueError: `initial` is less than 1, or `growth_interval` is not positive.
    """

    initial: float = 2.0**16
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        if not self.initial >= MIN_SCALE:
            raise ValueError(f"initial loss scale is {self.initial}: expected {MIN_SCALE:g} or more")
        if self.growth_interval < 1:
            raise ValueError(f"growth_interval is {self.growth_interval}: expected 1 or more")


class LossScale:
    """The scale of a run, which its steps change.

    Attributes:
        value: the present scale.
        good_steps: number of steps since the scale was changed.

    Example:
        >>> from mindone.models.share4v.training.precision import LossScale, LossScaling
        >>> scale = LossScale(LossScaling(initial=1024.0, growth_interval=2))
        >>> for finite in (True, True, False):
        ...     scale.update(finite)
        ...     print(scale.value)
        1024.0
        2048.0
        1024.0
    """

    def __init__(self, scaling: LossScaling) -> None:
        self.scaling = scaling
        self.value = scaling.initial
        self.good_steps = 0

    def update(self, finite: bool) -> None:
        """Take note of a step whose gradients were all finite, or not."""
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, MIN_SCALE)
        elif self.good_steps == self.scaling.growth_interval:
            self.value, self.good_steps = min(self.value * 2, 2.0**127), 0  # the largest power of 2 in float32


def compute_dtype(precision: str) -> ms.Type:
    """Return the dtype in which a model is trained: "float32", "bfloat16" or "float16", or "fp32", "bf16" or "fp16".

    Raises:
        ValueError: it is none of these, or the device cannot compute in it.
    """
    name = dtype_name(precision) or precision
    if name not in DTYPES:
        raise ValueError(f"precision {precision!r} is not supported: expected one of {', '.join(DTYPES)}")
    supported = device_operators().dtypes
    if name not in supported:
        raise ValueError(
            f"precision {precision!r} is not supported on a CPU, only on Ascend: MindSpore does not compute in it "
            f"there; use {' or '.join(repr(other) for other in supported)}"
        )
    return DTYPES[name]
