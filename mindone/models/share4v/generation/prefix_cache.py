"""Which prompts the rows of a KV cache hold, so that a new prompt with the same beginning does not compute it again.

The cache itself is that of the continuous batch: a row that is free keeps the keys and values of the sequence that was
in it last. So this takes no memory beyond the batch's own, which is bounded by its rows and the model's context.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

MIN_PREFIX = 8  # in tokens; recomputing a shorter prefix is faster than copying it
_TEXT = -1  # second half of a text token's key


class Match(NamedTuple):
    """Where a new sequence goes, and what it can reuse.

    Attributes:
        row: the free row to use.
        source: the row that holds the prefix; may be `row` itself. None if there is none.
        length: of the prefix, in tokens.
    """

    row: int
    source: int | None
    length: int


def prompt_keys(ids: np.ndarray, embeds: np.ndarray) -> np.ndarray:
    """Return a key for each token of a prompt: two prompts have the same keys up to where they are equal.

    Args:
        ids: int [T], token ids; negative where the embedding alone says what is there (image patches).
        embeds: float32 [T, H].

    Returns:
        int64 [T, 2]: the id and -1, or a digest of 16 bytes of the embedding.
    """
    keys = np.full((len(ids), 2), _TEXT, np.int64)
    keys[:, 0] = ids
    for position in np.flatnonzero(ids < 0):
        keys[position] = np.frombuffer(blake2b(embeds[position].tobytes(), digest_size=16).digest(), np.int64)
    return keys


def text_keys(ids: Collection[int]) -> np.ndarray:
    """Return the keys int64 [T, 2] of tokens of text."""
    return np.array([(token_id, _TEXT) for token_id in ids], np.int64).reshape(-1, 2)


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many keys at the start of [T, 2] and [U, 2] are equal."""
    longest = min(len(a), len(b))
    differs = (a[:longest] != b[:longest]).any(1)
    return int(differs.argmax()) if differs.any() else longest


class PrefixCache:
    """The keys of what each row holds.

    Args:
        rows: number of rows of the KV cache.

    Attributes:
        queried: tokens of all prompts that were looked up.
        hits: how many of them did not have to be computed.

    Example:
        >>> import numpy as np
        >>> from mindone.models.share4v.generation.prefix_cache import PrefixCache, text_keys
        >>> cache = PrefixCache(2)
        >>> cache.store(1, text_keys(range(20)))
        >>> cache.find(text_keys([*range(15), 99]), [0, 1])
        Match(row=1, source=1, length=15)
    """

    def __init__(self, rows: int) -> None:
        self._keys = [text_keys(()) for _ in range(rows)]
        self._last_used = [0] * rows
        self._clock = 0
        self.queried = 0
        self.hits = 0

    def find(self, keys: np.ndarray, free: Collection[int]) -> Match:
        """Return the row that a new prompt should use and the prefix that it finds.

        Args:
            keys: [T, 2], of the prompt. Its last token is always computed, since its logits choose the first new one.
            free: rows without a running sequence, at least one.
        """
        lengths = [min(common_length(keys, own), len(keys) - 1) for own in self._keys]
        source = max(range(len(lengths)), key=lambda row: (lengths[row], row in free))
        length = lengths[source]
        oldest = min(free, key=lambda row: (len(self._keys[row]) > 0, self._last_used[row]))
        if length < MIN_PREFIX:
            return Match(oldest, None, 0)
        # The rest of what the row holds is lost if it is used in place; prefer another row if that is the larger part.
        in_place = source in free and (2 * length >= len(self._keys[source]) or oldest == source)
        return Match(source if in_place else oldest, source, length)

    def count(self, queried: int, hits: int) -> None:
        """Count the tokens of a prompt, and those of them that were reused."""
        self.queried += queried
        self.hits += hits

    def store(self, row: int, keys: np.ndarray) -> None:
        """Record that a row holds the tokens with these keys [T, 2], and nothing else."""
        self._clock += 1
        self._last_used[row] = self._clock
        self._keys[row] = keys

    def clear(self, rows: Collection[int] | None = None) -> None:
        """Record that rows hold nothing that can be used; None is all rows."""
        for row in range(len(self._keys)) if rows is None else rows:
            self._keys[row] = text_keys(())
