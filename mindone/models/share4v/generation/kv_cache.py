"""What a model remembers between calls: key/value caches by text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..protocols import LanguageModel

# Prompts are compared by so many tokens at a time; every prefill step takes a multiple of it.
CHUNK = 64


def prompt_signature(ids: np.ndarray, images: np.ndarray, digests: list[bytes], weights: bytes = b"") -> list[bytes]:
    """Name what a prompt's chunks say, so that equal beginnings can be told.

    Args:
        ids: int [T], tokens; anything at image positions.
        images: int [T], number of the image that a position shows, -1 for text.
        digests: a digest of each image's pixels.
        weights: names the weights that keys and values are computed with.

    Returns:
        A name for each whole chunk; two prompts agree in a name exactly if they agree in everything up to its end.
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
    """Keys and values of a batch of texts, with a note of which prompts they belong to.

    Handed to `generate` as `past_key_values`, it spares the model what the next prompt has in common with the last: the
    system prompt, the image, the earlier turns. Only whole chunks that a prefill wrote are used again, so that the
    answer is the same to the bit as without.

    Example:
        >>> from mindone.models.share4v import Share4V, Share4VProcessor
        >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
        >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
        >>> cache = model.new_cache(max_length=512)
        >>> for question in ("What is this?", "Describe this image"):  # the second finds the picture in the cache
        ...     inputs = processor(images=["photo.jpg"], text=question)
        ...     ids = model.generate(**inputs, max_new_tokens=8, past_key_values=cache)
    """

    def __init__(self, language_model: LanguageModel, batch_size: int, capacity: int) -> None:
        self.language_model = language_model
        self.decoder = language_model.new_cached(batch_size, capacity)
        self.turn = 0
        self.batch_size, self.capacity = batch_size, capacity
        self._chunks: list[list[bytes]] = [[] for _ in range(batch_size)]

    def common_prefix(self, text: int, names: list[bytes], length: int) -> int:
        """Return how many of the `length` tokens of a prompt whose chunks have `names` are kept already.

        At least one token is left over, since the answer begins with the logits of the last.
        """
        kept = 0
        for held, name in zip(self._chunks[text], names, strict=False):
            if held != name:
                break
            kept += CHUNK
        return kept if kept < length else kept - CHUNK

    def record(self, text: int, names: list[bytes]) -> None:
        """Note that `text` now holds the prompt whose chunks have `names`."""
        self._chunks[text] = names

    def begin(self) -> int:
        """Begin another generation and return its number; until its prefill is done nothing that is kept counts."""
        self._chunks = [[] for _ in range(self.batch_size)]
        self.turn += 1
        return self.turn

    def reset(self) -> None:
        """Throw all that is kept away: what is not a number spoils every later answer, even where no query may look."""
        del self.decoder  # first, so that there are never two
        self.decoder = self.language_model.new_cached(self.batch_size, self.capacity)
        self.begin()

    def check(self, turn: int) -> None:
        """Make sure that no other generation has begun since.

        Raises:
            RuntimeError: one has, and wrote over what this one needs.
        """
        if turn != self.turn:
            raise RuntimeError(
                "these past_key_values were given to another call before this answer was complete: give each of them a "
                "cache of its own (model.new_cache()), or read the first answer to its end"
            )


class CachePool:
    """The caches a model makes for callers who bring none; the last few stay, with their compiled graphs.

    A cache is out of the pool while it is in use, so that two streams never share one.
    """

    def __init__(self, make: Callable[[int, int], KVCache], keep: int = 2) -> None:
        self._make, self._keep = make, keep
        self._free: OrderedDict[tuple[int, int], KVCache] = OrderedDict()

    @contextmanager
    def lease(self, batch_size: int, length: int, limit: int) -> Iterator[KVCache]:
        """Lend a cache for `batch_size` texts of `length` tokens; sizes are rounded up, to compile few graphs.

        Args:
            limit: the longest capacity that makes sense, the model's context.
        """
        capacity = CHUNK * 2
        while capacity < length:
            capacity *= 2
        shape = (1 << (batch_size - 1).bit_length(), min(capacity, max(limit, length)))
        cache = self._free.pop(shape, None) or self._make(*shape)
        try:
            yield cache
        except Exception:
            raise  # what went wrong may have left its mark in the cache: it is not used again
        except BaseException:  # a stream that nobody reads on, or Ctrl-C
            self._return(shape, cache)
            raise
        self._return(shape, cache)

    def _return(self, shape: tuple[int, int], cache: KVCache) -> None:
        self._free[shape] = cache
        while len(self._free) > self._keep:
            self._free.popitem(last=False)
