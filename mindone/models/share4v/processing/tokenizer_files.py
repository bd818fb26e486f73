"""The JSON files beside a tokenizer.model: added tokens, special tokens, and which token has which role."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..configuration import read_optional_json
from ..configuration_schema import check_object, shown

CONFIG_NAME, _ADDED_NAME, _SPECIAL_NAME = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"


def read_arguments(directory: Path) -> dict[str, Any]:
    """Read the arguments of Tokenizer from a checkpoint's tokenizer files."""
    config, added_file, special_file = (
        read_optional_json(directory / name) for name in (CONFIG_NAME, _ADDED_NAME, _SPECIAL_NAME)
    )
    stated: dict[str, Any] = {}
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(role) or special_file.get(role)
        if token:
            stated[role] = _text_of(token)
    listed = []
    for name, content in ((CONFIG_NAME, config), (_SPECIAL_NAME, special_file)):
        tokens = content.get("additional_special_tokens") or []
        if not isinstance(tokens, list):
            raise ValueError(f"{name}'s additional_special_tokens must be a list, got {shown(tokens)}")
        listed += tokens
    special = {_text_of(token) for token in listed} | {token for token in stated.values() if isinstance(token, str)}
    added = {str(text): token_id for text, token_id in added_file.items()}
    decoder = check_object(config.get("added_tokens_decoder") or {}, f"{CONFIG_NAME}'s added_tokens_decoder")
    for token_id, token in decoder.items():
        text = _text_of(token)
        if not isinstance(token, Mapping) or not token_id.isdecimal() or len(token_id) > 10:
            raise ValueError(
                f"{CONFIG_NAME}'s added_tokens_decoder has {shown(token_id)}: expected an id and an object"
            )
        check_flags(token, directory / CONFIG_NAME)
        if added.setdefault(text, int(token_id)) != int(token_id):
            raise ValueError(
                f"{directory}: added token {shown(text)} has two ids, {added[text]} and {token_id}; remove one"
            )
        if token.get("special"):
            special.add(text)
    return {**stated, "added_tokens": added, "special_tokens": special}


def check_flags(token: Mapping[str, Any], path: Path) -> None:
    """Check that an added token is found in a text whatever surrounds it.

    Raises:
        ValueError: it is not, which is not supported here; ids would differ from those of the training.
    """
    flags = [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)]
    if flags:
        raise ValueError(f"{path}: added token {shown(_text_of(token))} has {', '.join(flags)}, which is not supported")


def _text_of(token: Any) -> str:
    """Return the text of a token, which is given as a string or as {"content": text, ...}."""
    if isinstance(token, str):
        return token
    if isinstance(token, Mapping) and isinstance(token.get("content"), str):
        return str(token["content"])
    raise ValueError(f"a token is {shown(token)}, expected a string or an object with the key 'content'")
