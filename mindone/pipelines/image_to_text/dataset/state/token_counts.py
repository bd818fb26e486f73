"""token_counts.json: the lengths of a job's captions in the tokens of its budgets; written when its outputs are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .atomic_files import atomic_write
from .bounded_reading import read_json
from .regular_files import own_exists, remove_own

MAX_TOKENS = 4096  # longer captions are counted with this length


@dataclass
class BudgetCounts:
    """The captions of a job in one budget.

    Attributes:
        tokens: length -> number of captions.
        cut: number of captions of which sentences were dropped.
        over: number of captions that do not fit.
    """

    tokens: Counter[int] = field(default_factory=Counter)
    cut: int = 0
    over: int = 0

    @property
    def captions(self) -> int:
        """Number of captions."""
        return sum(self.tokens.values())


class TokenCounts:
    """Counts captions by budget, `NAME_OR_DIR:N`.

    Attributes:
        budgets: budget -> its counts.
    """

    def __init__(self) -> None:
        self.budgets: dict[str, BudgetCounts] = {}

    def add(self, tokens: Mapping[str, Sequence[int]], uncut: Mapping[str, Sequence[int]]) -> None:
        """Count the captions of a record: their tokens as written, and before sentences were dropped."""
        for budget, counts in tokens.items():
            limit = int(budget.rpartition(":")[2])
            entry = self.budgets.setdefault(budget, BudgetCounts())
            for after, before in zip(counts, uncut[budget], strict=True):
                entry.tokens[min(after, MAX_TOKENS)] += 1
                entry.cut += after != before
                entry.over += after > limit

    def clear(self) -> None:
        """Forget all captions."""
        self.budgets.clear()

    def write(self, path: Path) -> None:
        """Write the counts; a job without budgets has no such file."""
        if not self.budgets:
            remove_own(path)
            return
        values = {
            budget: {"tokens": sorted(counts.tokens.items()), "cut": counts.cut, "over": counts.over}
            for budget, counts in self.budgets.items()
        }
        with atomic_write(path) as file:
            file.write(json.dumps(values).encode())


def read_token_counts(path: Path) -> dict[str, BudgetCounts]:
    """Return the counts of a job by budget; empty if there are none, or the file is not what a job wrote."""
    if not own_exists(path):
        return {}
    try:
        values: Any = read_json(path)
        return {
            str(budget): BudgetCounts(
                Counter({int(length): int(count) for length, count in entry["tokens"]}),
                int(entry["cut"]),
                int(entry["over"]),
            )
            for budget, entry in values.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
