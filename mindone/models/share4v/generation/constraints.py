"""Structured output: a JSON schema or a regular expression decides at each step which tokens may come next.

llguidance compiles the grammar and computes the tokens; its package is imported on use. A text also ends in time: at
each step a sequence of tokens is known that completes it (`closing`), and a token after which it would not fit into the
remaining length is replaced by the first one of that sequence.
"""

from __future__ import annotations

import json
import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from threading import Lock
from typing import Any

import numpy as np

from ..processing.plain_text import protect
from ..processing.tokenizer import Tokenizer
from .grammar_ending import EndingFinder

MAX_GRAMMAR_BYTES = 2**15  # of a schema as JSON, or of a regular expression; a larger one could take seconds to compile
_LEXER_FUEL = 2_000_000  # llguidance's own limit of work, double what its schemas of this size need
# Limits of the search for endings, which asks llguidance for the allowed tokens: 30 us each, up to a few ms.
_MAX_SHORTEST = 4096  # tokens of a grammar's shortest text
_SEARCH_SECONDS = 5.0  # for it, once for each grammar
_MASKS, _MASKS_PER_TOKEN = 128, 4  # during generation: so many, and so many for each token that may still come
# CPU time of a grammar in the thread that generates, in which all other sequences wait: of one step, and of a text.
_STEP_SECONDS, _TEXT_SECONDS = 2.0, 10.0
_CACHED_GRAMMARS = 128  # more than a server's queue has by default, so that the engine never compiles
# The template ends with "ASSISTANT:", so an answer usually begins with a space, which the decoder removes.
_START = 'start: " "? answer\n'
# Between values only one space, so that a text cannot consist of white space without end.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_DATA = ("const", "enum", "default", "examples")  # keywords whose values are data, not schemas
# Keywords whose values are schemas by name; a name may be that of a keyword.
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")

Schema = Mapping[str, Any] | bool


class GrammarError(ValueError):
    """A schema or regular expression is invalid, too large or not supported; the message says why."""


