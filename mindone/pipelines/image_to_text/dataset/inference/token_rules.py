"""Rules on token ids: forbidden words, and a forced beginning tokenized as in training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindone.models.share4v.processing.chat_templates import get_template
from mindone.models.share4v.processing.messages import IMAGE_TOKEN, Message

if TYPE_CHECKING:
    from mindone.models.share4v.processing.processor import Share4VProcessor
    from mindone.models.share4v.processing.tokenizer import Tokenizer

# A word of nine letters can be split into pieces in up to 256 ways. Of a longer word, only the splits with the fewest
# pieces are forbidden; models do not write the others, which consist of almost only single letters.
MAX_SPELLINGS = 256

Ids = tuple[int, ...]


class ForbiddenSequences:
    """Forbids the ids that would complete one of the given sequences.

    This is the rule of transformers' `NoBadWordsLogitsProcessor`: the last id of a sequence is forbidden if the ids so
    far end with the sequence's other ids.

    Args:
        sequences: forbidden sequences of at least one id each.

    Raises:
        ValueError: a sequence is empty.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.inference.token_rules import ForbiddenSequences
        >>> forbidden = ForbiddenSequences([(7,), (4, 5), (4, 6)])
        >>> sorted(forbidden([1, 4]))
        [5, 6, 7]
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        last: dict[Ids, set[int]] = defaultdict(set)
        for sequence in sequences:
            if not len(sequence):
                raise ValueError("a forbidden sequence is empty: remove it")
            last[tuple(map(int, sequence[:-1]))].add(int(sequence[-1]))
        self._last = {prefix: frozenset(ids) for prefix, ids in last.items()}
        self._lengths = sorted({len(prefix) for prefix in self._last})

    def __call__(self, token_ids: Sequence[int]) -> frozenset[int]:
        """Return the ids that must not follow `token_ids`."""
        return frozenset().union(*(ids for _, ids in self.completions(token_ids)))

    def completions(self, token_ids: Sequence[int]) -> Iterator[tuple[int, frozenset[int]]]:
        """Yield (length of the matched prefix, last ids) for each prefix of a sequence with which `token_ids` end."""
        count = len(token_ids)
        for length in self._lengths:
            if length > count:
                return
            found = self._last.get(tuple(token_ids[count - length :]))
            if found:
                yield length, found


@dataclass(frozen=True)
class Spellings:
    """The id sequences with which a vocabulary can write some words.

    Attributes:
        anywhere: sequences that begin with a separator (a space, a quote), or whose word needs no separator.
        at_word_start: sequences that write one of the words only if no letter or digit comes directly before.
    """

    anywhere: tuple[Ids, ...]
    at_word_start: tuple[Ids, ...]


class ForbiddenWords:
    """Forbids the ids that would complete one of the given words or phrases.

    A word given in lower case is forbidden in lower case, capitalised, and in capitals; any other word only as it is
    given. Every split of it into pieces is forbidden after a space, a quote or a line end, but not at the end of a
    longer word ("art" does not forbid "smart"). Because the piece that completes the word is never chosen, a longer
    word that begins with the same pieces cannot be written either ("cat" may forbid "catfish", but not "category",
    which has its own piece). Inflected forms ("cats") are separate words: list them as well.

    Args:
        tokenizer: of the model.
        words: words or phrases; the words of a phrase are separated by one space.

    Raises:
        ValueError: a word is empty, or the vocabulary cannot write it.

    Example:
        >>> from mindone.models.share4v import AutoProcessor
        >>> from mindone.pipelines.image_to_text.dataset.inference.token_rules import ForbiddenWords
        >>> tokenizer = AutoProcessor.from_pretrained("sharegpt4v-tiny").tokenizer
        >>> forbidden = ForbiddenWords(tokenizer, ["red"])
        >>> [tokenizer.token_of(one) for one in forbidden(tokenizer.encode("a large"))]
        ['▁red']
    """

    def __init__(self, tokenizer: Tokenizer, words: Iterable[str]) -> None:
        vocabulary = _Vocabulary(tokenizer)
        spellings = [vocabulary.spellings(form) for word in words for form in case_forms(word)]
        self.spellings = Spellings(
            tuple(dict.fromkeys(ids for one in spellings for ids in one.anywhere)),
            tuple(dict.fromkeys(ids for one in spellings for ids in one.at_word_start)),
        )
        self._anywhere = ForbiddenSequences(self.spellings.anywhere)
        self._at_word_start = ForbiddenSequences(self.spellings.at_word_start)
        self._inside_words = vocabulary.inside_words

    def __call__(self, token_ids: Sequence[int]) -> frozenset[int]:
        """Return the ids that must not follow the new ids so far."""
        forbidden = set(self._anywhere(token_ids))
        for length, ids in self._at_word_start.completions(token_ids):
            if length == len(token_ids) or token_ids[-length - 1] not in self._inside_words:
                forbidden |= ids
        return frozenset(forbidden)


def case_forms(word: str) -> tuple[str, ...]:
    """Return the upper and lower case forms in which a word is forbidden.

    Raises:
        ValueError: the word is empty.

    Example:
        >>> case_forms("stock photo")
        ('stock photo', 'Stock photo', 'Stock Photo', 'STOCK PHOTO')
        >>> case_forms("Apple")
        ('Apple',)
    """
    plain = " ".join(word.split())
    if not plain:
        raise ValueError("a forbidden word is empty: remove it")
    if plain != plain.lower():
        return (plain,)
    titled = " ".join(part[:1].upper() + part[1:] for part in plain.split())
    return tuple(dict.fromkeys((plain, plain[:1].upper() + plain[1:], titled, plain.upper())))


