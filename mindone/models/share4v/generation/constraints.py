"""Structured output: a JSON schema or a regular expression decides at each step which tokens may come next.

llguidance compiles the grammar and computes the tokens; its package is imported on use.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib import import_module
from threading import Lock
from typing import Any

import numpy as np

from ..processing.plain_text import protect
from ..processing.tokenizer import Tokenizer

MAX_GRAMMAR_BYTES = 2**15  # of a schema as JSON, or of a regular expression; a larger one could take seconds to compile
_LEXER_FUEL = 2_000_000  # llguidance's own limit of work, double what its schemas of this size need
_CACHED_GRAMMARS = 128  # more than a server's queue has by default, so that the engine never compiles
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# The template ends with "ASSISTANT:", so an answer usually begins with a space, which the decoder removes.
_START = 'start: " "? answer\n'
# Between values only one space, so that a text cannot consist of white space without end.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

Schema = Mapping[str, Any] | bool


class GrammarError(ValueError):
    """A schema or regular expression is invalid, too large or not supported; the message says why."""


class Constraint:
    """Which tokens may come next in one sequence.

    Args:
        matcher: llguidance's, at the start of the grammar; used by this object only.
        known: number of tokens that llguidance knows; those of a padded vocabulary are never allowed.
        vocabulary_size: number of logits.
        eos_token_ids: of the model.
    """

    def __init__(self, matcher: Any, known: int, vocabulary_size: int, eos_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._eos = list(eos_token_ids)
        self._mask = np.zeros((1, -(-known // 32)), np.int32)
        self._known, self._size = min(known, vocabulary_size), vocabulary_size
        self._consumed = 0

    def allowed(self, new_ids: Sequence[int]) -> np.ndarray:
        """Return bool [V]: the tokens that may follow.

        Args:
            new_ids: the ids generated so far; those of the last call, and at most a few more.

        Raises:
            GrammarError: llguidance gave up, because the grammar takes too much work at this point.
        """
        from llguidance.numpy import fill_next_token_bitmask

        for token_id in new_ids[self._consumed :]:
            self._matcher.consume_token(int(token_id))
        self._consumed = len(new_ids)
        allowed = np.zeros(self._size, bool)
        if self._matcher.is_stopped():
            self._check()
            allowed[self._eos] = True
            return allowed
        fill_next_token_bitmask(self._matcher, self._mask, 0)
        self._check()
        bits = np.unpackbits(self._mask.view(np.uint8)[0], bitorder="little")
        allowed[: self._known] = bits[: self._known]
        if self._matcher.is_accepting():
            allowed[self._eos] = True
        return allowed

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar cannot be followed any further: {_first_line(self._matcher.get_error())}")


class GrammarCompiler:
    """Compiles schemas and regular expressions for one tokenizer; the last few are cached. May be used in any thread.

    Args:
        tokenizer: of the model.
        vocabulary_size: number of the model's logits.
        eos_token_ids: of the model.

    Example:
        >>> from mindone.models.share4v import Share4V
        >>> from mindone.models.share4v.generation.constraints import GrammarCompiler
        >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
        >>> compiler = GrammarCompiler(model.tokenizer, model.config.text_config.vocab_size, (2,))
        >>> constraint = compiler.constraint({"type": "boolean"}, None)
        >>> [model.tokenizer.token_of(token_id) for token_id in constraint.allowed([]).nonzero()[0]][:2]
        ['<0x20>', '<0x66>']
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._size = vocabulary_size
        self._eos = tuple(eos_token_ids)
        self._lock = Lock()
        self._vocabulary: Any = None
        self._matchers: OrderedDict[str, Any] = OrderedDict()

    def constraint(self, schema: Schema | None, regex: str | None) -> Constraint | None:
        """Return the constraint of a new sequence; None if neither a schema nor a regular expression is given.

        Raises:
            GrammarError: it is invalid, too large or not supported.
            ImportError: llguidance is not installed.
        """
        grammar = grammar_of(schema, regex)
        if grammar is None:
            return None
        with self._lock:
            matcher = self._matchers.get(grammar)
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer)
        if matcher is None:
            matcher = self._compile(grammar)  # takes up to seconds, without the lock
        with self._lock:
            self._matchers[grammar] = matcher
            self._matchers.move_to_end(grammar)
            while len(self._matchers) > _CACHED_GRAMMARS:
                self._matchers.popitem(last=False)
            return Constraint(matcher.deep_copy(), len(self._tokenizer), self._size, self._eos)

    def _compile(self, grammar: str) -> Any:
        llguidance = _llguidance()
        limits = llguidance.LLParserLimits(initial_lexer_fuel=_LEXER_FUEL)
        matcher = llguidance.LLMatcher(self._vocabulary, grammar, limits=limits, log_level=0)
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        return matcher


def grammar_of(schema: Schema | None, regex: str | None) -> str | None:
    """Return the grammar, in llguidance's format, of a schema or a regular expression; None without both.

    Raises:
        GrammarError: both are given, or the one that is given is of the wrong type or too large.
    """
    if schema is not None and regex is not None:
        raise GrammarError("give either a schema or a regex, not both")
    if schema is not None:
        if not isinstance(schema, (Mapping, bool)):
            raise GrammarError(f"a schema must be an object, got {schema!r:.60}")
        try:
            spaced = {**schema, "x-guidance": _SPACING} if isinstance(schema, Mapping) else schema
            text = json.dumps(spaced, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise GrammarError(f"the schema is no JSON: {error}") from error
        grammar = f"{_START}answer: %json {text}"
    elif regex is not None:
        if not isinstance(regex, str) or not regex:
            raise GrammarError(f"a regex must be a string of at least one character, got {regex!r:.60}")
        text = regex
        grammar = str(_llguidance().LLMatcher.grammar_from_regex(f" ?(?:{regex})"))
    else:
        return None
    if len(text.encode("utf-8", "replace")) > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"it has more than {MAX_GRAMMAR_BYTES:,} bytes: make it smaller")
    return grammar


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """Return llguidance's form of the vocabulary."""
    llguidance = _llguidance()
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(tokenizer)))


def _llguidance() -> Any:
    try:
        return import_module("llguidance")
    except ImportError as error:
        advice = "structured output needs llguidance: install it with pip install 'mindone-share4v[structured]'"
        raise ImportError(advice, name="llguidance") from error


class _Vocabulary:
    """The tokenizer as llguidance wants it: bytes of each token, and a call that encodes text within a run."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [_bytes_of(tokenizer.token_of(token_id)) for token_id in range(len(tokenizer))]

    def __call__(self, text: bytes | str) -> list[int]:
        decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        plain = protect(decoded, self._tokenizer.split_tokens)
        start = self._tokenizer.unk_token  # text after a special token gets no space in front
        return self._tokenizer.encode(start + plain, add_bos=False, is_protected=True)[1:]


def _bytes_of(token: str) -> bytes:
    found = _BYTE.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else token.replace("▁", " ").encode()


def _first_line(message: str) -> str:
    """Return the first line of llguidance's error, without the position in the grammar, which the caller never saw."""
    lines = message.strip().splitlines() or ["unknown error"]
    return re.sub(r"^at \d+\(\d+\): ", "", lines[0])[:300]
