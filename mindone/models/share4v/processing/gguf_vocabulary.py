"""The tokenizer and the chat template in the metadata of GGUF files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..configuration_schema import shown
from .chat_templates import DEFAULT_TEMPLATE, TEMPLATES, Template

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

BYTE_LEVEL = "gpt2"  # tokenizer.ggml.model of a byte-level BPE; see byte_level.py
TEMPLATE_KEY, OUR_TEMPLATE_KEY = "tokenizer.chat_template", "share4v.conversation"
# ggml's types of tokens, which are sentencepiece's types of pieces.
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
_JINJA = ("two", "single")  # styles of templates that are written as Jinja too
_ADDED_SCORE = -1000.0  # what llama.cpp's converter gives to a token that is not in the sentencepiece model
# What a Jinja template contains -> the template of ours with the same roles.
_TEMPLATE_MARKS = {
    "smollm2": ("<|im_start|>", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama_3": ("<|start_header_id|>", "<|eot_id|>"),
    "vicuna_v1": ("USER:", "ASSISTANT:"),
    "share4v_v0": ("Human:", "###"),
    "share4v_llama_2": ("[INST]",),
}


def tokenizer_arguments(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Tokenizer` that rebuild the tokenizer of a GGUF language model.

    Its vocabulary becomes a sentencepiece model; tokens that were added behind it become added tokens.

    Args:
        metadata: of the language model's file.

    Raises:
        ValueError: the vocabulary is missing, malformed, or of another kind than LLaMA's.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "llama":
        raise ValueError(
            f"the GGUF file has the tokenizer {shown(kind)}, expected 'llama', the sentencepiece vocabulary of Vicuna, "
            f"or {BYTE_LEVEL!r}, a byte-level BPE"
        )
    for key, expected in (("add_bos_token", True), ("add_eos_token", False), ("add_space_prefix", True)):
        stated = metadata.get(f"tokenizer.ggml.{key}", expected)
        if stated is not expected:
            raise ValueError(f"tokenizer.ggml.{key} is {shown(stated)}, expected {expected}, as in LLaMA's tokenizer")
    tokens, scores, types = _vocabulary(metadata)
    count = _count_of_pieces(scores, types)
    ids = {name: _id(metadata, name, tokens, default) for name, default in (("unknown", 0), ("bos", 1), ("eos", 2))}
    pad = metadata.get("tokenizer.ggml.padding_token_id")
    added = {token: number for number, token in enumerate(tokens[count:], count) if types[number] != UNUSED}
    return {
        "model": sentencepiece_model(tokens[:count], scores, types, ids),
        "added_tokens": added,
        "special_tokens": [token for token, number in added.items() if types[number] == CONTROL],
        "bos_token": tokens[ids["bos"]],
        "eos_token": tokens[ids["eos"]],
        "unk_token": tokens[ids["unknown"]],
        "pad_token": None if pad is None else tokens[_id(metadata, "padding", tokens, 0)],
    }


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[float], list[int]]:
    tokens, scores, types = (metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type"))
    is_complete = (
        isinstance(tokens, list)
        and isinstance(scores, np.ndarray)
        and isinstance(types, np.ndarray)
        and types.dtype.kind in "iu"
        and 0 < len(tokens) == len(scores) == len(types)
    )
    if tokens is None or scores is None or types is None or not is_complete:
        raise ValueError(
            "the GGUF file has no complete vocabulary: expected tokenizer.ggml.tokens, scores and token_type of equal "
            "length"
        )
    if not np.isfinite(scores).all():
        raise ValueError("tokenizer.ggml.scores has values that are not finite; download the file again")
    return tokens, scores.tolist(), types.tolist()


def _id(metadata: Mapping[str, Any], name: str, tokens: Sequence[str], default: int) -> int:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id", default)
    if type(value) is not int or not 0 <= value < len(tokens):
        raise ValueError(
            f"tokenizer.ggml.{name}_token_id is {shown(value)}, expected a number from 0 to {len(tokens) - 1}"
        )
    return value


def _count_of_pieces(scores: Sequence[float], types: Sequence[int]) -> int:
    """Return how many tokens the sentencepiece model had, before others were added or the vocabulary was padded."""
    count = len(scores)
    while count:
        kind = types[count - 1]
        is_added = kind in (CONTROL, USER_DEFINED) and scores[count - 1] == _ADDED_SCORE
        if not is_added and kind != UNUSED:
            break
        count -= 1
    return count


def sentencepiece_model(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], ids: Mapping[str, int]
) -> bytes:
    """Return a sentencepiece BPE model with LLaMA's settings, in protobuf's encoding.

    Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto

    Args:
        tokens: the pieces; scores and types may be longer.
        scores: of the pieces.
        types: of the pieces.
        ids: those of "unknown", "bos" and "eos".
    """
    model = bytearray()
    for token, score, kind in zip(tokens, scores, types, strict=False):
        piece = _bytes(1, token.encode()) + _key(2, 5) + struct.pack("<f", score) + _number(3, kind)
        model += _bytes(1, piece)
    trainer = _number(3, 2) + _number(4, len(tokens)) + _number(35, 1)  # BPE, vocabulary size, byte fallback
    trainer += b"".join(_number(field, ids[name]) for field, name in ((40, "unknown"), (41, "bos"), (42, "eos")))
    trainer += _number(43, -1)  # no padding
    trainer += b"".join(
        _bytes(field, tokens[ids[name]].encode())
        for field, name in ((45, "unknown"), (46, "bos"), (47, "eos"))
        if ids[name] < len(tokens)
    )
    # No normalization, a space in front, and spaces that are not merged.
    normalizer = _bytes(1, b"identity") + _number(3, 1) + _number(4, 0) + _number(5, 1)
    return bytes(model) + _bytes(2, trainer) + _bytes(3, normalizer)


def vocabulary_metadata(tokenizer: Tokenizer, size: int, conversation: str) -> dict[str, Any]:
    """Return a tokenizer and a chat template as metadata of a GGUF file, which `tokenizer_from_gguf` reads.

    Args:
        tokenizer: any.
        size: number of the model's embeddings; tokens that the tokenizer lacks are written as unused.
        conversation: name of the chat template.

    Raises:
        ValueError: the tokenizer has ids beyond the embeddings.
    """
    pieces = read_pieces(tokenizer.model)
    added = tokenizer.added_tokens
    if max(len(pieces) - 1, *added.values(), 0) >= size:
        raise ValueError(
            f"the tokenizer has the id {max(len(pieces) - 1, *added.values(), 0)}, but the model has only {size} "
            "embeddings: use the tokenizer that belongs to it"
        )
    rows = dict(enumerate(pieces))
    for token, number in added.items():
        rows[number] = token, _ADDED_SCORE, CONTROL if number in tokenizer.special_ids else USER_DEFINED
    complete = [rows.get(number, (f"[PAD{number}]", _ADDED_SCORE, UNUSED)) for number in range(size)]
    tokens, scores, types = (list(column) for column in zip(*complete, strict=True))
    stated: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.unknown_token_id": tokenizer.unk_token_id,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        OUR_TEMPLATE_KEY: conversation,
    }
    if tokenizer.pad_token_id is not None:
        stated["tokenizer.ggml.padding_token_id"] = tokenizer.pad_token_id
    template = TEMPLATES[conversation]
    if template.style in _JINJA:
        stated[TEMPLATE_KEY] = _jinja(template)
    return stated


def read_pieces(model: bytes) -> list[tuple[str, float, int]]:
    """Return (piece, score, type) of every piece of a sentencepiece model that the library has loaded before."""
    pieces = []
    for field, value in _fields(model):
        if field == 1:
            parts = dict(_fields(value))
            score = struct.unpack("<f", parts[2])[0] if 2 in parts else 0.0
            pieces.append((parts.get(1, b"").decode(), score, parts.get(3, 1)))
    return pieces


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field, value) of a protobuf message: bytes, or an integer."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        size, at = _read_varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def _jinja(template: Template) -> str:
    """Return a template of the styles "two" and "single" in Jinja, as transformers and llama.cpp render it."""
    user, assistant = template.roles
    user_end, assistant_end = template.separators
    system = json.dumps(template.system)
    return (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        f"{{% else %}}{{% set system = {system} %}}{{% endif %}}{{{{ system + {json.dumps(user_end)} }}}}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{{{{ '{user}: ' + message['content'] + {json.dumps(user_end)} }}}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ '{assistant}: ' + message['content'] + {json.dumps(assistant_end)} }}}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '{assistant}:' }}}}{{% endif %}}"
    )


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _varint(len(value)) + value


def template_of_gguf(metadata: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of the chat template for a GGUF language model, and how it was chosen.

    Example:
        >>> from mindone.models.share4v.processing.gguf_vocabulary import template_of_gguf
        >>> template_of_gguf({})
        ('vicuna_v1', 'the file has no chat template, so ShareGPT4V is assumed')
    """
    ours = metadata.get(OUR_TEMPLATE_KEY)
    if isinstance(ours, str) and ours in TEMPLATES:
        return ours, f"{OUR_TEMPLATE_KEY} names it"
    stated = metadata.get(TEMPLATE_KEY)
    if not isinstance(stated, str) or not stated.strip():
        return DEFAULT_TEMPLATE, "the file has no chat template, so ShareGPT4V is assumed"
    for name, marks in _TEMPLATE_MARKS.items():
        if all(mark in stated for mark in marks):
            return name, f"{TEMPLATE_KEY} contains {' and '.join(map(repr, marks))}"
    return (
        DEFAULT_TEMPLATE,
        f"{TEMPLATE_KEY} is none of the known ones, so ShareGPT4V is assumed; choose another as conversation "
        "(--conversation) if the model was trained with it",
    )
