"""Tokenizer: Vicuna's tokenization rules over a sentencepiece vocabulary, and an incremental decoder."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..configuration_schema import shown
from ..home_directory import expand_home
from ..registry import TOKENIZERS
from .arrays import NamedArrays, check_tensor_type
from .files import find_directory
from .gguf_vocabulary import BYTE_LEVEL, tokenizer_arguments
from .incremental_decoding import IncrementalDecoder
from .plain_text import unprotect
from .tokenizer_files import CONFIG_NAME, read_arguments

if TYPE_CHECKING:
    from .byte_level import ByteLevelPieces

VOCABULARY_NAME = "tokenizer.model"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how sentencepiece writes a byte
_SPACE = "▁"  # how sentencepiece writes a space
# Protobuf merges repeated occurrences of a message field, so appending these bytes to the model (field 3,
# normalizer_spec, containing field 3, add_dummy_prefix, 0) turns the dummy prefix off without a protobuf library.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class Tokenizer:
    """LLaMA's slow tokenizer as Vicuna uses it: transformers' `LlamaTokenizer(legacy=False, add_bos_token=True)`.

    Only the start of a text gets the space that sentencepiece puts before words; text after a special or added token
    does not. Checkpoints that state `legacy: true` are read in the same way, which is how ShareGPT4V was trained.

    Args:
        model: path of a sentencepiece model, or its bytes; the vocabulary of a `ByteLevelTokenizer`.
        added_tokens: text -> id of tokens that are not in the model, such as `{"<image>": 32000, "<pad>": 32001}`.
        special_tokens: the added tokens that `decode` skips; None for all of them.
        bos_token, eos_token, unk_token, pad_token: texts of pieces or added tokens. LLaMA has no pad token, so a
            pad_token that is not in the vocabulary is ignored; the other tokens must exist.

    Raises:
        FileNotFoundError: the model file does not exist.
        ValueError: the file is not a sentencepiece model, the model normalizes white space, or a token is missing.

    Example:
        >>> from mindone.models.share4v import Tokenizer, resolve
        >>> tokenizer = Tokenizer.from_pretrained(resolve("sharegpt4v-tiny"))
        >>> tokenizer.decode(tokenizer.encode("a red circle"))
        'a red circle'
    """

    def __init__(
        self,
        model: str | Path | bytes | ByteLevelPieces,
        added_tokens: Mapping[str, int] | None = None,
        *,
        special_tokens: Collection[str] | None = None,
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        unk_token: str = "<unk>",
        pad_token: str | None = None,
    ) -> None:
        self._model, self._pieces = _load_model(model)
        _check_added_tokens(added_tokens or {})
        self.adds_bos = True
        own = {bos_token, eos_token, unk_token}  # tokenizer_config.json lists these too, but they are in the model
        self.added_tokens = {
            text: token_id
            for text, token_id in (added_tokens or {}).items()
            if not (text in own and self._is_piece(text))
        }
        self._added_texts = {token_id: text for text, token_id in self.added_tokens.items()}
        self.bos_token, self.eos_token, self.unk_token = bos_token, eos_token, unk_token
        self.bos_token_id = self._named_id(bos_token, "bos_token")
        self.eos_token_id = self._named_id(eos_token, "eos_token")
        self.unk_token_id = self._named_id(unk_token, "unk_token")
        self.pad_token_id = None if pad_token is None else self._id_of(pad_token)
        self.pad_token = pad_token if self.pad_token_id is not None else None
        named = own | ({self.pad_token} if self.pad_token is not None else set())
        listed = self.added_tokens if special_tokens is None else special_tokens
        self._own_tokens = named
        self._special = [text for text in self.added_tokens if text in listed]  # in order, for save_pretrained
        self.special_ids = frozenset(self._named_id(text, "token") for text in {*named, *self._special})
        # `decode` writes these within a run; the other added tokens separate runs.
        self._inline_ids = frozenset(
            token_id
            for token_id in self.special_ids
            if token_id < self.vocab_size or self._added_texts.get(token_id) in named
        )
        self._unsplit = tuple(sorted({*self.added_tokens, *named}, key=len, reverse=True))  # the longest match wins
        self._splitter = re.compile("(" + "|".join(map(re.escape, self._unsplit)) + ")")
        self._guard = len(self._pieces.encode(unk_token))

    @property
    def model(self) -> bytes:
        """The sentencepiece model, as its file has it."""
        return self._model

    @property
    def vocab_size(self) -> int:
        """Number of pieces in the sentencepiece model, without added tokens."""
        return int(self._pieces.get_piece_size())

    def __len__(self) -> int:
        return self.vocab_size + sum(not self._is_piece(text) for text in self.added_tokens)

    @property
    def split_tokens(self) -> tuple[str, ...]:
        """The tokens that `encode` finds in a text, whatever surrounds them; the longest first."""
        return self._unsplit

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, added_tokens={self.added_tokens!r})"

    def __call__(
        self,
        text: str | Sequence[str],
        add_special_tokens: bool = True,
        padding: bool | str = False,
        return_tensors: str | None = None,
    ) -> NamedArrays:
        """Turn a text or a list of texts into ids, as transformers' tokenizers do.

        Args:
            text: one text, or a list.
            add_special_tokens: start each text with the bos id.
            padding: True or "longest" pads all texts on the left to the longest.
            return_tensors: None for lists, "np", "ms" or "pt" for arrays [B, T], also of one text.

        Returns:
            input_ids and attention_mask.

        Raises:
            ValueError: a text is not a string, rows differ in length, or an argument has an unknown value.

        Example:
            >>> from mindone.models.share4v import Tokenizer
            >>> tokenizer = Tokenizer.from_pretrained("sharegpt4v-tiny")
            >>> tokenizer(["a red", "a"], padding=True).attention_mask
            [[1, 1, 1], [0, 1, 1]]
        """
        if padding not in (True, False, "longest", "do_not_pad"):
            raise ValueError(f"padding must be True ('longest') or False, got {padding!r}: texts have no fixed length")
        check_tensor_type(return_tensors)
        rows = [self.encode(one, add_special_tokens) for one in ([text] if isinstance(text, str) else text)]
        longest = max(map(len, rows), default=0) if padding in (True, "longest") else 0
        fill = self.eos_token_id if self.pad_token_id is None else self.pad_token_id
        missing = [max(0, longest - len(row)) for row in rows]
        ids = [[fill] * count + row for count, row in zip(missing, rows, strict=True)]
        mask = [[0] * count + [1] * len(row) for count, row in zip(missing, rows, strict=True)]
        if isinstance(text, str) and return_tensors is None:
            return NamedArrays(input_ids=ids[0], attention_mask=mask[0])
        return NamedArrays(input_ids=ids, attention_mask=mask).as_tensors(return_tensors)

    def encode(
        self, text: str, add_bos: bool = True, is_protected: bool = False, add_special_tokens: bool = True
    ) -> list[int]:
        """Turn text into ids, starting with the bos id. Special and added tokens in the text become their ids.

        Args:
            text: what to encode.
            add_bos: start with the bos id; add_special_tokens, transformers' name, means the same.
            is_protected: the text contains the marks of `plain_text.protect`, which are removed.
            add_special_tokens: see add_bos.

        Raises:
            ValueError: the text is not a string, or contains an unpaired surrogate, which UTF-8 cannot encode.
        """
        if not isinstance(text, str):
            raise ValueError(f"encode expects a string, got a {type(text).__name__}: {text!r:.80}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text contains an unpaired surrogate {text[error.start]!r} at index {error.start}, which UTF-8 "
                "cannot encode: read the text with the right encoding"
            ) from error
        ids = [self.bos_token_id] if add_bos and add_special_tokens and self.adds_bos else []
        if not text:
            return ids
        for position, part in enumerate(self._parts(text)):
            if position % 2:
                ids.append(self._named_id(part, "token"))
            elif part:
                ids += self._encode_run(unprotect(part) if is_protected else part)
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Turn ids into text. Each byte that is not valid UTF-8 becomes U+FFFD.

        Raises:
            ValueError: an id is not a token, such as the placeholder -200.
        """
        decoder = self.decoder(skip_special_tokens)
        return "".join([decoder.push(token_id) for token_id in ids]) + decoder.finish()

    def decoder(self, skip_special_tokens: bool = True) -> IncrementalDecoder:
        """Return a decoder that takes ids one by one; see `decode`."""
        return IncrementalDecoder(self, skip_special_tokens)

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes that a token writes within a text; of a control token, those of its name.

        Raises:
            ValueError: the id is not a token.
        """
        token = self.token_of(token_id)
        found = _BYTE.fullmatch(token)
        return bytes([int(found[1], 16)]) if found else token.replace(_SPACE, " ").encode()

    def surface_of(self, token_id: int) -> str | int:
        """Return the text that a token writes within a text, or one byte as a number.

        Raises:
            ValueError: the id is not a token.

        Example:
            >>> from mindone.models.share4v import Tokenizer
            >>> tokenizer = Tokenizer.from_pretrained("sharegpt4v-tiny")
            >>> [tokenizer.surface_of(one) for one in tokenizer.encode("a red", add_bos=False)]
            [' a', ' red']
        """
        token = self.token_of(token_id)
        found = _BYTE.fullmatch(token)
        return int(found[1], 16) if found else token.replace(_SPACE, " ")

    def batch_decode(self, ids: Iterable[Iterable[int]], skip_special_tokens: bool = True) -> list[str]:
        """Turn several lists of ids into texts; see `decode`."""
        return [self.decode(one, skip_special_tokens) for one in ids]

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, as they are written in the vocabulary, without bos."""
        return [self.token_of(one) for one in self.encode(text, add_bos=False)]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """Return the id of a token, or a list of ids; as in transformers, the id of an unknown text is unk_token_id."""
        if isinstance(tokens, str):
            token_id = self._id_of(tokens)
            return self.unk_token_id if token_id is None else token_id
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def token_of(self, token_id: int) -> str:
        """Return the token of an id, as it is written in the vocabulary.

        Raises:
            ValueError: the id is not a token.
        """
        if token_id in self._added_texts:
            return self._added_texts[token_id]
        if not 0 <= token_id < self.vocab_size:
            known = f"0 to {self.vocab_size - 1}" + (f" and {sorted(self._added_texts)}" if self._added_texts else "")
            raise ValueError(
                f"id {token_id} is not a token: the vocabulary has {known}. Negative ids are placeholders (-200 for an "
                "image, -100 for an ignored label); decode only the generated ids"
            )
        return str(self._pieces.id_to_piece(token_id))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> Tokenizer:
        """Read a checkpoint's tokenizer.model, and its added tokens if it has any.

        Added tokens are read from tokenizer_config.json (`added_tokens_decoder`), and from added_tokens.json with
        special_tokens_map.json.

        Args:
            name_or_path: a directory, a known name such as "sharegpt4v-tiny", owner/name on a hub, or a GGUF file.
            options: the fields of `CheckpointOptions`.

        Raises:
            FileNotFoundError, HubError: there is no tokenizer.model, or the checkpoint was not found.
            ValueError: a file is damaged.
        """
        from ..checkpoint.gguf.pair import is_gguf_source, tokenizer_metadata

        directory = expand_home(name_or_path)
        if not is_gguf_source(directory):
            directory = find_directory(name_or_path, options)
        if is_gguf_source(directory):
            return cls.from_gguf(tokenizer_metadata(directory))
        path = directory / VOCABULARY_NAME
        if not path.is_file():
            byte_level = TOKENIZERS.resolve(BYTE_LEVEL)
            if byte_level.is_in(directory):
                read: Tokenizer = byte_level.from_file(directory)
                return read
            fast = " (tokenizer.json, the fast tokenizer's file, does not contain it)"
            found = fast if (directory / "tokenizer.json").is_file() else ""
            raise FileNotFoundError(
                f"no {VOCABULARY_NAME} in {directory}{found}: copy the sentencepiece model of this name from the "
                "original checkpoint; it is the same in all Vicuna and LLaMA checkpoints"
            )
        return cls(path, **read_arguments(directory))

    @staticmethod
    def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
        """Rebuild the tokenizer of a GGUF language model from its metadata.

        Raises:
            ValueError: the vocabulary is missing, malformed, or of a kind that is not known here.
        """
        if metadata.get("tokenizer.ggml.model") == BYTE_LEVEL:
            rebuilt: Tokenizer = TOKENIZERS.resolve(BYTE_LEVEL).from_gguf(metadata)
            return rebuilt
        return Tokenizer(**tokenizer_arguments(metadata))

    def save_pretrained(self, directory: str | Path) -> None:
        """Write tokenizer.model and tokenizer_config.json, which transformers' LlamaTokenizer can also read."""
        added = {self._named_id(text, "token"): text for text in (self.unk_token, self.bos_token, self.eos_token)}
        added.update(self._added_texts)
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        stated = {
            "added_tokens_decoder": {
                str(token_id): {"content": text, **flags, "special": token_id in self.special_ids}
                for token_id, text in sorted(added.items())
            },
            "additional_special_tokens": [text for text in self._special if text != self.pad_token],
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "unk_token": self.unk_token,
            "pad_token": self.pad_token,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "tokenizer_class": "LlamaTokenizer",
        }
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / VOCABULARY_NAME).write_bytes(self._model)
        text = json.dumps(stated, indent=2, ensure_ascii=False) + "\n"
        (directory / CONFIG_NAME).write_text(text, encoding="utf-8")

    def _parts(self, text: str) -> list[str]:
        """Split a text at its special and added tokens: text, token, text, token, ..., text."""
        parts = self._splitter.split(text.replace(_SPACE, " "))
        if parts[0] or self._id_of(parts[1]) not in self.special_ids:
            parts[0] = _SPACE + parts[0]
        return parts

    def _encode_run(self, text: str) -> list[int]:
        """Encode text without special tokens. Encoding it after unk_token, which is cut off, keeps leading space."""
        if not text.startswith((_SPACE, " ")):
            return list(self._pieces.encode(text))
        return list(self._pieces.encode(self.unk_token + text))[self._guard :]

    def _is_piece(self, text: str) -> bool:
        token_id = self._pieces.piece_to_id(text)
        return bool(self._pieces.id_to_piece(token_id) == text)

    def _id_of(self, text: str) -> int | None:
        if text in self.added_tokens:
            return self.added_tokens[text]
        return int(self._pieces.piece_to_id(text)) if self._is_piece(text) else None

    def _named_id(self, text: str, role: str) -> int:
        token_id = self._id_of(text)
        if token_id is None:
            raise ValueError(f"{role} {shown(text)} is not in the vocabulary: give its id in added_tokens")
        return token_id

    @cached_property
    def _surfaces(self) -> list[str | int]:
        """The text of each piece: characters, or one byte as an integer."""
        pieces = self._pieces
        surfaces: list[str | int] = []
        for token_id in range(self.vocab_size):
            piece = pieces.id_to_piece(token_id)
            if pieces.is_byte(token_id):
                surfaces.append(int(piece[3:-1], 16))  # <0x0A>
            else:
                surfaces.append("" if pieces.is_control(token_id) else piece.replace(_SPACE, " "))
        return surfaces


