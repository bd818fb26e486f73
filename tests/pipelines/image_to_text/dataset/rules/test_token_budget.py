"""Token budgets: counts equal those of transformers' tokenizers, and captions end with a whole sentence."""

from __future__ import annotations

import base64
import json
import random
import shutil
import string
from pathlib import Path

import pytest
from helpers.text_tokenizers import TEXT, write_clip, write_t5
from transformers import AutoTokenizer, CLIPTokenizer, CLIPTokenizerFast, T5Tokenizer, T5TokenizerFast

from mindone.pipelines.image_to_text.dataset.rules.encoder_tokenizer import (
    TokenizerError,
    check_growth,
    load_token_counter,
)
from mindone.pipelines.image_to_text.dataset.rules.token_budget import TokenBudget, TokenBudgets

SENTENCES = ["A red cube.", "It is on a table.", "The background is light blue.", "Dr. No sits there."]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "tokenizer")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5") / "tokenizer")


def texts() -> list[str]:
    rng = random.Random(1)
    letters = string.ascii_letters + string.digits + string.punctuation + "   éß½🙂"
    odd = ["", " ", "  two\n\nlines\t", "DON'T they'll", "sks_dog-v2 (3.5mm f/1.8)", "café e\u0301", "猫。 犬！"]
    return odd + TEXT.splitlines() + ["".join(rng.choices(letters, k=rng.randrange(60))) for _ in range(300)]


def test_clip_counts_as_transformers_does(clip: Path, tmp_path: Path) -> None:
    count, slow = load_token_counter(str(clip)), CLIPTokenizer.from_pretrained(clip)
    fast = CLIPTokenizerFast.from_pretrained(clip)
    fast.save_pretrained(tmp_path / "fast")  # has tokenizer.json
    of_json = load_token_counter(str(tmp_path / "fast"))
    for text in texts():
        assert count(text) == of_json(text) == len(slow(text).input_ids) == len(fast(text).input_ids), text


def test_t5_counts_as_transformers_does(t5: Path, tmp_path: Path) -> None:
    count, slow = load_token_counter(str(t5)), T5Tokenizer.from_pretrained(t5, legacy=True)
    fast = T5TokenizerFast.from_pretrained(t5)
    fast.save_pretrained(tmp_path / "fast")
    (tmp_path / "fast" / "spiece.model").unlink(missing_ok=True)
    of_json = load_token_counter(str(tmp_path / "fast"))
    for text in texts():
        assert count(text) == len(slow(text).input_ids), text
        assert of_json(text) == len(fast(text).input_ids), text


def test_a_limit_in_the_file_hides_nothing(clip: Path, tmp_path: Path) -> None:
    fast = CLIPTokenizerFast.from_pretrained(clip)
    fast(TEXT, truncation=True, max_length=10, padding="max_length")  # is stored with the tokenizer
    fast.save_pretrained(tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "tokenizer.json").read_text())["truncation"]["max_length"] == 10
    expected = len(AutoTokenizer.from_pretrained(tmp_path / "cut")(TEXT).input_ids)
    assert load_token_counter(str(tmp_path / "cut"))(TEXT) == expected > 50
    assert load_token_counter(str(tmp_path / "cut"))("a") == 3


@pytest.mark.parametrize("over", [0, 1])
def test_whole_sentences_are_dropped_until_the_text_fits(clip: Path, over: int) -> None:
    count = load_token_counter(str(clip))
    for kept in range(1, len(SENTENCES)):
        text = " ".join(SENTENCES[:kept])
        limit = count(f"sks, {text}") - over
        fitted = TokenBudgets([TokenBudget(str(clip), limit)]).fit(" ".join(SENTENCES), lambda one: f"sks, {one}")
        if over and kept == 1:  # nothing fits: one sentence stays
            assert fitted.text == SENTENCES[0] and fitted.excess == (0,) and fitted.tokens == (limit + 1,)
        else:
            assert fitted.text == " ".join(SENTENCES[: kept - over]) and not fitted.excess
            assert fitted.tokens == (count(f"sks, {fitted.text}"),) and fitted.tokens[0] <= limit
        assert fitted.is_cut and fitted.before == (count("sks, " + " ".join(SENTENCES)),)


def test_a_text_that_fits_is_not_changed(clip: Path, t5: Path) -> None:
    budgets = TokenBudgets([TokenBudget(str(clip), 500), TokenBudget(str(t5), 500)])
    for text in texts():
        assert budgets.fit(text).text == text and not budgets.fit(text).is_cut


def test_a_text_fits_into_all_budgets(clip: Path, t5: Path) -> None:
    clip_count, t5_count = load_token_counter(str(clip)), load_token_counter(str(t5))
    for limits in ((500, 30), (40, 500), (40, 30)):
        budgets = TokenBudgets([TokenBudget(str(clip), limits[0]), TokenBudget(str(t5), limits[1])])
        fitted = budgets.fit(" ".join(SENTENCES))
        assert fitted.tokens == (clip_count(fitted.text), t5_count(fitted.text)) and fitted.is_cut
        assert all(count <= limit for count, limit in zip(fitted.tokens, limits, strict=True))