class Constraint:
    """Which tokens may come next in one sequence, and which ones end it.

    Args:
        grammar: what the text must match.
        finder: finds endings.
        vocabulary_size: number of logits; tokens of a padded vocabulary are never allowed.
        eos_token_ids: of the model; the first one ends a text.

    Attributes:
        ending: ids that complete the text so far.
        is_cut: whether a token was replaced, because the text would not have been complete in time.
    """

    def __init__(
        self, grammar: Grammar, finder: EndingFinder, vocabulary_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._matcher = grammar.matcher.deep_copy()
        self._finder = finder
        self._grammar = grammar
        self._eos = list(eos_token_ids)
        self._mask = np.zeros((1, -(-finder.size // 32)), np.int32)
        self._known, self._size = min(finder.size, vocabulary_size), vocabulary_size
        self._consumed = 0
        self._seconds = 0.0  # of CPU time so far
        self.ending = grammar.shortest
        self.is_cut = False

    def allowed(self, new_ids: Sequence[int]) -> np.ndarray:
        """Return bool [V]: the tokens that may follow.

        Args:
            new_ids: the ids generated so far; those of the last call, and at most a few more.

        Raises:
            GrammarError: llguidance gave up, because the grammar takes too much work at this point; or it took too much
                time.
        """
        from llguidance.numpy import fill_next_token_bitmask

        started = time.thread_time()
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
        self._count_time(started)
        bits = np.unpackbits(self._mask.view(np.uint8)[0], bitorder="little")
        allowed[: self._known] = bits[: self._known]
        if self._matcher.is_accepting():
            allowed[self._eos] = True
        return allowed

    def take(self, token_id: int | None, capacity: int) -> int:
        """Return the next token: `token_id`, or one that ends the text if it would not be complete in time otherwise.

        Args:
            token_id: an allowed one; None if none is left to choose.
            capacity: number of tokens that may still come, this one included; the ending must fit into it.

        Raises:
            GrammarError: the search for an ending took too much time.
        """
        if token_id in self._eos:
            return int(token_id)  # type: ignore[arg-type]
        if token_id is not None and self._matcher.consume_token(int(token_id)):
            ending = self._ending_after(int(token_id), capacity - 1)
            if ending is not None:
                self.ending = ending
                self._consumed += 1
                return int(token_id)
            self._matcher.rollback(1)
        self.is_cut = self.is_cut or token_id is not None
        if not self.ending:
            return self._eos[0]
        token_id, self.ending = self.ending[0], self.ending[1:]
        self._matcher.consume_token(token_id)
        self._consumed += 1
        return token_id

    @property
    def is_complete(self) -> bool:
        """Whether only the end-of-text token can follow."""
        return bool(self._matcher.is_stopped() and not self._matcher.is_error())

    def _ending_after(self, token_id: int, capacity: int) -> tuple[int, ...] | None:
        """Return an ending of the text with its new token, of at most `capacity` tokens; None if none was found."""
        if self.ending[:1] == (token_id,):
            return self.ending[1:]
        known = [*self.ending, self._grammar.end_token_id]
        if len(self.ending) <= capacity and self._matcher.validate_tokens(known) == len(known):
            return self.ending
        masks, started = _MASKS + _MASKS_PER_TOKEN * capacity, time.thread_time()
        ending = self._finder.find(self._matcher, self._grammar.is_json, capacity, masks, _STEP_SECONDS)
        self._count_time(started)
        return ending

    def _count_time(self, started: float) -> None:
        """Add the CPU time since `started`; a result that depended on a limit of time is never used.

        Raises:
            GrammarError: it is too much.
        """
        seconds = time.thread_time() - started
        self._seconds += seconds
        if seconds >= _STEP_SECONDS or self._seconds >= _TEXT_SECONDS:
            raise GrammarError(
                f"following it took {self._seconds:.1f} s of CPU time, while other texts wait: make it simpler, with "
                "fewer alternatives and repetitions"
            )

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar cannot be followed any further: {_first_line(self._matcher.get_error())}")


@dataclass(frozen=True)
class Grammar:
    """A compiled schema or regular expression.

    Attributes:
        matcher: llguidance's, at its start.
        is_json: whether texts are JSON.
        shortest: ids of the shortest text that was found.
        end_token_id: the end-of-text token that `matcher` knows.
    """

    matcher: Any
    is_json: bool
    shortest: tuple[int, ...]
    end_token_id: int


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
        self._finder: EndingFinder | None = None
        self._grammars: OrderedDict[str, Grammar] = OrderedDict()

    def constraint(self, schema: Schema | None, regex: str | None) -> Constraint | None:
        """Return the constraint of a new sequence; None if neither a schema nor a regular expression is given.

        Raises:
            GrammarError: it is invalid, too large or not supported.
            ImportError: llguidance is not installed.
        """
        text = grammar_of(schema, regex)
        if text is None:
            return None
        with self._lock:
            grammar = self._grammars.get(text)
            if self._finder is None:
                self._vocabulary, tokens = _vocabulary(self._tokenizer)
                self._finder = EndingFinder(tokens, self._vocabulary)
            finder = self._finder
        if grammar is None:
            grammar = self._compile(text, schema is not None, finder)  # takes up to seconds, without the lock
        with self._lock:
            self._grammars[text] = grammar
            self._grammars.move_to_end(text)
            while len(self._grammars) > _CACHED_GRAMMARS:
                self._grammars.popitem(last=False)
            return Constraint(grammar, finder, self._size, self._eos)

    def has(self, text: str) -> bool:
        """Return whether a grammar (`grammar_of`) is compiled."""
        with self._lock:
            return text in self._grammars

    def _compile(self, text: str, is_json: bool, finder: EndingFinder) -> Grammar:
        llguidance = _llguidance()
        limits = llguidance.LLParserLimits(initial_lexer_fuel=_LEXER_FUEL)
        matcher = llguidance.LLMatcher(self._vocabulary, text, limits=limits, log_level=0)
        shortest = None if matcher.is_error() else finder.find(matcher, is_json, _MAX_SHORTEST, 10**6, _SEARCH_SECONDS)
        if matcher.is_error():
            kind = "schema" if is_json else "regular expression"
            raise GrammarError(f"the {kind} cannot be compiled: {_first_line(matcher.get_error())}")
        if shortest is None:
            raise GrammarError(
                f"no text of at most {_MAX_SHORTEST} tokens that matches it was found: allow shorter ones"
            )
        return Grammar(matcher, is_json, shortest, self._tokenizer.eos_token_id)


def check_grammar(schema: Schema) -> None:
    """Check a schema without a tokenizer; what depends on it is only known to `GrammarCompiler`.

    Raises:
        GrammarError: it is invalid, too large or not supported.
        ImportError: llguidance is not installed.
    """
    llguidance = _llguidance()
    limits = llguidance.LLParserLimits(initial_lexer_fuel=_LEXER_FUEL)
    is_error, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar_of(schema, None), limits=limits)
    if is_error:
        raise GrammarError(f"schema: {_first_line(messages[0])}")


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
            _check_counts(schema)
            spaced = {**schema, "x-guidance": _SPACING} if isinstance(schema, Mapping) else schema
            text = json.dumps(spaced, allow_nan=False)
        except GrammarError:
            raise
        except (TypeError, ValueError, RecursionError) as error:
            raise GrammarError(f"the schema is no JSON: {error}") from error
        grammar = f"{_START}answer: %json {text}"
    elif regex is not None:
        if not isinstance(regex, str) or not regex:
            raise GrammarError(f"a regex must be a string of at least one character, got {regex!r:.60}")
        try:
            regex.encode()
        except UnicodeEncodeError as error:
            raise GrammarError(f"a regex must be Unicode text, got half of a surrogate pair: {error}") from error
        text = regex
        grammar = str(_llguidance().LLMatcher.grammar_from_regex(f" ?(?:{regex})"))
    else:
        return None
    if len(text.encode("utf-8", "replace")) > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"it has more than {MAX_GRAMMAR_BYTES:,} bytes: make it smaller")
    return grammar


def _check_counts(schema: Any) -> None:
    """Refuse the keywords that llguidance accepts and an answer could still break: keys may occur twice in an object.

    Raises:
        GrammarError: an object may have any keys, and must have two or more.
    """
    if isinstance(schema, Mapping):
        is_closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
        least = schema.get("minProperties")
        if isinstance(least, (int, float)) and least > 1 and not is_closed:
            raise GrammarError("minProperties above 1 needs additionalProperties: false, and no patternProperties")
        for key, value in schema.items():
            if key in _BY_NAME and isinstance(value, Mapping):
                _check_counts(list(value.values()))
            elif key not in _DATA:
                _check_counts(value)
    elif isinstance(schema, list):
        for value in schema:
            _check_counts(value)


def _vocabulary(tokenizer: Tokenizer) -> tuple[Any, list[bytes]]:
    """Return llguidance's form of the vocabulary, and the bytes of each token, none for special ones."""
    llguidance = _llguidance()
    vocabulary = _Vocabulary(tokenizer)
    special = set(vocabulary.special_token_ids)
    tokens = [b"" if token_id in special else data for token_id, data in enumerate(vocabulary.tokens)]
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary)), tokens


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
        self.tokens = [tokenizer.bytes_of(token_id) for token_id in range(len(tokenizer))]

    def __call__(self, text: bytes | str) -> list[int]:
        decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        plain = protect(decoded, self._tokenizer.split_tokens)
        start = self._tokenizer.unk_token  # text after a special token gets no space in front
        return self._tokenizer.encode(start + plain, add_bos=False, is_protected=True)[1:]


def _first_line(message: str) -> str:
    """Return the first line of llguidance's error, without the position in the grammar, which the caller never saw."""
    lines = message.strip().splitlines() or ["unknown error"]
    if lines[0] == "NoExtensionBias":  # llguidance's name of a grammar in which no token can come next
        return "no text can match it"
    return re.sub(r"^at \d+\(\d+\): ", "", lines[0])[:300]
