"""Token budgets: captions of at most so many tokens of the text encoder that will read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .encoder_tokenizer import Count, load_token_counter
from .words import split_sentences


@dataclass(frozen=True)
class TokenBudget:
    """The maximum number of tokens of a text, special tokens included.

    Attributes:
        tokenizer: directory, or name on the hub, of the encoder's tokenizer.
        limit: maximum number of tokens.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.rules.token_budget import TokenBudget
        >>> TokenBudget.parse("openai/clip-vit-large-patch14:77").limit
        77
    """

    tokenizer: str
    limit: int

    @classmethod
    def parse(cls, text: str) -> TokenBudget:
        """Read `NAME_OR_DIR:N`.

        Raises:
            ValueError: it is something else.
        """
        name, _, limit = text.rpartition(":")
        if not name.strip() or not limit.strip().isascii() or not limit.strip().isdigit() or int(limit) < 1:
            raise ValueError(
                f"fit must be NAME_OR_DIR:N, a tokenizer and a number of tokens, got {text!r}: write it as in "
                "openai/clip-vit-large-patch14:77"
            )
        return cls(name.strip(), int(limit))

    def __str__(self) -> str:
        return f"{self.tokenizer}:{self.limit}"


@dataclass(frozen=True)
class Fitted:
    """A caption that was fitted into budgets.

    Attributes:
        text: the caption, without the sentences that did not fit.
        tokens: for each budget, the tokens of the whole text that is written.
        before: the same before sentences were dropped.
        excess: indexes of the budgets that the text does not fit into, although only one sentence is left.
    """

    text: str
    tokens: tuple[int, ...]
    before: tuple[int, ...]
    excess: tuple[int, ...] = ()

    @property
    def is_cut(self) -> bool:
        """Whether sentences were dropped."""
        return self.tokens != self.before


class TokenBudgets:
    """Budgets with their tokenizers.

    Args:
        budgets: the budgets; a text has to fit into all of them.
        local_files_only: as in `load_token_counter`.

    Raises:
        TokenizerError: a tokenizer was not found or cannot be read.
        ValueError: a budget is not above the tokens of a text without words, or a tokenizer has two budgets.
    """

    def __init__(self, budgets: Sequence[TokenBudget], local_files_only: bool = False) -> None:
        self.budgets = tuple(budgets)
        check_budgets(self.budgets)
        self._counts: list[Count] = []
        for budget in self.budgets:
            count = load_token_counter(budget.tokenizer, local_files_only)
            if count("") >= budget.limit:
                raise ValueError(
                    f"fit {budget} leaves no token for text: the tokenizer adds {count('')} special tokens; increase "
                    f"the number"
                )
            self._counts.append(count)

    def count(self, text: str) -> tuple[int, ...]:
        """Return the number of tokens of a text for each budget."""
        return tuple(count(text) for count in self._counts)

    def fit(
        self, caption: str, complete: Callable[[str], str] = lambda caption: caption, as_tags: bool = False
    ) -> Fitted:
        """Drop sentences from the end of a caption until what is written fits into all budgets; at least one stays.

        Args:
            caption: the caption.
            complete: returns what is written for a caption, such as the caption in its template.
            as_tags: the caption is a list of tags separated by commas, of which tags are dropped instead.
        """
        before = tokens = self.count(complete(caption))
        if self._excess(tokens):
            parts = [f"{tag}," for tag in caption.split(",")] if as_tags else split_sentences(caption)
            for length in range(len(parts) - 1, 0, -1):
                text = "".join(parts[:length]).rstrip(", " if as_tags else None)
                if not text.strip():
                    break
                caption, tokens = text, self.count(complete(text))
                if not self._excess(tokens):
                    break
        return Fitted(caption, tokens, before, self._excess(tokens))

    def _excess(self, tokens: Sequence[int]) -> tuple[int, ...]:
        pairs = zip(tokens, self.budgets, strict=True)
        return tuple(index for index, (count, budget) in enumerate(pairs) if count > budget.limit)


def check_budgets(budgets: Sequence[TokenBudget]) -> None:
    """Refuse two budgets of one tokenizer.

    Raises:
        ValueError: there are two.
    """
    names = [budget.tokenizer for budget in budgets]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"fit has two budgets of {double}: a text fits into both if it fits into the smaller one")
