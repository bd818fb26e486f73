"""The key/value cache: prefixes are copied without a copy in between, and sequences with one of a layer."""

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


@pytest.mark.parametrize("dtype", KV_CACHE_DTYPES)
@pytest.mark.parametrize("is_same", [True, False])
@pytest.mark.parametrize("indices", [[1, 1, 0, 3, 2], [0, 1, 2, 3, 4], [4, 4, 4, 4, 4]])
def test_sequences_are_copied_with_the_memory_of_one_layer(dtype: str, is_same: bool, indices: list[int]) -> None:
    """As for every token of a beam search."""
    source, random = CacheMemory(8, 5, 2, 16, 256, dtype), np.random.default_rng(0)
    target = source if is_same else CacheMemory(8, 5, 2, 16, 256, dtype)
    arrays = []
    for cache in (source, target):
        arrays = [array for array in (cache.keys, cache.values, cache.scales) if array is not None]
        for array in arrays:
            array[...] = random.integers(-9, 9, array.shape)
    sources = [array.copy() for array in (source.keys, source.values, source.scales) if array is not None]
    before = [array.copy() for array in arrays]
    tracemalloc.start()
    target.copy_sequences(source, np.array(indices), 200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(array.nbytes for array in arrays) / 8
    for row, origin in enumerate(indices):
        before[0][:, row, :, : -(-200 // 16)] = sources[0][:, origin, :, : -(-200 // 16)]
        before[1][:, row, :, :200] = sources[1][:, origin, :, :200]
        for scales in before[2:]:
            scales[:, :, row, :, :200] = sources[2][:, :, origin, :, :200]
    for array, expected in zip(arrays, before, strict=True):
        assert np.array_equal(array, expected)