def _load_model(model: str | Path | bytes | ByteLevelPieces) -> tuple[bytes, Any]:
    """Return the bytes of a sentencepiece model, and the vocabulary."""
    if not isinstance(model, (str, Path, bytes)):
        return b"", model
    import sentencepiece

    name = "the given bytes" if isinstance(model, bytes) else str(model)
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise FileNotFoundError(f"no sentencepiece model at {name}: expected a file such as {VOCABULARY_NAME}")
    data = model if isinstance(model, bytes) else Path(model).read_bytes()
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        loaded = bool(data) and pieces.LoadFromSerializedProto(data + _NO_DUMMY_PREFIX)
    except RuntimeError:
        loaded = False
    if not loaded:
        raise ValueError(f"{name} ({len(data)} bytes): not a sentencepiece model, or damaged; download it again")
    if pieces.unk_id() < 0:  # sentencepiece loads such a model, and then gives unknown texts an id that does not exist
        raise ValueError(f"{name}: no unknown piece, which every sentencepiece model needs; download it again")
    if pieces.decode([f"{_SPACE}a"]) != " a":
        raise ValueError(f"{name} normalizes white space, unlike LLaMA's vocabulary; use the checkpoint's own file")
    return data, pieces


def _check_added_tokens(added_tokens: Mapping[str, int]) -> None:
    for text, token_id in added_tokens.items():
        if not text or type(token_id) is not int or not 0 <= token_id < 2**31:
            raise ValueError(
                f"added token {shown(text)} has the id {shown(token_id)}: expected a text and an id from 0 up"
            )
    if len(set(added_tokens.values())) != len(added_tokens):
        raise ValueError(f"two added tokens have the same id: {dict(added_tokens)}")