def forced_ids(processor: Share4VProcessor, beginning: str, conversation: str | None = None) -> Ids:
    """Return the ids of a forced beginning of the answer, to be appended to the prompt's ids as if generated.

    They are the ids of the same text in training, where it follows "ASSISTANT:" and a space: the piece "▁A", not "A".
    White space around the beginning is removed, because the next word brings its own space. The beginning should end
    after a complete word: half a word is split into other pieces, which the model has not learnt to continue.

    Args:
        processor: of the model.
        beginning: the text with which every answer begins; empty gives no ids.
        conversation: name of the template, by default the processor's.

    Raises:
        ValueError: the beginning contains `<image>` or another special token, or the vocabulary joins the end of the
            prompt and the start of the beginning into one piece, so that it cannot be appended.

    Example:
        >>> from mindone.models.share4v import AutoProcessor
        >>> from mindone.pipelines.image_to_text.dataset.inference.token_rules import forced_ids
        >>> processor = AutoProcessor.from_pretrained("sharegpt4v-tiny")
        >>> [processor.tokenizer.token_of(one) for one in forced_ids(processor, "On a black background,")]
        ['▁On', '▁a', '▁black', '▁background', ',']
    """
    text, tokenizer = beginning.strip(), processor.tokenizer
    if not text:
        return ()
    tokens = (IMAGE_TOKEN, *map(tokenizer.token_of, sorted(tokenizer.special_ids)))
    special = next((token for token in tokens if token in text), None)
    if special is not None:
        raise ValueError(
            f"the forced beginning {text!r:.60} contains {special}, which the model does not read as text: remove it"
        )
    template = get_template(processor.conversation if conversation is None else conversation)
    asked = [Message("user", f"{IMAGE_TOKEN}\n{template.question}")]
    prompt = template.render(asked)
    answered = template.render([*asked, Message("assistant", text)], add_generation_prompt=False)
    end = answered.index(text, len(prompt)) + len(text)
    before, whole = processor.encode_prompt(prompt), processor.encode_prompt(answered[:end])
    if whole[: len(before)] != before:
        raise ValueError(
            f"the vocabulary joins the end of the prompt with the forced beginning {text!r:.60}: choose another first "
            "word"
        )
    return tuple(whole[len(before) :])


class _Vocabulary:
    """The pieces of a tokenizer, indexed by the part of a word that they write."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # Keys: whether the piece has characters before the part, and after it. Values: part of a word -> ids.
        self._parts: dict[tuple[bool, bool], dict[str, list[int]]] = {
            (before, after): defaultdict(list) for before in (False, True) for after in (False, True)
        }
        self._bytes: dict[int, int] = {}
        inside = set()
        for token_id in range(tokenizer.vocab_size):
            if token_id in tokenizer.special_ids:
                continue
            surface = tokenizer.surface_of(token_id)
            if isinstance(surface, int):
                self._bytes[surface] = token_id
                continue
            self._add(surface, token_id)
            if _is_letter(surface[-1:]):
                inside.add(token_id)
        self.inside_words = frozenset(inside)

    def _add(self, surface: str, token_id: int) -> None:
        starts = [0, *(k for k in range(1, len(surface)) if not _is_letter(surface[k - 1]))]
        ends = [len(surface), *(k for k in range(1, len(surface)) if not _is_letter(surface[k]))]
        for start in starts:
            for end in ends:
                if start < end:
                    self._parts[start > 0, end < len(surface)][surface[start:end]].append(token_id)

    def spellings(self, word: str) -> Spellings:
        """Return the id sequences that write a word or phrase, those with the fewest pieces first.

        Raises:
            ValueError: the vocabulary cannot write it.
        """
        rests: list[list[Ids]] = [[] for _ in word] + [[()]]  # sequences that write word[start:], for each start
        for start in reversed(range(1, len(word))):
            rests[start] = self._sequences(word, start, rests, before=False)
        attached = self._sequences(word, 0, rests, before=False)
        separated = self._sequences(word, 0, rests, before=True)
        if not attached and not separated:
            raise ValueError(f"the vocabulary cannot write {word!r}, so it need not be forbidden: remove it")
        if not _is_letter(word[0]):  # such as "#1": the character before it does not matter
            return Spellings((*separated, *attached), ())
        return Spellings(tuple(separated), tuple(attached))

    def _sequences(self, word: str, start: int, rests: list[list[Ids]], before: bool) -> list[Ids]:
        found: list[Ids] = [(one,) for one in self._parts[before, True].get(word[start:], ())]
        for end in range(start + 1, len(word) + 1):
            heads: list[Ids] = [(one,) for one in self._parts[before, False].get(word[start:end], ())]
            if not heads and not before and end == start + 1:
                heads = self._as_bytes(word[start])
            found += [head + rest for head in heads for rest in rests[end]]
        return sorted(dict.fromkeys(found), key=len)[:MAX_SPELLINGS]

    def _as_bytes(self, character: str) -> list[Ids]:
        """Return the byte pieces of a character that has no piece of its own."""
        ids = [self._bytes.get(byte) for byte in character.encode()]
        known = tuple(one for one in ids if one is not None)
        return [known] if len(known) == len(ids) else []


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_"
