"""Groups of near-equal images by their hashes: locality-sensitive hashing (E2LSH, Datar et al. 2004), then comparisons.

A key of a band has the cells into which several random projections of the hash fall. Hashes that differ little fall
into the same cells of some band; for n images this takes a few sorts of n keys, not n^2 comparisons. Keys and hashes
are in temporary files, 800 bytes an image; memory holds about 40 bytes an image.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .disk_rows import DiskRows
from .grouping import BandKeys, Groups, join_similar
from .image_hash import LENGTH, near_equal, read_hash

# Two hashes at a Euclidean distance of 22, the largest seen between copies, share a key with probability 0.998; two at
# 120, as scenes with other shapes on the same background, with 0.04.
_BANDS, _PROJECTIONS, _WIDTH = 24, 6, 80
_BATCH = 256
_MAX_COMPARED = 64


@dataclass(frozen=True)
class ImageGroup:
    """Near-equal images.

    Attributes:
        count: number of images.
        sources: the first few.
    """

    count: int
    sources: tuple[str, ...]


@dataclass(frozen=True)
class NearEqualImages:
    """Near-equal images of a data set.

    Attributes:
        images: number of images that nearly equal an earlier one.
        groups: number of groups.
        largest: the largest groups.
    """

    images: int
    groups: int
    largest: tuple[ImageGroup, ...]


class NearImages:
    """Collects the hashes of images, and finds the groups of near-equal ones.

    Raises:
        OSError: a temporary file cannot be written; every method may raise it.

    Example:
        >>> from PIL import Image
        >>> from mindone.pipelines.image_to_text.dataset.audit.image_hash import image_hash
        >>> from mindone.pipelines.image_to_text.dataset.audit.near_images import NearImages
        >>> near = NearImages()
        >>> for size, color in ((40, "red"), (40, "blue"), (80, "red")):
        ...     near.add(image_hash(Image.new("RGB", (size, size), color)), f"{color}{size}.png")
        >>> near.firsts().tolist(), near.find().largest
        ([0, 1, 0], (ImageGroup(count=2, sources=('red40.png', 'red80.png')),))
        >>> near.close()
    """

    def __init__(self) -> None:
        random = np.random.default_rng(2)
        shape = (_BANDS, _PROJECTIONS)
        self._signs = (2 * random.integers(0, 2, (LENGTH, _BANDS * _PROJECTIONS)) - 1).astype(np.float32)
        self._offsets = random.integers(0, _WIDTH, shape)
        self._mixers = random.integers(0, 2**63, shape, np.uint64) << np.uint64(1) | np.uint64(1)
        self._digests = array("Q")
        self._hashes, self._sources, self._keys = DiskRows(), DiskRows(), BandKeys(_BANDS)
        self._waiting: list[NDArray[np.int8]] = []

    def add(self, image_hash: str, source: str) -> None:
        """Add an image.

        Raises:
            ValueError: `image_hash` is not a hash.
        """
        values = read_hash(image_hash)
        data = values.tobytes()
        self._digests.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))
        self._hashes.append(data)
        self._sources.append(source.encode("utf-8", "surrogatepass"))
        self._waiting.append(values)
        if len(self._waiting) == _BATCH:
            self._add_keys()

    def firsts(self) -> NDArray[np.int64]:
        """Return for each image, in the order in which they were added, the index of the first image of its group."""
        firsts = np.arange(len(self._digests))
        for first, members in self._groups().items():
            firsts[members] = first
        return firsts

    def find(self, number: int = 12, max_sources: int = 6) -> NearEqualImages:
        """Find the groups.

        Args:
            number: number of groups to return, the largest first.
            max_sources: number of sources to return of each.
        """
        found = self._groups()
        largest = sorted(found.items(), key=lambda group: (-len(group[1]), group[0]))[:number]
        return NearEqualImages(
            sum(len(members) - 1 for members in found.values()),
            len(found),
            tuple(self._group(members, max_sources) for _, members in largest),
        )

    def close(self) -> None:
        """Delete the temporary files."""
        for file in (self._hashes, self._sources, self._keys):
            file.close()

    def _groups(self) -> dict[int, list[int]]:
        self._add_keys()
        groups = Groups(len(self._digests))
        entries = groups.join_equal(np.frombuffer(self._digests, np.uint64))
        join_similar(groups, entries, self._keys.bands(entries), self._load, near_equal, _MAX_COMPARED)
        return groups.members()

    def _add_keys(self) -> None:
        if not self._waiting:
            return
        hashes = np.stack(self._waiting).astype(np.float32)  # [N, LENGTH]; sums of small integers are exact
        projected = (hashes @ self._signs).astype(np.int64).reshape(-1, _BANDS, _PROJECTIONS)
        cells = (projected + self._offsets) // _WIDTH
        self._keys.append((cells.astype(np.uint64) * self._mixers).sum(axis=2, dtype=np.uint64))
        self._waiting.clear()

    def _load(self, entry: int) -> NDArray[np.int8]:
        return np.frombuffer(self._hashes[entry], np.int8)

    def _group(self, members: Sequence[int], max_sources: int) -> ImageGroup:
        sources = [self._sources[member].decode("utf-8", "surrogatepass") for member in members[:max_sources]]
        return ImageGroup(len(members), tuple(sources))
