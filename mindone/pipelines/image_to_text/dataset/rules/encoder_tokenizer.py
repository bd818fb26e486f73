"""Tokenizers of text encoders such as CLIP and T5: how many tokens a trainer makes of a text."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from mindone.models.share4v.configuration import has_file
from mindone.models.share4v.hub import HubError, is_checkpoint_name, resolve

from ..state.regular_files import open_input

TOKENIZER_JSON, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
_PIECES = ("spiece.model", "tokenizer.model")  # sentencepiece models
_CONFIG = "tokenizer_config.json"
_MAX_BYTES = 64 * 2**20  # of a file; the largest published ones have 17 MB
# T5's normalizer makes up to 33 bytes of one character, and its next step three bytes of a space.
_MAX_GROWTH = 256
_START, _END = "<|startoftext|>", "<|endoftext|>"
# How CLIP splits a text into words.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_EXPECTED = f"{TOKENIZER_JSON}, CLIP's {VOCABULARY} and {MERGES}, or T5's spiece.model"
Count = Callable[[str], int]


class TokenizerError(ValueError):
    """A tokenizer was not found or cannot be read; the message says what to give instead."""


def load_token_counter(name: str, local_files_only: bool = False) -> Count:
    """Return the function that counts the tokens of a text as transformers' tokenizer does, special tokens included.

    Args:
        name: a directory with a tokenizer's files (tokenizer.json; CLIP's vocab.json and merges.txt; or T5's
            spiece.model), or owner/name on the Hugging Face hub, of which only the small files are downloaded, to
            SHARE4V_HOME.
        local_files_only: use only files on this machine.

    Raises:
        TokenizerError: there is no such tokenizer, or its files cannot be read.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.rules.encoder_tokenizer import load_token_counter
        >>> count = load_token_counter("openai/clip-vit-large-patch14")  # doctest: +SKIP
        >>> count("a photo of a cat")  # doctest: +SKIP
        7
    """
    directory = find_tokenizer(name, local_files_only)
    file = next(path for path in map(directory.joinpath, (TOKENIZER_JSON, VOCABULARY, *_PIECES)) if path.is_file())
    return _load(str(file), file.stat().st_mtime_ns)


def find_tokenizer(name: str, local_files_only: bool = False) -> Path:
    """Return the directory with the files of a tokenizer; arguments and errors as in `load_token_counter`."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not has_tokenizer(path):
            inside = sorted(str(one) for one in path.iterdir() if one.is_dir() and has_tokenizer(one))
            hint = f"; {' and '.join(inside)} have one" if inside else ""
            raise TokenizerError(f"{path} has no tokenizer: expected {_EXPECTED}{hint}")
        return path
    if path.is_file():
        raise TokenizerError(f"{path} is a file: give the directory of the tokenizer")
    if not is_checkpoint_name(name):
        raise TokenizerError(f"there is no directory {name}: give one with {_EXPECTED}, or owner/name on the hub")
    found = _cached(name)
    if found is None:
        try:
            found = resolve(name, local_files_only=local_files_only, weights=False, progress=False)
        except (HubError, FileNotFoundError) as error:
            raise TokenizerError(f"the tokenizer {name} was not found: {error}") from None
    if not has_tokenizer(found):
        raise TokenizerError(f"{name} has no tokenizer that can be read here: expected {_EXPECTED}")
    return found


def has_tokenizer(directory: Path) -> bool:
    """Return whether a directory has the files of a tokenizer that this module reads."""
    is_pair = (directory / VOCABULARY).is_file() and (directory / MERGES).is_file()
    return is_pair or any((directory / name).is_file() for name in (TOKENIZER_JSON, *_PIECES))


