"""Tokens as text and bytes, and the fields of /tokenize and /detokenize."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .fields import Field, Fields
from .value_types import Boolean, Integer, Items, ListOf, Text

if TYPE_CHECKING:
    from mindone.models.share4v.processing.tokenizer import Tokenizer

TOKENIZE = Fields(
    [
        Field("model", "works", "the name that /v1/models lists", Text(1000)),
        Field("prompt", "works", "a text; either this or messages", Text()),
        Field("messages", "works", "a chat, as in /v1/chat/completions", Items(1000)),
        Field("add_special_tokens", "works", "begin a text with the bos token; true by default", Boolean()),
        Field("return_token_strs", "works", "return the tokens as texts, too", Boolean()),
        Field("add_generation_prompt", "refused", "an answer always begins a turn", neutral=(True,)),
        Field("continue_final_message", "refused", "an answer always begins a turn", neutral=(False,)),
        Field("chat_template", "refused", "the server's template is used"),
        Field("chat_template_kwargs", "refused", "the server's template is used", neutral=({},)),
        Field("tools", "refused", "the model cannot call tools", neutral=([],)),
    ]
)
DETOKENIZE = Fields(
    [
        Field("model", "works", "the name that /v1/models lists", Text(1000)),
        Field("tokens", "works", "ids of tokens", ListOf(Integer(0), 1_000_000), (), True),
    ]
)


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Return the bytes that a token stands for; none for an id beyond the vocabulary, which padded models have."""
    return b"" if token_id >= len(tokenizer) else tokenizer.bytes_of(token_id)


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token as text; a byte that is not a character by itself becomes U+FFFD."""
    return token_bytes(tokenizer, token_id).decode("utf-8", "replace")