def test_tags_are_dropped_one_by_one(clip: Path) -> None:
    count = load_token_counter(str(clip))
    budgets = TokenBudgets([TokenBudget(str(clip), count("cat, sofa, lamp"))])
    assert budgets.fit("cat, sofa, lamp, red rug, window", as_tags=True).text == "cat, sofa, lamp"
    assert budgets.fit("cat, sofa, lamp, red rug, window").excess == (0,)  # one sentence


def test_budgets_that_cannot_be(clip: Path, t5: Path) -> None:
    for text in ("77", "clip", ":77", "clip:", "clip:0", "clip:-3", "clip:7.5", "clip:²", " :7"):
        with pytest.raises(ValueError, match=r"fit must be NAME_OR_DIR:N.*openai/clip-vit-large-patch14:77"):
            TokenBudget.parse(text)
    assert TokenBudget.parse("/data/a:b/clip: 77") == TokenBudget("/data/a:b/clip", 77)
    with pytest.raises(ValueError, match=r"leaves no token for text: the tokenizer adds 2 special tokens"):
        TokenBudgets([TokenBudget(str(clip), 2)])
    with pytest.raises(ValueError, match="two budgets of"):
        TokenBudgets([TokenBudget(str(t5), 20), TokenBudget(str(t5), 30)])


def test_tokenizers_that_cannot_be_read(clip: Path, t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(clip, tmp_path / "pipe" / "tokenizer")
    shutil.copytree(clip, tmp_path / "gpt")
    vocabulary = (clip / "vocab.json").read_text().replace("<|startoftext|>", "<s>")
    (tmp_path / "gpt" / "vocab.json").write_text(vocabulary)
    for name, file, data in (("broken", "tokenizer.json", b"{}"), ("torn", "spiece.model", b"\n\x05abc")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(data)
    shutil.copytree(t5, tmp_path / "llama")
    (tmp_path / "llama" / "spiece.model").rename(tmp_path / "llama" / "tokenizer.model")
    (tmp_path / "llama" / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    for name, message in (
        ("pipe", r"has no tokenizer: expected tokenizer.json, .*; .*pipe/tokenizer have one"),
        ("gpt", r"is not CLIP's: it has no <\|startoftext\|>"),
        ("gpt/vocab.json", "is a file: give the directory"),
        ("broken", "cannot be read as a tokenizer"),
        ("torn", "cannot be read as a tokenizer"),
        ("llama", "belongs to a LlamaTokenizer, whose special tokens are not known here"),
        ("none", "there is no directory"),
    ):
        with pytest.raises(TokenizerError, match=message):
            load_token_counter(str(tmp_path / name))
    with pytest.raises(TokenizerError, match="the tokenizer some/clip was not found"):
        load_token_counter("some/clip")


def hostile(folder: Path, **fields: object) -> str:
    """Write a tokenizer.json of two words with other fields, and return its folder."""
    from tokenizers import Tokenizer, models

    content = json.loads(Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]")).to_str())
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({**content, **fields}))
    return str(folder)


def test_a_strangers_tokenizer_that_costs_too_much(tmp_path: Path) -> None:
    """Gigabytes of text out of one letter, and patterns that backtrack for ever."""
    longer = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    charsmap = base64.b64encode((0).to_bytes(4, "little") + b"ab\0" + b"x" * 1000 + b"\0").decode()
    for number, normalizer in enumerate(
        (
            longer,
            {**longer, "pattern": {"Regex": "a"}},
            {"type": "Sequence", "normalizers": [{**longer, "content": "aa"}] * 30},
            {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [longer]}]},
            {"type": "Prepend", "prepend": "a" * 1000},
            {"type": "Precompiled", "precompiled_charsmap": charsmap},
        )
    ):
        with pytest.raises(TokenizerError, match=r"(can make a text|cannot be read)"):
            load_token_counter(hostile(tmp_path / str(number), normalizer=normalizer))
    backtracking = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    count = load_token_counter(hostile(tmp_path / "pattern", pre_tokenizer=backtracking))
    with pytest.raises(TokenizerError, match="cannot tokenize 'aaaa"):
        count("a" * 60 + "!")


def test_the_normalizers_of_published_tokenizers_are_accepted(t5: Path) -> None:
    content = json.loads(T5TokenizerFast.from_pretrained(t5).backend_tokenizer.to_str())
    check_growth(content["normalizer"], t5)
    llama = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    check_growth({"type": "Sequence", "normalizers": llama}, t5)


def test_a_tokenizer_in_the_hubs_cache(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers leaves it after it has loaded the same name."""
    folder = tmp_path / "models--some--clip"
    shutil.copytree(clip, folder / "snapshots" / ("a" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert load_token_counter("some/clip", local_files_only=True)(TEXT) == load_token_counter(str(clip))(TEXT)
