"""What a model remembers: names of prompts, what may be used again, the pool of caches, image features."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from mindone.models.share4v.generation.kv_cache import CHUNK, CachePool, KVCache, prompt_signature

LENGTH = 4 * CHUNK
A, B = b"a" * 16, b"b" * 16


class Model:
    """Makes decoders that do nothing."""

    def new_cached(self, batch_size: int, capacity: int) -> object:
        return object()


def names(ids: np.ndarray, images: np.ndarray | None = None, digests: tuple[bytes, ...] = (), tag: bytes = b"") -> list:
    shown = np.full(len(ids), -1) if images is None else images
    return prompt_signature(np.asarray(ids), shown, list(digests), tag)


def test_names_agree_up_to_the_chunk_in_which_prompts_differ() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 1000, LENGTH)
    whole = names(ids)
    assert len(whole) == 4 and len(set(whole)) == 4
    for place in (0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 7, LENGTH - 1):
        other = ids.copy()
        other[place] += 1
        agrees = [one == two for one, two in zip(whole, names(other), strict=True)]
        assert agrees == [(number + 1) * CHUNK <= place for number in range(4)]


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1])
def test_only_whole_chunks_have_names(length: int) -> None:
    ids = np.arange(LENGTH)
    assert names(ids[:length]) == names(ids)[: length // CHUNK]


def test_names_tell_pictures_their_places_and_the_weights_apart() -> None:
    ids = np.full(2 * CHUNK, 5)
    images = np.full(2 * CHUNK, -1)
    images[3:20], images[30:47] = 0, 1
    variants = {
        "text alone": names(ids),
        "a, b": names(ids, images, (A, B)),
        "b, a": names(ids, images, (B, A)),
        "a, a": names(ids, images, (A, A)),
        "elsewhere": names(ids, np.roll(images, 1), (A, B)),
        "other weights": names(ids, images, (A, B), tag=b"later"),
    }
    assert len({tuple(chunks) for chunks in variants.values()}) == len(variants)
    at_images = np.where(images < 0, ids, 77)
    assert names(at_images, images, (A, B)) == variants["a, b"]  # what stands at an image's place says nothing
    renumbered = np.where(images < 0, -1, 1 - images)
    assert names(ids, renumbered, (B, A)) == variants["a, b"]  # nor does its number in the batch


def test_reuse_leaves_a_token_to_compute() -> None:
    cache = KVCache(Model(), batch_size=2, capacity=LENGTH)
    ids = np.arange(LENGTH)
    assert cache.common_prefix(0, names(ids), LENGTH) == 0
    cache.record(0, names(ids[: 3 * CHUNK + 9]))
    reuse = {
        length: cache.common_prefix(0, names(ids[:length]), length) for length in (5, 64, 65, 128, 129, 192, 193, 255)
    }
    assert reuse == {5: 0, 64: 0, 65: 64, 128: 64, 129: 128, 192: 128, 193: 192, 255: 192}
    assert cache.common_prefix(1, names(ids), LENGTH) == 0  # another text of the batch
    other = ids.copy()
    other[CHUNK] += 1
    assert cache.common_prefix(0, names(other), LENGTH) == CHUNK
    cache.begin()
    assert cache.common_prefix(0, names(ids), LENGTH) == 0


def test_a_generation_notices_that_another_has_begun() -> None:
    cache = KVCache(Model(), batch_size=1, capacity=LENGTH)
    first = cache.begin()
    cache.check(first)
    second = cache.begin()
    with pytest.raises(RuntimeError, match=r"given to another call .*\(model.new_cache\(\)"):
        cache.check(first)
    cache.check(second)


def test_the_pool_lends_rounded_sizes_and_never_one_cache_twice() -> None:
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


def test_the_pool_keeps_the_last_few_and_lets_the_others_go() -> None:
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


def test_a_cache_in_which_something_went_wrong_is_not_used_again() -> None:
    pool = CachePool(lambda batch_size, capacity: KVCache(Model(), batch_size, capacity))
    with pytest.raises(KeyError), pool.lease(1, 10, limit=1000) as first:
        raise KeyError
    with pool.lease(1, 10, limit=1000) as second:
        assert second is not first


def test_a_cache_comes_back_to_the_pool_when_nobody_reads_on() -> None:
    pool = CachePool(lambda batch_size, capacity: KVCache(Model(), batch_size, capacity))
    with pytest.raises(GeneratorExit), pool.lease(1, 10, limit=1000) as first:
        raise GeneratorExit
    with pool.lease(1, 10, limit=1000) as second:
        assert second is first
