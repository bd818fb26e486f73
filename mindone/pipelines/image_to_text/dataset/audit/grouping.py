"""Groups of similar entries without comparing all pairs: candidates share a key of at least one band.

For n entries and b bands this takes b sorts of n keys, and memory for one band at a time. Which keys make similar
entries share one is the caller's: bands of MinHash values for sets of words, parts of a hash for images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


class BandKeys:
    """The keys of entries in each band, in a temporary file.

    Args:
        bands: number of bands.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; `append` may raise it too.
    """

    def __init__(self, bands: int) -> None:
        self._bands = bands
        self._file = tempfile.TemporaryFile(prefix="share4v-")  # noqa: SIM115  closed by `close`
        self._counts: list[int] = []  # number of entries in each batch

    def append(self, keys: NDArray[np.uint64]) -> None:
        """Add a batch of entries, [entries, bands]."""
        self._file.write(np.ascontiguousarray(keys.T).tobytes())
        self._counts.append(len(keys))

    def bands(self, entries: NDArray[np.int64]) -> Iterator[NDArray[np.uint64]]:
        """Yield the keys of each band, of these entries."""
        for band in range(self._bands):
            keys = np.empty(sum(self._counts), np.uint64)
            start = offset = 0
            for count in self._counts:
                self._file.seek(offset + 8 * band * count)
                keys[start : start + count] = np.frombuffer(self._file.read(8 * count), np.uint64)
                start += count
                offset += 8 * self._bands * count
            yield keys[entries]

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


class Groups:
    """A partition of the entries 0 to `count` - 1, with a union-find forest; the first entry represents a group."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int64)

    def first(self, entry: int) -> int:
        """Return the first entry of the entry's group."""
        parent = self._parent
        root = entry
        while parent[root] != root:
            root = int(parent[root])
        while parent[entry] != root:
            parent[entry], entry = root, int(parent[entry])
        return root

    def join(self, one: int, other: int) -> None:
        """Make the groups of two entries one."""
        low, high = sorted((self.first(one), self.first(other)))
        self._parent[high] = low

    def join_equal(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Make groups of the entries with equal keys, one key per entry; return the first entry of each, ascending."""
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        self._parent[:] = first[inverse]
        return np.sort(first)

    def members(self) -> dict[int, list[int]]:
        """Return the groups of more than one entry: first entry -> all entries, ascending."""
        parent = self._parent
        while not np.array_equal(shorter := parent[parent], parent):
            parent = shorter
        self._parent = parent
        order = np.argsort(parent, kind="stable")
        firsts, starts = np.unique(parent[order], return_index=True)
        ends = np.append(starts[1:], len(order))
        large = np.flatnonzero(ends - starts > 1)
        return {int(firsts[i]): order[starts[i] : ends[i]].tolist() for i in large}


def join_similar(
    groups: Groups,
    entries: NDArray[np.int64],
    bands: Iterable[NDArray[np.uint64]],
    load: Callable[[int], Any],
    are_similar: Callable[[Any, Any], bool],
    max_compared: int,
) -> None:
    """Join the entries that share a key in a band and are similar.

    Args:
        groups: changed.
        entries: entries to compare, ascending.
        bands: for each band, one key for each of `entries`.
        load: returns what `are_similar` compares of an entry.
        are_similar: compares two of them.
        max_compared: number of entries of a bucket with which its others are compared. Where many unrelated entries
            share a key, more would make the time quadratic.
    """
    for keys in bands:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        ends = np.append(starts[1:], len(ordered))
        for bucket in np.flatnonzero(ends - starts > 1):
            members = entries[order[starts[bucket] : ends[bucket]]].tolist()
            _join_bucket(groups, members, load, are_similar, max_compared)


def _join_bucket(
    groups: Groups,
    bucket: list[int],
    load: Callable[[int], Any],
    are_similar: Callable[[Any, Any], bool],
    max_compared: int,
) -> None:
    representatives: list[tuple[int, Any]] = []
    roots: set[int] = set()  # groups of the representatives
    for entry in bucket:
        root = groups.first(entry)
        if root in roots:
            continue
        value = load(entry)
        joined = False
        for other, known in representatives:
            if groups.first(other) != groups.first(entry) and are_similar(known, value):
                groups.join(other, entry)
                joined = True
        if joined:
            roots = {groups.first(other) for other, _ in representatives}
        if len(representatives) < max_compared:
            representatives.append((entry, value))
            roots.add(groups.first(entry))
