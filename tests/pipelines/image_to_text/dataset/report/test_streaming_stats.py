"""Statistics of a stream: top counts, duplicates, and the lowest ranks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mindone.pipelines.image_to_text.dataset.report.streaming_stats import (
    DuplicateCounter,
    LowestRanked,
    TopCounts,
)


@given(st.lists(st.sampled_from("abcdefghij"), max_size=200))
def test_the_error_of_top_counts_is_bounded(words: list[str]) -> None:
    top, true = TopCounts(3), Counter(words)
    for word in words:
        top.add(word)
    assert top.total == len(words) and len(top) <= 6
    for word, count in top.most_common():
        assert true[word] - top.max_error <= count <= true[word]


def test_duplicates_are_counted_exactly_and_then_estimated() -> None:
    duplicates = DuplicateCounter(capacity=2000)
    for number in range(60_000):
        duplicates.add(f"text {number % 40_000}", f"source {number}")
        if number == 1500:
            assert duplicates.is_exact and duplicates.count == 0
    assert not duplicates.is_exact
    assert abs(duplicates.count - 20_000) < 2000  # deterministic, because the hashes are


@given(st.lists(st.integers(-5, 5), max_size=60), st.integers(0, 8))
def test_the_lowest_ranks_are_kept_in_order(ranks: list[int], size: int) -> None:
    lowest: LowestRanked[int] = LowestRanked(size)
    for index, rank in enumerate(ranks):
        lowest.add(rank, index)
    assert lowest.values() == sorted(range(len(ranks)), key=lambda index: ranks[index])[:size]
