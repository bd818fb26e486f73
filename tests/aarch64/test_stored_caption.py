"""The components on the kernels caption a picture as the complete model does: vision tower, projector, language model.

On x86-64 the stored ids are the complete model's (helpers/stored_caption.py); under qemu the same test runs on aarch64,
with a stand-in for MindSpore's Tensor.
"""

from __future__ import annotations

import json

import pytest
from helpers.stored_caption import DTYPES, STORED, caption


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_caption_is_the_stored_one(dtype: str) -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    answer = stored["answers"][dtype]
    assert len(answer) > 10
    assert caption(dtype, stored["prompt"], len(answer)) == answer
