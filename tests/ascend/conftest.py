"""Tests of MindSpore's fused operators on an Ascend, and of their stand-ins elsewhere.

On an Ascend every test here runs the fused operators, and its id says `ascend`. A CPU does not have them: there the
same tests run the stand-ins of helpers/ascend.py, which follow the documentation, and the id says `stand-ins`. They
show nothing about the operators themselves.
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
    """All fused operators of the device, or their stand-ins."""
    return device_operators() if request.param == "ascend" else stand_ins()


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    """Every dtype of weights on an Ascend, in which its attention computes too."""
    return str(request.param)


def pytest_report_header() -> str:
    return f"fused operators: {'Ascend' if IS_ASCEND else 'stand-ins on a CPU'}"
