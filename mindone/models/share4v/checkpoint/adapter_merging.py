"""What an adapter does to one weight, and the entry of a weight with its changes merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .errors import CheckpointError
from .formats import StoredTensor

ROWS = 256  # rows that are merged at once, so that only the result is as large as the weight


class Change(Protocol):
    """A change of one weight.

    Attributes:
        needs_base: whether it depends on the checkpoint's weight, so that it must come before others.
    """

    @property
    def needs_base(self) -> bool: ...

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The adapter's tensors that it is made of."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a weight of this shape can be changed."""

    def describe(self) -> str:
        """Return the tensors with their shapes, for a message."""

    def apply(self, base: np.ndarray, weight: float) -> np.ndarray:
        """Return the changed weight for `base`, float32 of the weight's shape, which may be overwritten."""


@dataclass(frozen=True)
class Replacement:
    """A weight that was trained completely: modules_to_save, biases, LLaVA's projector."""

    tensor: StoredTensor

    needs_base = True

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The adapter's tensors that it is made of."""
        return (self.tensor,)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a weight of this shape can be changed."""
        return self.tensor.shape == shape

    def describe(self) -> str:
        """Return the tensor with its shape, for a message."""
        return f"{self.tensor.name} is {list(self.tensor.shape)}"

    def apply(self, base: np.ndarray, weight: float) -> np.ndarray:
        """Return the weight on the line from `base` to the new value, which weight 1 returns exactly."""
        value = read_finite(self.tensor)
        return value if weight == 1 else base + np.float32(weight) * (value - base)


@dataclass(frozen=True)
class LowRank:
    """A product of two small matrices, as LoRA and DoRA train them.

    Attributes:
        a: [R, inputs], of a convolution [R, C, P, P], of an embedding [R, rows].
        b: [outputs, R], of a convolution [outputs, R, 1, 1], of an embedding [columns, R].
        scale: what the product is multiplied by.
        magnitude: DoRA's length of each row of the merged weight, [outputs].
        is_embedding: whether the product is transposed.
    """

    a: StoredTensor
    b: StoredTensor
    scale: float
    magnitude: StoredTensor | None = None
    is_embedding: bool = False

    @property
    def needs_base(self) -> bool:
        """Whether it depends on the checkpoint's weight: DoRA does."""
        return self.magnitude is not None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The adapter's tensors that it is made of."""
        return (self.a, self.b, *((self.magnitude,) if self.magnitude is not None else ()))

    @property
    def ranks(self) -> tuple[int, int]:
        """The rank of A and of B; -1 if the tensor is no matrix."""
        return self.a.shape[0] if self.a.shape else -1, self.b.shape[1] if len(self.b.shape) > 1 else -1

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a weight of this shape can be changed."""
        if self.is_embedding:
            return (self.a.shape[1:], self.b.shape[:1]) == (shape[:1], shape[1:]) and self.magnitude is None
        is_vector = self.magnitude is None or (self.magnitude.shape == shape[:1] and len(shape) == 2)
        ones = (1,) * (len(shape) - 2)
        return (self.a.shape[1:], self.b.shape[0], self.b.shape[2:]) == (shape[1:], shape[0], ones) and is_vector

    def describe(self) -> str:
        """Return the tensors with their shapes, for a message."""
        parts = {"A": self.a, "B": self.b, **({"magnitude": self.magnitude} if self.magnitude is not None else {})}
        return " and ".join(f"{name} is {list(tensor.shape)}" for name, tensor in parts.items())

    def apply(self, base: np.ndarray, weight: float) -> np.ndarray:
        """Add the product to `base`, in place, some rows at a time."""
        a, b = read_finite(self.a), read_finite(self.b)
        left, right = (a.T, b.T) if self.is_embedding else (b.reshape(len(b), -1), a.reshape(len(a), -1))
        left = left * np.float32(self.scale)
        lengths = None if self.magnitude is None else read_finite(self.magnitude)
        rows = base.reshape(len(left), -1)  # a view
        for first in range(0, len(rows), ROWS):
            part = slice(first, first + ROWS)
            added = left[part] @ right
            if lengths is not None:
                added = self._normalized(rows[part], added, lengths[part])
            rows[part] += added if weight == 1 else np.float32(weight) * added
        return base

    def _normalized(self, base: np.ndarray, added: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return DoRA's difference: rows of base + added get the learned lengths."""
        changed = base + added
        norms = np.linalg.norm(changed, axis=1)
        if not norms.all():
            raise CheckpointError(f"{self.a.name} in {self.a.file}: DoRA needs rows of a length above 0")
        difference: np.ndarray = changed * (lengths / norms)[:, None] - base
        return difference


