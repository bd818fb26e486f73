"""Near-duplicate captions: MinHash (Broder 1997) and locality-sensitive hashing, then a comparison of the words.

Similarity is the Jaccard index of two captions' sets of words, as in the package caption-audit. The keys of the bands
and the words are in temporary files, about 400 bytes a caption; memory holds about 40 bytes a caption.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .disk_rows import DiskRows
from .grouping import BandKeys, Groups, join_similar

SIMILARITY = 0.9  # Jaccard index from which captions are near-duplicates
# Two captions become candidates with probability 1 - (1 - J^ROWS)^BANDS: 0.995 at a similarity J of 0.9, 0.9998 at
# 0.93, 0.2 at 0.7.
BANDS, ROWS = 16, 12
_MAX_COMPARED = 8
_BATCH_WORDS = 8192  # words that are hashed together; 12 MB
_MAX_KNOWN_WORDS = 2**18
_TEXT_LENGTH = 300  # characters of a caption to show


@dataclass(frozen=True)
class NearGroup:
    """Captions that are nearly the same.

    Attributes:
        text: the first of them, possibly shortened.
        count: number of captions.
        sources: where the first few are.
    """

    text: str
    count: int
    sources: tuple[str, ...]


@dataclass(frozen=True)
class NearDuplicates:
    """Near-duplicate captions of a data set.

    Attributes:
        identical: number of captions with the words of an earlier one, in the same order.
        captions: number of captions that have a near-duplicate or an identical one before them.
        groups: number of groups.
        largest: the largest groups.
    """

    identical: int
    captions: int
    groups: int
    largest: tuple[NearGroup, ...]


class NearCaptions:
    """Collects captions, and finds groups of near-duplicates among them.

    Raises:
        OSError: a temporary file cannot be written; every method may raise it.
    """

    def __init__(self) -> None:
        random = np.random.default_rng(1)
        odd = np.uint64(1)
        self._factors = random.integers(0, 2**63, BANDS * ROWS, np.uint64) << odd | odd
        self._terms = random.integers(0, 2**63, BANDS * ROWS, np.uint64)
        self._mixers = random.integers(0, 2**63, (BANDS, ROWS), np.uint64) << odd | odd
        self._known: dict[str, int] = {}
        self._sequences, self._sets = array("Q"), array("Q")  # a hash of the words in order, and of their set
        self._word_hashes, self._texts = DiskRows(), DiskRows()
        self._keys = BandKeys(BANDS)
        self._words: list[NDArray[np.uint64]] = []  # of the captions whose keys are not computed yet
        self._waiting = 0  # number of their words

    def add(self, sequence: Sequence[str], words: Sequence[str], text: str, source: str) -> None:
        """Add a caption.

        Args:
            sequence: its words in order; a caption without words is ignored.
            words: the different ones.
            text: the caption, to show.
            source: where it is, to show.
        """
        if not words:
            return
        hashes = np.sort(np.array([self._hash(word) for word in words], np.uint64))
        self._sequences.append(_digest(" ".join(sequence).encode("utf-8", "surrogatepass")))
        self._sets.append(_digest(hashes.tobytes()))
        self._word_hashes.append(hashes.astype(np.uint32).tobytes())
        self._texts.append(json.dumps([text[:_TEXT_LENGTH], source]).encode())
        self._words.append(hashes)
        self._waiting += len(hashes)
        if self._waiting > _BATCH_WORDS:
            self._hash_batch()

    def find(self, number: int = 12, max_sources: int = 4) -> NearDuplicates:
        """Find the groups.

        Args:
            number: number of groups to return, the largest first.
            max_sources: number of sources to return of each.
        """
        self._hash_batch()
        groups = Groups(len(self._sets))
        entries = groups.join_equal(np.frombuffer(self._sets, np.uint64))
        join_similar(groups, entries, self._keys.bands(entries), self._load, _are_similar, _MAX_COMPARED)
        found = groups.members()
        identical = len(self._sequences) - len(np.unique(np.frombuffer(self._sequences, np.uint64)))
        largest = sorted(found.items(), key=lambda group: (-len(group[1]), group[0]))[:number]
        return NearDuplicates(
            identical,
            sum(len(members) - 1 for members in found.values()),
            len(found),
            tuple(self._group(members, max_sources) for _, members in largest),
        )

    def close(self) -> None:
        """Delete the temporary files."""
        for file in (self._word_hashes, self._texts, self._keys):
            file.close()

    def _hash(self, word: str) -> int:
        known = self._known.get(word)
        if known is None:
            if len(self._known) >= _MAX_KNOWN_WORDS:
                self._known.clear()
            known = self._known[word] = _digest(word.encode("utf-8", "surrogatepass"))
        return known

    def _hash_batch(self) -> None:
        """Store the keys of the waiting captions."""
        if not self._words:
            return
        lengths = [len(words) for words in self._words]
        starts = np.concatenate(([0], np.cumsum(lengths[:-1]))).astype(np.int64)
        words = np.concatenate(self._words)[:, None]
        hashes = words * self._factors  # [words, BANDS * ROWS]; products modulo 2 ** 64
        hashes += self._terms
        hashes >>= np.uint64(32)  # the high bits of a product depend on all bits of the word
        lowest = np.minimum.reduceat(hashes, starts, axis=0).reshape(len(lengths), BANDS, ROWS)
        keys = (lowest * self._mixers).sum(axis=2, dtype=np.uint64)  # [captions, BANDS]
        self._keys.append(keys)
        self._words.clear()
        self._waiting = 0

    def _load(self, entry: int) -> frozenset[int]:
        return frozenset(np.frombuffer(self._word_hashes[entry], np.uint32).tolist())

    def _group(self, members: Sequence[int], max_sources: int) -> NearGroup:
        shown = [json.loads(self._texts[member]) for member in members[:max_sources]]
        return NearGroup(shown[0][0], len(members), tuple(source for _, source in shown))


def _are_similar(one: frozenset[int], other: frozenset[int]) -> bool:
    smaller, larger = sorted((len(one), len(other)))
    if smaller < SIMILARITY * larger:
        return False
    common = len(one & other)
    return common >= SIMILARITY * (len(one) + len(other) - common)


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
