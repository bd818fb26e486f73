"""A short way to end a text that a grammar constrains, so that it is complete when no more tokens are allowed.

llguidance says which tokens may come next, but not which of them lead to the end. A depth-first search does: at each
state it prefers the tokens that close something (a quote, a brace), then short values, and it avoids states that look
like an earlier one, so that it does not follow a repetition such as `(ab)*` forever.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# First bytes to try, best first: the end of an object or a list; a separator; short values; and last, what opens more.
_OUTSIDE = b'}],:0123456789"ntf-[{aA '
_INSIDE = b'"aA \\'  # within a string, where braces are characters
_IN_STRING = 40  # if that many single bytes are allowed, the text is within a string


class EndingFinder:
    """Finds endings for the matchers of one vocabulary. May be used in any thread.

    Args:
        tokens: the bytes of each token, b"" for tokens that are not text.
        tokenizer: llguidance's, which splits forced bytes into tokens.

    Attributes:
        size: number of tokens.
    """

    def __init__(self, tokens: Sequence[bytes], tokenizer: Any) -> None:
        self.size = len(tokens)
        self._tokenizer = tokenizer
        single = {data: token_id for token_id, data in reversed(list(enumerate(tokens))) if len(data) == 1}
        self._outside, self._inside = (_ordered(single, first) for first in (_OUTSIDE, _INSIDE))
        self._closing = {single[data] for data in (b'"', b"}", b"]") if data in single}
        self._ascii = {token_id for data, token_id in single.items() if data < b"\x80"}
        lengths = np.array([len(data) for data in tokens])
        self._longest = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]

    def find(
        self, matcher: Any, is_json: bool, max_tokens: int, max_masks: int, seconds: float | None = None
    ) -> tuple[int, ...] | None:
        """Return ids that end the text, of at most `max_tokens`; None if none are found.

        Args:
            matcher: llguidance's, at the end of the text so far; left as it is, unless it gives up.
            is_json: whether the text is JSON, in which a quote that the grammar forces is progress.
            max_tokens: maximum length of the ending.
            max_masks: number of times that llguidance may be asked which tokens are allowed.
            seconds: CPU time of the search; None for no limit. A result of None may be due to it.
        """
        deadline = None if seconds is None else time.thread_time() + seconds
        search = _Search(matcher, is_json, self.size, max_masks)
        path: list[int] = []
        branches: list[tuple[int, list[list[int]]]] = []  # (length of the path, what was not tried there yet)
        found = None
        while search.masks > 0 and not (deadline is not None and time.thread_time() > deadline):
            if matcher.is_accepting():
                found = tuple(path)
                break
            options = self._continuations(search) if len(path) < max_tokens else []
            if options:
                branches.append((len(path), options))
            while branches and not branches[-1][1]:
                branches.pop()
            if not branches or matcher.is_error():
                break
            length, options = branches[-1]
            matcher.rollback(len(path) - length)
            del path[length:]
            chosen = options.pop(0)
            path += chosen[: matcher.try_consume_tokens(chosen)]
        matcher.rollback(len(path))
        return found if found is not None and len(found) <= max_tokens else None

    def _continuations(self, search: _Search) -> list[list[int]]:
        """Return what to try next, best first; tokens that lead to states like an earlier one come last."""
        matcher = search.matcher
        if matcher.is_stopped():
            return []
        forced = matcher.compute_ff_bytes()
        if _is_text(forced):
            ids = self._tokenizer.greedy_tokenize(forced.decode())
            if matcher.validate_tokens(ids) == len(ids):
                if search.is_json and b'"' in forced:  # another value; the pattern of a string has no such byte
                    search.seen.clear()
                return [ids]
        allowed, here = search.allowed()
        search.seen.add(here)
        candidates = self._candidates(allowed)
        known: list[int] = []
        for number, token_id in enumerate(candidates):
            if not matcher.consume_token(token_id):
                break
            is_end = matcher.is_stopped() or matcher.is_accepting()
            after = b"" if is_end else search.allowed()[1]
            matcher.rollback(1)
            closes = search.is_json and token_id in self._closing
            if is_end or (after != here if closes else after not in search.seen):
                search.seen.add(after)
                # Almost always right; the others are tried only if the search comes back.
                return [[token_id], *([one] for one in (*candidates[number + 1 :], *known))]
            known.append(token_id)
        known.sort(key=lambda one: one != candidates[-1])  # a string that must go on: as many characters as possible
        return [[one] for one in known]

    def _candidates(self, allowed: np.ndarray) -> list[int]:
        """Return the allowed single bytes, best first, and the longest allowed token."""
        order = self._inside if np.count_nonzero(allowed[self._inside]) >= _IN_STRING else self._outside
        found = order[allowed[order]].tolist()
        found = [one for one in found if one in self._ascii] or found
        longest = int(self._longest[np.argmax(allowed[self._longest])])
        return [*found, longest] if allowed[longest] and longest not in found else found


class _Search:
    """State of one search.

    Attributes:
        masks: number of times that llguidance may still be asked which tokens are allowed.
        seen: the sets of allowed tokens that were seen since the grammar last forced a quote.
    """

    def __init__(self, matcher: Any, is_json: bool, vocabulary_size: int, masks: int) -> None:
        self.matcher = matcher
        self.is_json = is_json
        self.masks = masks
        self.seen: set[bytes] = set()
        self._size = vocabulary_size
        self._mask = np.zeros((1, -(-vocabulary_size // 32)), np.int32)

    def allowed(self) -> tuple[np.ndarray, bytes]:
        """Return bool [V], the tokens that may follow, and the same as bytes."""
        from llguidance.numpy import fill_next_token_bitmask

        self.masks -= 1
        fill_next_token_bitmask(self.matcher, self._mask, 0)
        bits = np.unpackbits(self._mask.view(np.uint8)[0], bitorder="little")
        return bits[: self._size].astype(bool), self._mask.tobytes()


def _is_text(data: bytes) -> bool:
    """Return whether there are bytes, and they are whole characters."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return bool(data)


def _ordered(single: Mapping[bytes, int], first: bytes) -> np.ndarray:
    """Return the ids of all single bytes, those of `first` in front."""
    leading = [single[data] for byte in first if (data := bytes([byte])) in single]
    others = [token_id for _, token_id in sorted(single.items()) if token_id not in leading]
    return np.array([*leading, *others], np.int64)
