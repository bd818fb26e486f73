"""Statistics of a stream in bounded memory: frequent texts, duplicates, extreme values, and a uniform sample."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


def stable_hash(text: str) -> int:
    """Return a 64-bit hash of a text that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class TopCounts:
    """Counts of texts, exact while there are few different texts.

    With more than twice `capacity` different texts, the less frequent half is dropped, and a text that returns is
    known to have occurred at most as often as the most frequent of the dropped ones (lossy counting, Manku and Motwani
    2002).

    Attributes:
        capacity: number of different texts that are kept.
        total: number of all texts.
        max_error: maximum number by which a count may be too low.

    Example:
        >>> top = TopCounts(2)
        >>> for word in "a b a c a b d e a".split():
        ...     top.add(word)
        >>> top.most_common(1), top.error("a")
        ([('a', 4)], 0)
    """

    def __init__(self, capacity: int = 2000) -> None:
        self.capacity, self.max_error, self.total = capacity, 0, 0
        self._counts: dict[str, int] = {}
        self._errors: dict[str, int] = {}  # of texts that were first counted, or counted again, after a drop

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, text: str) -> None:
        """Count one occurrence of a text."""
        self.add_all((text,))

    def add_all(self, texts: Sequence[str]) -> None:
        """Count one occurrence of each text."""
        counts = self._counts
        for text in texts:
            if text in counts:
                counts[text] += 1
            else:
                counts[text] = 1
                if self.max_error:
                    self._errors[text] = self.max_error
        self.total += len(texts)
        if len(counts) > 2 * self.capacity:
            self._drop()

    def count(self, text: str) -> int:
        """Return the count of a text, which may be too low by up to `error`."""
        return self._counts.get(text, 0)

    def error(self, text: str) -> int:
        """Return the maximum number by which the count of a text may be too low; 0 if it was never dropped."""
        return self._errors.get(text, 0) if text in self._counts else self.max_error

    def _drop(self) -> None:
        counts, errors = self._counts, self._errors
        limit = sorted(counts.values(), reverse=True)[self.capacity]
        kept = {text: count for text, count in counts.items() if count > limit}
        for text, count in counts.items():
            if count == limit and len(kept) < self.capacity:
                kept[text] = count
        dropped = (count + errors.get(text, 0) for text, count in counts.items() if text not in kept)
        self.max_error = max(self.max_error, max(dropped, default=0))
        self._counts = kept
        self._errors = {text: error for text, error in errors.items() if text in kept}

    def most_common(self, number: int | None = None) -> list[tuple[str, int]]:
        """Return texts and counts by descending count; equal counts are sorted by text."""
        ranked = sorted(self._counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return ranked[:number]


@dataclass
class Occurrences:
    """The occurrences of one text.

    Attributes:
        text: the text, possibly shortened.
        count: number of occurrences.
        owners: hashes of its first two owners.
        sources: the first few inputs that have it.
    """

    text: str
    count: int = 0
    owners: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


class DuplicateCounter:
    """Counts duplicate texts, exactly for up to `capacity` different texts, else estimated.

    Beyond the capacity, only texts whose hash ends in `level` zero bits are kept, a uniform sample of the different
    texts (distinct sampling, Gibbons 2001); their counts are multiplied by 2 ** `level`.

    Args:
        capacity: number of different texts that are kept.
        max_sources: number of inputs to remember for each text.
        text_length: number of characters to remember of each text.
    """

    def __init__(self, capacity: int = 20_000, max_sources: int = 4, text_length: int = 400) -> None:
        self.capacity, self.level = capacity, 0
        self._max_sources, self._text_length = max_sources, text_length
        self._found: dict[int, Occurrences] = {}  # by hash

    def add(self, text: str, source: str, owner: str = "") -> None:
        """Count a text.

        Args:
            text: the text.
            source: the input that has it.
            owner: occurrences with the same owner only, such as captions of one image, are not duplicates; by default
                each source is its own owner.
        """
        text_hash = stable_hash(text)
        if text_hash & ((1 << self.level) - 1):
            return
        found = self._found.setdefault(text_hash, Occurrences(text[: self._text_length]))
        found.count += 1
        owner_hash = stable_hash(owner or source)
        if len(found.owners) < 2 and owner_hash not in found.owners:
            found.owners.append(owner_hash)
        if len(found.sources) < self._max_sources:
            found.sources.append(source)
        while len(self._found) > self.capacity:
            self.level += 1
            mask = (1 << self.level) - 1
            self._found = {text_hash: found for text_hash, found in self._found.items() if not text_hash & mask}

    @property
    def is_exact(self) -> bool:
        """Whether every text was kept."""
        return self.level == 0

    @property
    def count(self) -> int:
        """Number of texts that equal an earlier one."""
        return sum(found.count - 1 for found in self._duplicates()) << self.level

    def largest(self, number: int) -> list[Occurrences]:
        """Return the most frequent duplicates."""
        return heapq.nlargest(number, self._duplicates(), key=lambda found: (found.count, found.text))

    def _duplicates(self) -> Iterator[Occurrences]:
        return (found for found in self._found.values() if found.count > 1 and len(found.owners) > 1)


class LowestRanked(Generic[Value]):
    """The `size` values with the lowest ranks; with `stable_hash` as rank, a reproducible uniform sample."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, Value]] = []  # a min-heap of negated ranks
        self._count = 0

    def add(self, rank: float, value: Value) -> None:
        """Add a value."""
        self._count += 1
        entry = (-rank, -self._count, value)  # the count breaks ties, so that values are never compared
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        elif self._size and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def values(self) -> list[Value]:
        """Return the values by ascending rank."""
        return [value for _, _, value in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]