def _cached(name: str) -> Path | None:
    """Return the directory of a hub's repository in the cache of huggingface_hub, if it has a tokenizer there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in (TOKENIZER_JSON, VOCABULARY, *_PIECES):
        try:
            found = try_to_load_from_cache(name, file)
        except (HFValidationError, OSError):
            return None
        if isinstance(found, str) and has_tokenizer(Path(found).parent):
            return Path(found).parent
    return None


@lru_cache(maxsize=16)
def _load(file: str, changed: int) -> Count:
    """Return the counter of a tokenizer by its main file; one that has changed since is read again."""
    path = Path(file)
    for one in (path, path.with_name(MERGES)):
        if one.is_file() and one.stat().st_size > _MAX_BYTES:
            raise TokenizerError(f"{one} has {one.stat().st_size:,} bytes: a tokenizer has at most {_MAX_BYTES:,}")
    read = {TOKENIZER_JSON: _read_json, VOCABULARY: _read_clip}.get(path.name, _read_pieces)
    try:
        return read(path)
    except TokenizerError:
        raise
    except Exception as error:  # the libraries raise plain Exception for what they cannot read
        raise TokenizerError(f"{path} cannot be read as a tokenizer: {error}") from error


def _read_json(path: Path) -> Count:
    from tokenizers import Tokenizer

    with open_input(str(path)) as file:
        content = file.read(_MAX_BYTES)
    tokenizer = Tokenizer.from_buffer(content)
    check_growth(json.loads(content).get("normalizer"), path)
    tokenizer.no_truncation()  # some files state the encoder's limit, which would hide what is too long
    tokenizer.no_padding()

    def count(text: str) -> int:
        try:
            return len(tokenizer.encode(text).ids)
        except BaseException as error:
            # A pattern that backtracks too long ends in Rust's panic, which is not an Exception in Python.
            if type(error).__name__ != "PanicException":
                raise
            raise TokenizerError(f"{path} cannot tokenize {text[:40]!r}: {error}") from None

    return count


def check_growth(normalizer: object, path: Path) -> None:
    """Refuse a tokenizer.json whose normalizer could make a text of gigabytes of a caption.

    Args:
        normalizer: the entry "normalizer" of the file, which `tokenizers` has accepted.
        path: the file, for the message.

    Raises:
        TokenizerError: its steps together can lengthen a text more than `_MAX_GROWTH` times.
    """
    growth = _growth(normalizer)
    if growth > _MAX_GROWTH:
        raise TokenizerError(
            f"{path}: its normalizer can make a text {growth:,.0f} times as long, at most {_MAX_GROWTH} times is "
            f"accepted; published tokenizers replace a character by one or a few: use the encoder's own files"
        )


def _growth(normalizer: object) -> float:
    """Return how many times as many bytes as before a text can have after a normalizer of a tokenizer.json."""
    match normalizer:
        case {"type": "Sequence", "normalizers": list(steps)}:
            return prod(map(_growth, steps))
        case {"type": "Replace", "content": str(content), "pattern": {"String": str(pattern)}}:
            return max(1.0, len(content.encode()) / max(1, len(pattern.encode())))
        case {"type": "Replace", "content": str(content)}:  # a regular expression may match a single character
            return max(1.0, len(content.encode()))
        case {"type": "Prepend", "prepend": str(content)}:  # the shortest text has one character
            return 1.0 + len(content.encode())
        case {"type": "Precompiled", "precompiled_charsmap": str(encoded)}:
            # The size of a trie, the trie, and what characters are replaced by, separated by zeros.
            charsmap = base64.b64decode(encoded)
            replacements = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
            return max(map(len, replacements.split(b"\0")), default=1)
    return 1.0


def _read_clip(path: Path) -> Count:
    """Read CLIP's vocabulary, in lower case with `</w>` at the end of words."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary, merges = models.BPE.read_file(str(path), str(path.with_name(MERGES)))
    if _START not in vocabulary or _END not in vocabulary:
        raise TokenizerError(f"{path} is not CLIP's: it has no {_START}; give a directory with {TOKENIZER_JSON}")
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=_END)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens([_START, _END])
    return lambda text: len(tokenizer.encode(text).ids) + 2  # the start and the end of the text


def _read_pieces(path: Path) -> Count:
    """Read T5's sentencepiece model; a text ends with one special token."""
    from sentencepiece import SentencePieceProcessor

    config: Any = {}
    if has_file(path.with_name(_CONFIG)):
        with open_input(str(path.with_name(_CONFIG))) as file:
            config = json.loads(file.read(_MAX_BYTES))
    kind = config.get("tokenizer_class", "T5Tokenizer" if path.name == _PIECES[0] else None)
    if kind not in ("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast"):
        raise TokenizerError(
            f"{path} belongs to a {kind or 'tokenizer of an unknown kind'}, whose special tokens are not known here: "
            f"give a directory with {TOKENIZER_JSON}"
        )
    pieces = SentencePieceProcessor(model_file=str(path))
    return lambda text: len(pieces.encode(text)) + 1