@dataclass(frozen=True)
class AdaptedReplacement:
    """A low-rank product on top of a weight that is in the adapter too, as PEFT writes adapted embeddings."""

    replacement: Replacement
    product: LowRank

    needs_base = True

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The adapter's tensors that it is made of."""
        return (*self.replacement.tensors, *self.product.tensors)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a weight of this shape can be changed."""
        return self.replacement.fits(shape) and self.product.fits(shape)

    def describe(self) -> str:
        """Return the tensors with their shapes, for a message."""
        return f"{self.replacement.describe()} and {self.product.describe()}"

    def apply(self, base: np.ndarray, weight: float) -> np.ndarray:
        """Return the weight on the line from `base` to the changed one."""
        changed = self.product.apply(self.replacement.apply(base, 1), 1)
        return changed if weight == 1 else base + np.float32(weight) * (changed - base)


@dataclass(frozen=True)
class BiasShift:
    """A vector that is added to a bias: PEFT's lora_bias."""

    b: StoredTensor
    scale: float

    needs_base = False

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The adapter's tensors that it is made of."""
        return (self.b,)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a bias of this shape can be changed."""
        return self.b.shape == shape

    def describe(self) -> str:
        """Return the tensor with its shape, for a message."""
        return f"{self.b.name} is {list(self.b.shape)}"

    def apply(self, base: np.ndarray, weight: float) -> np.ndarray:
        """Return `base` with the vector added."""
        return base + np.float32(self.scale * weight) * read_finite(self.b)


def read_finite(tensor: StoredTensor) -> np.ndarray:
    """Return a tensor of an adapter as float32.

    Raises:
        CheckpointError: it is not of a float type, or a value is not finite.
    """
    if "float" not in tensor.dtype:
        raise CheckpointError(f"{tensor.name} in {tensor.file} is {tensor.dtype}, expected a float type")
    with np.errstate(over="ignore"):
        values = np.array(tensor.read(), np.float32)
    tensor.release()
    if not np.isfinite(values).all():
        raise CheckpointError(f"{tensor.name} in {tensor.file} has values that are not finite: the adapter is damaged")
    return values


def merged(name: str, base: StoredTensor | None, changes: Sequence[tuple[Change, float]]) -> StoredTensor:
    """Return the entry of a weight whose reading merges these changes, each with its adapter's weight.

    Each adapter adds its difference to the checkpoint's weight, times its weight. `dtype` remains the stored one, so
    that a conversion can write it, but what is read is float32.

    Raises:
        CheckpointError: the checkpoint has no such weight, and the change is not a single replacement.
    """
    if base is None:
        change, weight = changes[0]
        if len(changes) > 1 or weight != 1 or not isinstance(change, Replacement):
            raise CheckpointError(
                f"the checkpoint has no {name}, so one adapter of weight 1 must contain it, got "
                f"{', '.join(one.tensors[0].name for one, _ in changes)}"
            )
        tensor = change.tensor
        return StoredTensor(name, tensor.shape, tensor.dtype, tensor.file, lambda: read_finite(tensor), tensor.mapped)
    return StoredTensor(base.name, base.shape, base.dtype, base.file, lambda: _read(base, changes), base.mapped)


def _read(base: StoredTensor, changes: Sequence[tuple[Change, float]]) -> np.ndarray:
    result = np.array(base.read(), np.float32, order="C")
    dependent = [(change, weight) for change, weight in changes if change.needs_base]
    if len(dependent) == 1:
        (change, weight) = dependent[0]
        result = change.apply(result, weight)
    elif dependent:
        original = result.copy()
        for change, weight in dependent:
            result += change.apply(original.copy(), weight) - original
    for change, weight in changes:
        if not change.needs_base:
            result = change.apply(result, weight)
    return result
