"""ByteLevelTokenizer: byte-level BPE (GPT-2's, LLaMA 3's, SmolLM2's), from a GGUF file's metadata or a tokenizer.json.

The library `tokenizers` splits and merges; tokens that were added, the start token and decoding are here.
"""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from operator import index
from pathlib import Path
from typing import Any

from ..configuration_schema import shown
from .incremental_decoding import IncrementalDecoder
from .tokenizer import Tokenizer
from .tokenizer_files import CONFIG_NAME, check_flags, read_arguments

logger = logging.getLogger(__name__)
FILE_NAME = "tokenizer.json"
# What a token's text is in ggml's types: CONTROL is special, USER_DEFINED is found in texts as it is written.
_CONTROL, _USER_DEFINED = 3, 4
_MAX_JSON_BYTES = 64 * 2**20
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """How texts are split before pairs are merged.

    Attributes:
        patterns: regular expressions, each applied to the pieces that the one before left.
        ignores_merges: a piece that is a token becomes it, whether merges lead there or not.
        adds_bos: whether a text starts with the start token if the file does not say it.
    """

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False


_BY_DIGIT = PreTokenizer((r"\p{N}", _GPT_2))
_OF_GPT_2 = PreTokenizer((_GPT_2,))
_OF_LLAMA_3 = PreTokenizer((_LLAMA_3.replace("{DIGITS}", "{1,3}"),), ignores_merges=True, adds_bos=True)
_OF_QWEN_2 = PreTokenizer((_LLAMA_3.replace("{DIGITS}", ""),))
# tokenizer.ggml.pre -> what llama.cpp does for it.
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), _OF_GPT_2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _BY_DIGIT),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _OF_LLAMA_3),
    **dict.fromkeys(("qwen2", "stablelm2"), _OF_QWEN_2),
}


class ByteLevelPieces:
    """A byte-level BPE vocabulary, with the methods of sentencepiece's processor that `Tokenizer` uses.

    Args:
        model: a tokenizer of the library `tokenizers`, without added tokens.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        ids = model.get_vocab(with_added_tokens=False)
        self._texts = {token_id: text for text, token_id in ids.items()}
        self._ids = ids
        self._size = max(self._texts, default=-1) + 1
        self._missing = bytes(byte for byte, character in characters().items() if character not in ids)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; bytes that no token writes are left out, as in the library, and are reported."""
        data = text.encode()
        if self._missing and len(data.translate(None, self._missing)) != len(data):
            _report_missing(tuple(byte for byte in self._missing if byte in data))
        ids: list[int] = self.model.encode(text, add_special_tokens=False).ids
        return ids

    def get_piece_size(self) -> int:
        """Return the number of ids."""
        return self._size

    def id_to_piece(self, token_id: int) -> str:
        """Return the text of an id as it is in the vocabulary; empty for one that has none."""
        return self._texts.get(token_id, "")

    def piece_to_id(self, text: str) -> int:
        """Return the id of a text, 0 if there is none, as sentencepiece does."""
        return int(self._ids.get(text, 0))


@cache
def _report_missing(missing: tuple[int, ...]) -> None:
    logger.warning(
        "the vocabulary has no token for the bytes %s, so they are left out of the prompt, as when it was trained",
        ", ".join(f"0x{byte:02x}" for byte in missing),
    )


