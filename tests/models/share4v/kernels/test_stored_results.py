"""The kernels give the stored bits on every architecture: x86-64 here, aarch64 under qemu (tests/aarch64)."""

from __future__ import annotations

import json

import pytest
from helpers.stored_results import STORED, cases, digest

from mindone.models.share4v.kernels.library import Library

CASES = dict(cases())


@pytest.mark.parametrize("name", CASES)
def test_results_have_the_stored_bits(any_kernels: Library, name: str) -> None:
    stored, found, before = json.loads(STORED.read_text(encoding="utf-8"))[name], {}, any_kernels.instruction_set
    for kind in any_kernels.instruction_sets():
        # The portable kind has no fused multiply-add, and AMX an order of its own for bfloat16.
        if kind != "portable" and not (kind == "amx" and "bfloat16" in name):
            any_kernels.select(kind)
            found[kind] = digest(CASES[name](any_kernels))
    any_kernels.select(before)
    assert found == dict.fromkeys(found, stored)
