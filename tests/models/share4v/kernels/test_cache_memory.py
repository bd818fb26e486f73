"""The key/value cache: prefixes are copied without a copy in between."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mindone.models.share4v.kernels.cache_memory import KV_CACHE_DTYPES, CacheMemory


@pytest.mark.parametrize("dtype", KV_CACHE_DTYPES)
def test_a_prefix_is_copied_to_another_sequence_without_more_memory(dtype: str) -> None:
    """If a temporary copy of the keys fitted and that of the values did not, the row would hold half of two prompts."""
    cache = CacheMemory(8, 3, 2, 16, 256, dtype)
    arrays = [array for array in (cache.keys, cache.values, cache.scales) if array is not None]
    random = np.random.default_rng(0)
    for array in arrays:
        array[...] = random.integers(-9, 9, array.shape)
    before = [array.copy() for array in arrays]
    tracemalloc.start()
    cache.copy_prefix(0, cache, 200, origin=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < cache.values[:, 0].nbytes / 8
    panels = -(-200 // 16)
    before[0][:, 0, :, :panels] = before[0][:, 2, :, :panels]
    before[1][:, 0, :, :200] = before[1][:, 2, :, :200]
    for scales in before[2:]:
        scales[:, :, 0, :, :200] = scales[:, :, 2, :, :200]
    for array, expected in zip(arrays, before, strict=True):
        assert np.array_equal(array, expected)
