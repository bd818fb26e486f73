"""Operators that the table of devices does not offer, each in a graph of its own: what MindSpore's front end answers.

`ANSWERS` has the beginning of the error of each, or None where it compiles; docs/hardware.md repeats them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops

from .frontend_cases import IS_OLDEST

TOKENS, HEADS, SIZE = 6, 4, 16
BLOCKS, SLOTS = 8, 16  # of a paged cache


def zeros(dtype: Any, *shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32), dtype)


def number(rate: Tensor) -> float:
    return 1e-3


def tensor(rate: Tensor) -> Tensor:
    return rate


def scalar(rate: Tensor) -> float:
    return ops.auto_generate.TensorToScalar()(rate)  # type: ignore[no-any-return]


class AdamW(nn.Cell):
    """One update; `rate` makes the operator's argument from a tensor."""

    def __init__(self, dtype: Any, rate: Callable[[Tensor], Any]) -> None:
        super().__init__(auto_prefix=False)
        self.weight, self.m, self.v = (Parameter(zeros(dtype, 4, 6), name=name) for name in ("weight", "m", "v"))
        self.operator, self.rate = ops.auto_generate.AdamW(), rate

    def construct(self, gradient: Tensor, step: Tensor, rate: Tensor) -> Any:
        state = self.weight, self.m, self.v, self.v
        return self.operator(*state, gradient, step, self.rate(rate), 0.9, 0.98, 0.0, 1e-8, False, False)


class MintAdamW(nn.Cell):
    """One update by mint's optimizer, whose rate is a number."""

    def __init__(self, dtype: Any) -> None:
        super().__init__(auto_prefix=False)
        weight = Parameter(zeros(dtype, 4, 6), name="weight")
        self.optimizer = mint.optim.AdamW([weight], lr=1e-3, weight_decay=0.0)

    def construct(self, gradient: Tensor) -> Any:
        return self.optimizer((gradient,))


class Operator(nn.Cell):
    """An operator as it is."""

    def __init__(self, operator: Any) -> None:
        super().__init__(auto_prefix=False)
        self.operator = operator

    def construct(self, *inputs: Tensor) -> Any:
        return self.operator(*inputs)


def adam_w(dtype: Any, rate: Callable[[Tensor], Any]) -> None:
    inputs = zeros(dtype, 4, 6), Tensor([1.0], ms.float32), Tensor(1e-3, ms.float32)
    AdamW(dtype, rate).compile_and_run(*inputs)


def mint_adam_w(dtype: Any) -> None:
    MintAdamW(dtype).compile_and_run(zeros(dtype, 4, 6))


def speed_fusion_attention(dtype: Any, layout: str) -> None:
    """The gradient of the queries; without a mask."""
    shape = (2, HEADS, TOKENS, SIZE) if layout == "BNSD" else (2, TOKENS, HEADS * SIZE)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ops.speed_fusion_attention(query, key, value, HEADS, layout)[0]

    Operator(ms.grad(attend)).compile_and_run(*[zeros(dtype, *shape)] * 3)


def reshape_and_cache(*shape: int) -> None:
    """Write the keys and values of 6 tokens, of this shape."""
    caches = [Parameter(zeros(ms.float16, BLOCKS, SLOTS, HEADS, SIZE), name=name) for name in ("key", "value")]
    operator = ops.auto_generate.ReshapeAndCache()

    class Write(nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.key, self.value = caches

        def construct(self, keys: Tensor, slots: Tensor) -> Tensor:
            return operator(keys, keys, self.key, self.value, slots)

    Write().compile_and_run(zeros(ms.float16, *shape), Tensor(np.zeros(TOKENS, np.int32)))


def paged_attention(dtype: Any, *shape: int) -> None:
    """Attend with queries of this shape."""
    cache = zeros(dtype, BLOCKS, SLOTS, HEADS, SIZE)
    tables, lengths = Tensor(np.zeros((TOKENS, 2), np.int32)), Tensor(np.ones(TOKENS, np.int32))
    operator = ops.auto_generate.PagedAttention(HEADS, 0.25, HEADS)
    Operator(operator).compile_and_run(zeros(dtype, *shape), cache, cache, tables, lengths)


QUESTIONS: dict[str, Callable[[], None]] = {}
ANSWERS: dict[str, str | None] = {}
for _dtype in (ms.float32, ms.bfloat16):
    for _rate in (number, tensor, scalar):
        _name = f"AdamW, {_rate.__name__}, {_dtype}"
        QUESTIONS[_name] = partial(adam_w, _dtype, _rate)
        ANSWERS[_name] = None
        if _rate is tensor:
            ANSWERS[_name] = "Type conversion failed." if IS_OLDEST else "Type conversion failed: AdamW"
    QUESTIONS[f"mint AdamW, {_dtype}"] = partial(mint_adam_w, _dtype)
    ANSWERS[f"mint AdamW, {_dtype}"] = None
for _dtype in (ms.float16, ms.bfloat16, ms.float32):
    for _layout in ("BNSD", "BSH"):
        QUESTIONS[f"speed_fusion_attention, {_layout}, {_dtype}"] = partial(speed_fusion_attention, _dtype, _layout)
        ANSWERS[f"speed_fusion_attention, {_layout}, {_dtype}"] = None
for _dtype in (ms.float16, ms.bfloat16):
    for _shape in ((TOKENS, HEADS, SIZE), (TOKENS, 1, HEADS * SIZE)):
        QUESTIONS[f"PagedAttention, {_shape}, {_dtype}"] = partial(paged_attention, _dtype, *_shape)
        ANSWERS[f"PagedAttention, {_shape}, {_dtype}"] = None
QUESTIONS["ReshapeAndCache, documented layout"] = partial(reshape_and_cache, TOKENS, HEADS, SIZE)
ANSWERS["ReshapeAndCache, documented layout"] = (
    "The num_tokens of slot mapping and key must be the same, but got slot mapping num_tokens: 6, key num_tokens: 24"
)
QUESTIONS["ReshapeAndCache, heads in one axis"] = partial(reshape_and_cache, 2, 3, HEADS * SIZE)
ANSWERS["ReshapeAndCache, heads in one axis"] = None
