"""Key/value caches that are reused between calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..protocols import LanguageModel

# Prefixes are compared and reused in units of this many tokens; the chunk of a prefill step is a multiple of it.
CHUNK = 64


def prompt_signature(ids: np.ndarray, images: np.ndarray, digests: list[bytes], weights: bytes = b"") -> list[bytes]:
    """Return a hash for each complete chunk of a prompt, to recognise prompts with equal prefixes.

    Args:
        ids: int [T], tokens; ignored at image positions.
        images: int [T], index of the image at each position, -1 for text.
        digests: for each image, a digest of its pixels.
        weights: identifies the weights that compute keys and values.

    Returns:
        One hash per complete chunk. Each covers the prompt from its start, so two prompts have the same hash for a
        chunk exactly if they are equal up to its end.
    """
    names: list[bytes] = []
    state = blake2b(weights, digest_size=16)
    for start in range(0, len(ids) - CHUNK + 1, CHUNK):
        part = slice(start, start + CHUNK)
        state.update(np.where(images[part] < 0, ids[part], -1).astype(np.int64).tobytes())
        for image in images[part]:
            state.update(b"" if image < 0 else digests[image])
        names.append(state.copy().digest())
    return names


class KVCache:
    """Keys and values of a batch of sequences, with the hashes of the prompts they belong to.

    Passed to `generate` as `past_key_values`, the prefix that a prompt shares with the previous one (the system prompt,
    the image, earlier turns) is not recomputed. Only complete chunks written by a prefill are reused, so the answer has
    the same bits as without reuse.

    Attributes:
        decoder: the language model with the memory of this cache.
        turn: number of generations that have used the cache.
        batch_size: number of sequences, the rows of the cache.
        capacity: maximum number of tokens of one sequence.

    Example:
        >>> from mindone.models.share4v import Share4V, Share4VProcessor
        >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
        >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
        >>> cache = model.new_cache(max_length=512)
        >>> for question in ("What is this?", "Describe this image"):  # the second one reuses the image
        ...     inputs = processor(images=["photo.jpg"], text=question)
        ...     ids = model.generate(**inputs, max_new_tokens=8, past_key_values=cache)
        >>> cache.batch_size
        1
    """

    def __init__(self, language_model: LanguageModel, batch_size: int, capacity: int) -> None:
        self.language_model = language_model
        self.decoder = language_model.new_cached(batch_size, capacity)
        self.turn = 0
        self.batch_size = batch_size
        self.capacity = capacity
        self._chunks: list[list[bytes]] = [[] for _ in range(batch_size)]

    def common_prefix(self, row: int, names: list[bytes], length: int) -> int:
        """Return how many tokens at the start of a prompt are cached in `row`.

        At least one token remains to be computed, because the answer begins with the logits of the last one.

        Args:
            row: index of the sequence.
            names: hashes of the prompt's chunks.
            length: of the prompt, in tokens.
        """
        cached = 0
        for known, name in zip(self._chunks[row], names, strict=False):
            if known != name:
                break
            cached += CHUNK
        return cached if cached < length else cached - CHUNK

    def record(self, row: int, names: list[bytes]) -> None:
        """Record that `row` now stores the prompt whose chunks have the hashes `names`."""
        self._chunks[row] = names

    def begin(self) -> int:
        """Start another generation and return its number; nothing can be reused until its prefill is recorded."""
        self._chunks = [[] for _ in range(self.batch_size)]
        self.turn += 1
        return self.turn

    def reset(self) -> None:
        """Discard keys and values: masked attention multiplies NaNs by 0, so they would spoil every later answer."""
        del self.decoder  # first, so that there are never two
        self.decoder = self.language_model.new_cached(self.batch_size, self.capacity)
        self.begin()

    def check(self, turn: int) -> None:
        """Check that no other generation has started since `turn`.

        Raises:
            RuntimeError: another one has overwritten the keys and values of this one.
        """
        if turn != self.turn:
            raise RuntimeError(
                "these past_key_values were passed to another call before this answer was complete: use one cache per "
                "call (model.new_cache()), or read the first answer to its end"
            )


class CachePool:
    """Caches for calls without `past_key_values`; the most recent ones are kept with their compiled graphs.

    A cache is removed from the pool while it is in use, so two streams never share one, in whichever threads they are.

    Args:
        make: creates a cache of (batch size, capacity).
        keep: maximum number of unused caches.
    """

    def __init__(self, make: Callable[[int, int], KVCache], keep: int = 2) -> None:
        self._make = make
        self._keep = keep
        self._free: OrderedDict[tuple[int, int], KVCache] = OrderedDict()
        # Re-entrant: the garbage collector may close an abandoned stream, which returns its cache, at any time.
        self._mutex = RLock()

    @contextmanager
    def lease(self, batch_size: int, length: int, limit: int) -> Iterator[KVCache]:
        """Lend a cache for `batch_size` sequences of `length` tokens; sizes are rounded up, so that few graphs compile.

        Args:
            batch_size: number of sequences.
            length: of the longest sequence, in tokens.
            limit: maximum capacity, the model's context length.
        """
        capacity = CHUNK * 2
        while capacity < length:
            capacity *= 2
        shape = (1 << (batch_size - 1).bit_length(), min(capacity, max(limit, length)))
        with self._mutex:
            cache = self._free.pop(shape, None)
        if cache is None:
            cache = self._make(*shape)
        try:
            yield cache
        except Exception:
            raise  # the cache may be damaged, so it is not returned
        except BaseException:  # an abandoned stream, or Ctrl-C
            self._return(shape, cache)
            raise
        self._return(shape, cache)

    def _return(self, shape: tuple[int, int], cache: KVCache) -> None:
        evicted = []  # freed after the lock is released
        with self._mutex:
            self._free[shape] = cache
            while len(self._free) > self._keep:
                evicted.append(self._free.popitem(last=False))
