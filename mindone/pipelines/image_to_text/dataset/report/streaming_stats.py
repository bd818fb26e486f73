"""Counts of a stream in memory that does not grow with it: what is frequent, what comes twice, a fair sample."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


def stable_hash(text: str) -> int:
    """Return 64 bits that look random and hang on the text alone, in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class TopCounts:
    """How often texts come, exactly as long as there are few different ones.

    When more than twice `capacity` are known, the rarer half is forgotten; `lost` is then the most that a count can
    lack (lossy counting, Manku and Motwani 2002).

    Example:
        >>> top = TopCounts(2)
        >>> for word in "a b a c a b d e a".split():
        ...     top.add(word)
        >>> top.most_common(1)
        [('a', 4)]
    """

    def __init__(self, capacity: int = 2000) -> None:
        self.capacity, self.lost, self.total = capacity, 0, 0
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, text: str) -> None:
        """Count a text once."""
        self.total += 1
        self._counts[text] = self._counts.get(text, 0) + 1
        if len(self._counts) > 2 * self.capacity:
            kept = heapq.nlargest(self.capacity, self._counts.items(), key=lambda entry: entry[1])
            gone = sum(self._counts.values()) - sum(count for _, count in kept)
            self.lost += min(gone, kept[-1][1])
            self._counts = dict(kept)

    def most_common(self, number: int | None = None) -> list[tuple[str, int]]:
        """Return texts and counts, the most frequent first, equal counts in the order of the texts."""
        ranked = sorted(self._counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return ranked[:number]


@dataclass
class Seen:
    """What is known of a text that came: how often, and where first."""

    text: str
    count: int = 0
    owners: list[int] = field(default_factory=list)  # marks of whose it is, two at most
    places: list[str] = field(default_factory=list)  # the first few


class DuplicateCounter:
    """Texts that come more than once, counted exactly up to `capacity` different texts and estimated beyond.

    Beyond it only texts whose mark ends in so many zero bits are kept, which is a fair sample of the different texts
    (distinct sampling, Gibbons 2001): what is counted among them stands for 2 ** `level` times as many.
    """

    def __init__(self, capacity: int = 20_000, places: int = 4, text_length: int = 400) -> None:
        self.capacity, self.level = capacity, 0
        self._places, self._text_length = places, text_length
        self._seen: dict[int, Seen] = {}

    def add(self, text: str, place: str, owner: str = "") -> None:
        """Count a text that was found at `place`. Texts of one `owner` alone are no repetition, "" is no owner."""
        mark = stable_hash(text)
        if mark & ((1 << self.level) - 1):
            return
        seen = self._seen.setdefault(mark, Seen(text[: self._text_length]))
        seen.count += 1
        whose = stable_hash(owner or place)
        if len(seen.owners) < 2 and whose not in seen.owners:
            seen.owners.append(whose)
        if len(seen.places) < self._places:
            seen.places.append(place)
        while len(self._seen) > self.capacity:
            self.level += 1
            self._seen = {mark: seen for mark, seen in self._seen.items() if not mark & ((1 << self.level) - 1)}

    @property
    def is_exact(self) -> bool:
        """Whether every text was kept."""
        return self.level == 0

    @property
    def extra(self) -> int:
        """How many texts came that had come before."""
        return sum(seen.count - 1 for seen in self._repeated()) << self.level

    def largest(self, number: int) -> list[Seen]:
        """Return those that came most often."""
        return heapq.nlargest(number, self._repeated(), key=lambda seen: (seen.count, seen.text))

    def _repeated(self) -> Iterator[Seen]:
        return (seen for seen in self._seen.values() if seen.count > 1 and len(seen.owners) > 1)


class LowestRanked(Generic[Value]):
    """The few values of the lowest rank. With ranks by `stable_hash` it is a fair sample, the same in every process."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, Value]] = []  # the highest rank first
        self._count = 0

    def add(self, rank: float, value: Value) -> None:
        """Offer a value."""
        self._count += 1
        entry = (-rank, -self._count, value)  # the count keeps values from being compared
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        elif self._size and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def values(self) -> list[Value]:
        """Return the values, the lowest rank first."""
        return [value for _, _, value in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]