@cache
def characters() -> dict[int, str]:
    """Return the character that stands for each byte in a byte-level vocabulary (Radford et al. 2019).

    Example:
        >>> from mindone.models.share4v.processing.byte_level import characters
        >>> characters()[ord("a")], characters()[ord(" ")]
        ('a', 'Ġ')
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + number) for number, byte in enumerate(others)}}


class ByteLevelTokenizer(Tokenizer):
    """A byte-level BPE tokenizer; make it with `from_gguf` or `from_file`, or with `Tokenizer.from_pretrained`.

    Args:
        pieces: the vocabulary.
        adds_bos: whether `encode` starts with the bos id.
        arguments: those of `Tokenizer`. A vocabulary without an unknown token takes the text of eos for it.

    Example:
        >>> from mindone.models.share4v.processing.tokenizer import Tokenizer
        >>> tokenizer = Tokenizer.from_pretrained("SmolLM2-135M-Instruct.Q4_1.gguf")  # doctest: +SKIP
        >>> tokenizer.tokenize("a red circle")  # doctest: +SKIP
        ['a', 'Ġred', 'Ġcircle']
    """

    def __init__(self, pieces: ByteLevelPieces, adds_bos: bool, **arguments: Any) -> None:
        super().__init__(pieces, **arguments)
        self.adds_bos = adds_bos

    @property
    def model(self) -> bytes:
        """Refused: there is no sentencepiece model.

        Raises:
            ValueError: always.
        """
        raise ValueError("a byte-level tokenizer has no sentencepiece model, which writing GGUF files needs")

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> ByteLevelTokenizer:
        """Rebuild the tokenizer of a GGUF language model.

        Raises:
            ValueError: the vocabulary is missing or malformed, or its pre-tokenizer is not known here.
        """
        pre = metadata.get("tokenizer.ggml.pre")
        if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
            raise ValueError(
                f"the GGUF file's tokenizer.ggml.pre, which says how texts are split, is {shown(pre)}: known are "
                f"{', '.join(PRE_TOKENIZERS)}"
            )
        tokens, merges, types = (metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges", "token_type"))
        if not isinstance(tokens, list) or not isinstance(merges, list) or types is None or len(types) != len(tokens):
            raise ValueError(
                "the GGUF file has no complete vocabulary: expected tokenizer.ggml.tokens, merges, and token_type for "
                "each token"
            )
        rules = PRE_TOKENIZERS[pre]
        pieces = ByteLevelPieces(_built(tokens, merges, rules))
        roles = {
            role: tokens[_id(metadata, key, tokens)]
            for role, key in _ROLES.items()
            if f"tokenizer.ggml.{key}_token_id" in metadata
        }
        if "eos_token" not in roles:
            raise ValueError("the GGUF file states no tokenizer.ggml.eos_token_id, so an answer would not end")
        added = {token: number for number, token in enumerate(tokens) if types[number] in (_CONTROL, _USER_DEFINED)}
        special = [token for token, number in added.items() if types[number] == _CONTROL]
        adds_bos = metadata.get("tokenizer.ggml.add_bos_token", rules.adds_bos)
        return cls(pieces, adds_bos is True, **_with_defaults(roles), added_tokens=added, special_tokens=special)

    @classmethod
    def is_in(cls, directory: Path) -> bool:
        """Return whether a directory has a tokenizer.json of this kind."""
        return _content(directory) is not None

    @classmethod
    def from_file(cls, directory: Path) -> ByteLevelTokenizer:
        """Read tokenizer.json, and the roles of tokens from tokenizer_config.json.

        Raises:
            ValueError: it is damaged, or no byte-level BPE.
        """
        path, content = directory / FILE_NAME, _content(directory)
        if content is None:
            raise ValueError(f"{path} is no byte-level BPE of the library tokenizers, or damaged")
        arguments = read_arguments(directory)
        if "eos_token" not in arguments:
            raise ValueError(f"{directory / CONFIG_NAME} names no eos_token, so an answer would not end")
        added = content.get("added_tokens") or []
        for one in added:
            check_flags(one, path)
        tokens = {**{one["content"]: one["id"] for one in added}, **arguments.pop("added_tokens")}
        special = {one["content"] for one in added if one.get("special")} | {*arguments.pop("special_tokens")}
        # Added tokens are found by `encode`, which knows which of them are plain text.
        model = _parsed(json.dumps({**content, "added_tokens": [], "post_processor": None}), str(path))
        return cls(
            ByteLevelPieces(model),
            _starts_with_token(content),
            **_with_defaults(arguments),
            added_tokens=tokens,
            special_tokens=special,
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' fast tokenizer can also read."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        content = json.loads(self._pieces.model.to_str())
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        texts = {**self.added_tokens, **{text: self._named_id(text, "token") for text in self._own_tokens}}
        content["added_tokens"] = [
            {"id": token_id, "content": text, **flags, "special": token_id in self.special_ids}
            for text, token_id in sorted(texts.items(), key=lambda item: item[1])
        ]
        if self.adds_bos:
            bos = {"SpecialToken": {"id": self.bos_token, "type_id": 0}}
            content["post_processor"] = {
                "type": "TemplateProcessing",
                "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {
                    self.bos_token: {"id": self.bos_token, "ids": [self.bos_token_id], "tokens": [self.bos_token]}
                },
            }
        stated = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "unk_token": self.unk_token,
            "pad_token": self.pad_token,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        for name, value in ((FILE_NAME, content), (CONFIG_NAME, stated)):
            (directory / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def decoder(self, skip_special_tokens: bool = True) -> IncrementalDecoder:
        """Return a decoder that takes ids one by one."""
        return ByteDecoder(self, skip_special_tokens)

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes that a token writes."""
        text = self.token_of(token_id)
        if token_id in self.special_ids or token_id in self._added_texts:
            return text.encode()
        table = self._bytes
        return b"".join(table.get(character, character.encode()) for character in text)

    def surface_of(self, token_id: int) -> str | int:
        """Return the text that a token writes, or one byte; empty if it is several bytes that are no character."""
        data = self.bytes_of(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data[0] if len(data) == 1 else ""

    def _parts(self, text: str) -> list[str]:
        return self._splitter.split(text)

    def _encode_run(self, text: str) -> list[int]:
        return list(self._pieces.encode(text))

    @cached_property
    def _bytes(self) -> dict[str, bytes]:
        return {character: bytes([byte]) for byte, character in characters().items()}


class ByteDecoder(IncrementalDecoder):
    """Decodes ids one by one, in whole characters; bytes that are no UTF-8 become U+FFFD, as in the library."""

    def __init__(self, tokenizer: ByteLevelTokenizer, skip_special_tokens: bool = True) -> None:
        super().__init__(tokenizer, skip_special_tokens)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Decode the next id; return the text that is now certain.

        Raises:
            ValueError: the id is not a token.
        """
        try:
            token_id = index(token_id)
        except TypeError:
            raise ValueError(f"an id must be an integer, got {token_id!r:.80}; decode one list at a time") from None
        if self._skip and token_id in self._tokenizer.special_ids:
            return ""
        return self._decoder.decode(self._tokenizer.bytes_of(token_id))

    def finish(self) -> str:
        """Return the rest of the text; an incomplete character becomes U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def _built(tokens: Sequence[str], merges: Sequence[str], rules: PreTokenizer) -> Any:
    """Return a tokenizer of the library from a vocabulary."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges if isinstance(merge, str)]
    if len(vocabulary) != len(tokens) or len(pairs) != len(merges) or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            "the GGUF file's vocabulary is damaged: expected different tokens, and merges of two tokens each"
        )
    try:
        model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=rules.ignores_merges)
    except Exception as error:  # the library raises plain exceptions
        raise ValueError(f"the GGUF file's tokenizer.ggml.merges do not fit its tokens: {error}") from None
    made = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.patterns]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def _parsed(content: str, name: str) -> Any:
    from tokenizers import Tokenizer as Library

    try:
        return Library.from_str(content)
    except Exception as error:  # the library raises plain exceptions
        raise ValueError(f"{name} is damaged: {error}") from None


def _content(directory: Path) -> dict[str, Any] | None:
    """Return a tokenizer.json that is a byte-level BPE without a normalizer; None if there is none."""
    path = directory / FILE_NAME
    if not path.is_file() or path.stat().st_size > _MAX_JSON_BYTES:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        is_bpe = content["model"]["type"] == "BPE" and not content.get("normalizer")
        is_ours = is_bpe and "ByteLevel" in json.dumps(content["pre_tokenizer"])
        added = content.get("added_tokens") or []
        is_ours = is_ours and all(isinstance(one["content"], str) and type(one["id"]) is int for one in added)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return content if is_ours else None


def _starts_with_token(content: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer.json puts a special token in front of a text."""
    processor = content.get("post_processor") or {}
    steps = [processor, *(processor.get("processors") or [])]
    return any((step.get("single") or [{}])[0].get("SpecialToken") for step in steps)


def _with_defaults(roles: Mapping[str, Any]) -> dict[str, Any]:
    """Return the roles of tokens; a vocabulary may have no start and no unknown token."""
    return {"bos_token": roles["eos_token"], "unk_token": roles["eos_token"], **roles}


def _id(metadata: Mapping[str, Any], name: str, tokens: Sequence[str]) -> int:
    value = metadata[f"tokenizer.ggml.{name}_token_id"]
    if type(value) is not int or not 0 <= value < len(tokens):
        raise ValueError(
            f"tokenizer.ggml.{name}_token_id is {shown(value)}, expected a number from 0 to {len(tokens) - 1}"
        )
    return value
