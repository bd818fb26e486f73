"""Dicts of arrays whose entries are also attributes, as NumPy arrays or as tensors of a framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..hugging_face import check_device
from ..load_options import dtype_name
from ..quantization import PRECISIONS
from ..suggestions import unknown

if TYPE_CHECKING:
    from typing_extensions import Self

TENSOR_TYPES = ("np", "ms", "pt")


class NamedArrays(dict[str, Any]):
    """A dict whose entries are also attributes, with the methods of transformers' BatchEncoding that callers use."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the inputs have no {name!r}, only {', '.join(self)}") from None

    def as_tensors(self, kind: str | None) -> Self:
        """Return the entries as NumPy arrays (None or "np"), MindSpore's tensors ("ms") or PyTorch's ("pt").

        Raises:
            ValueError: `kind` is another, or rows differ in length.
            ImportError: the framework is not installed.
        """
        check_tensor_type(kind)
        if kind is None:
            return self
        return type(self)({name: _tensor(name, values, kind) for name, values in self.items()})

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Return the inputs themselves: the model copies them to its device, and pixels stay float32.

        Raises:
            ValueError: the device is not the one that MindSpore uses.
        """
        if dtype is None and dtype_name(device) in PRECISIONS:  # `.to(torch.float16)` gives the type first
            return self
        check_device(device)
        return self


def check_tensor_type(kind: str | None) -> None:
    """Check a value of return_tensors.

    Raises:
        ValueError: it is unknown.
    """
    if kind is not None and kind not in TENSOR_TYPES:
        raise ValueError(unknown("return_tensors", kind, TENSOR_TYPES))


def _tensor(name: str, values: Any, kind: str) -> Any:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"the rows of {name} differ in length: pass padding=True") from error
    if kind == "np":
        return array
    if kind == "ms":
        from mindspore import Tensor

        return Tensor(array)
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))
