"""Tests of the fused operators where they are, and of what stands in for them where they are not.

On an Ascend every test here runs MindSpore's fused operators, and its id says `ascend`. On a CPU, where they do not
exist, the same tests run the stand-ins of reference/ascend.py, which have the documented semantics, and the id says
`stand-ins`: nothing of the operators themselves is shown then.
"""

from __future__ import annotations

import mindspore as ms
import pytest
from helpers.ascend import stand_ins

from mindone.models.share4v.nn.device_operators import DeviceOperators, device_operators

IS_ASCEND = ms.get_context("device_target") == "Ascend"
# MindSpore's CPU has no bfloat16 arithmetic.
DTYPES = ("float16", "bfloat16") if IS_ASCEND else ("float16",)


@pytest.fixture(params=["ascend" if IS_ASCEND else "stand-ins"])
def operators(request: pytest.FixtureRequest) -> DeviceOperators:
    """The device's operators, all of them, or those that stand in for them."""
    return device_operators() if request.param == "ascend" else stand_ins()


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    """Every type whose weights an Ascend takes, and in which its attention computes."""
    return str(request.param)


def pytest_report_header() -> str:
    return f"fused operators: {'of the Ascend' if IS_ASCEND else 'stand-ins on a CPU'}"
