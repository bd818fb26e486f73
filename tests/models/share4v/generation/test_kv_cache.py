"""KV caches: hashes of prompt chunks, reuse of prefixes, and the pool of caches."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from mindone.models.share4v.generation.kv_cache import CHUNK, CachePool, KVCache, prompt_signature

LENGTH = 4 * CHUNK
A, B = b"a" * 16, b"b" * 16


class Model:
    """A language model whose decoders do nothing."""

    def new_cached(self, batch_size: int, capacity: int) -> object:
        return object()


def names(ids: np.ndarray, images: np.ndarray | None = None, digests: tuple[bytes, ...] = (), tag: bytes = b"") -> list:
    shown = np.full(len(ids), -1) if images is None else images
    return prompt_signature(np.asarray(ids), shown, list(digests), tag)


def test_chunk_hashes_are_equal_up_to_the_chunk_in_which_prompts_differ() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 1000, LENGTH)
    whole = names(ids)
    assert len(whole) == 4 and len(set(whole)) == 4
    for position in (0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 7, LENGTH - 1):
        other = ids.copy()
        other[position] += 1
        agrees = [one == two for one, two in zip(whole, names(other), strict=True)]
        assert agrees == [(number + 1) * CHUNK <= position for number in range(4)]


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1])
def test_only_complete_chunks_are_hashed(length: int) -> None:
    ids = np.arange(LENGTH)
    assert names(ids[:length]) == names(ids)[: length // CHUNK]


def test_hashes_depend_on_images_their_positions_and_the_weights() -> None:
    ids = np.full(2 * CHUNK, 5)
    images = np.full(2 * CHUNK, -1)
    images[3:20], images[30:47] = 0, 1
    variants = {
        "text only": names(ids),
        "a, b": names(ids, images, (A, B)),
        "b, a": names(ids, images, (B, A)),
        "a, a": names(ids, images, (A, A)),
        "elsewhere": names(ids, np.roll(images, 1), (A, B)),
        "other weights": names(ids, images, (A, B), tag=b"later"),
    }
    assert len({tuple(chunks) for chunks in variants.values()}) == len(variants)
    at_images = np.where(images < 0, ids, 77)
    assert names(at_images, images, (A, B)) == variants["a, b"]  # ids at image positions are ignored
    renumbered = np.where(images < 0, -1, 1 - images)
    assert names(ids, renumbered, (B, A)) == variants["a, b"]  # the index of an image in the batch is ignored


def test_reuse_leaves_at_least_one_token_to_compute() -> None:
    cache = KVCache(Model(), batch_size=2, capacity=LENGTH)
    ids = np.arange(LENGTH)
    assert cache.common_prefix(0, names(ids), LENGTH) == 0
    cache.record(0, names(ids[: 3 * CHUNK + 9]))
    reuse = {
        length: cache.common_prefix(0, names(ids[:length]), length) for length in (5, 64, 65, 128, 129, 192, 193, 255)
    }
    assert reuse == {5: 0, 64: 0, 65: 64, 128: 64, 129: 128, 192: 128, 193: 192, 255: 192}
    assert cache.common_prefix(1, names(ids), LENGTH) == 0  # another row of the batch
    other = ids.copy()
    other[CHUNK] += 1
    assert cache.common_prefix(0, names(other), LENGTH) == CHUNK
    cache.begin()
    assert cache.common_prefix(0, names(ids), LENGTH) == 0


def test_a_generation_notices_that_another_one_has_started() -> None:
    cache = KVCache(Model(), batch_size=1, capacity=LENGTH)
    first = cache.begin()
    cache.check(first)
    second = cache.begin()
    with pytest.raises(RuntimeError, match=r"passed to another call .*\(model.new_cache\(\)"):
        cache.check(first)
    cache.check(second)


def test_the_pool_rounds_sizes_up_and_never_lends_a_cache_twice() -> None:
    made: list[tuple[int, int]] = []

    def make(batch_size: int, capacity: int) -> KVCache:
        made.append((batch_size, capacity))
        return KVCache(Model(), batch_size, capacity)

    pool = CachePool(make, keep=2)
    with pool.lease(3, 130, limit=1000) as first, pool.lease(4, 200, limit=1000) as second:
        assert first is not second
    with pool.lease(4, 256, limit=1000) as again:
        assert again in (first, second)
    with pool.lease(1, 900, limit=1000) as widest:
        assert widest.capacity == 1000  # the model's context, not the next power of two
    with pool.lease(1, 5, limit=70) as smallest:
        assert smallest.capacity == 70
    assert made == [(4, 256), (4, 256), (1, 1000), (1, 70)]


def test_the_pool_keeps_only_the_most_recent_caches() -> None:
    pool = CachePool(lambda batch_size, capacity: KVCache(Model(), batch_size, capacity), keep=2)
    caches = []
    for batch_size in (1, 2, 4):
        with pool.lease(batch_size, 10, limit=1000) as cache:
            caches.append(weakref.ref(cache))
    del cache
    gc.collect()
    assert [reference() is None for reference in caches] == [True, False, False]
    with pool.lease(2, 10, limit=1000) as kept:
        assert kept is caches[1]()


def test_a_cache_is_not_reused_after_an_error() -> None:
    pool = CachePool(lambda batch_size, capacity: KVCache(Model(), batch_size, capacity))
    with pytest.raises(KeyError), pool.lease(1, 10, limit=1000) as first:
        raise KeyError
    with pool.lease(1, 10, limit=1000) as second:
        assert second is not first


def test_the_cache_of_an_abandoned_stream_returns_to_the_pool() -> None:
    pool = CachePool(lambda batch_size, capacity: KVCache(Model(), batch_size, capacity))
    with pytest.raises(GeneratorExit), pool.lease(1, 10, limit=1000) as first:
        raise GeneratorExit
    with pool.lease(1, 10, limit=1000) as second:
        assert second is first
