"""Tokenizer against transformers' slow LlamaTokenizer, on a small vocabulary of LLaMA's kind and on the real one.

SHARE4V_LLAMA_TOKENIZER may name LLaMA's own tokenizer.model, which its licence keeps out of this repository.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import sentencepiece
from transformers import LlamaTokenizer

from mindone.models.share4v.processing.incremental_decoding import IncrementalDecoder
from mindone.models.share4v.processing.tokenizer import Tokenizer

REAL = os.environ.get("SHARE4V_LLAMA_TOKENIZER")
WORDS = "the a photo of red cat on green table under blue sky Describe this image USER ASSISTANT </s> <s> <unk> \n"
UNUSUAL = (
    "é 你好 مرحبا שלום 😀 👩‍👩‍👧 🇨🇳 \u202e \u00a0 \u3000 \ufeff \ufffd ￿ \U0010ffff ▁ ▁▁ \x00 \x01 \x7f \r\n \t \v"
)
ADDED = {"<image>": 0, "<pad>": 1, "<im_start>": 2, "<im_end>": 3}  # offsets from the size of the vocabulary


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary trained with LLaMA's options on a few invented sentences."""
    words = [word for word in WORDS.split() if not word.startswith("<")]
    generator = random.Random(0)
    sentences = [" ".join(generator.choices(words, k=8)) + generator.choice([".", "  !", " é"]) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session", params=["small", "real"])
def model_path(request: pytest.FixtureRequest, small_model: Path) -> Path:
    if request.param == "real" and REAL is None:
        pytest.skip("SHARE4V_LLAMA_TOKENIZER names no file")
    return small_model if request.param == "small" else Path(str(REAL))


def reference(path: Path, **options: object) -> LlamaTokenizer:
    return LlamaTokenizer(str(path), legacy=False, add_bos_token=True, **options)


def pair(path: Path, added: bool) -> tuple[Tokenizer, LlamaTokenizer]:
    """Our tokenizer and that of transformers, both with or both without the added tokens."""
    plain = Tokenizer(path)
    if not added:
        return plain, reference(path)
    theirs = reference(path, pad_token="<pad>")  # transformers assigns the first id to it
    ids = {"<pad>": plain.vocab_size, "<image>": plain.vocab_size + 1, "<im_start>": plain.vocab_size + 2}
    theirs.add_tokens(["<image>", "<im_start>"], special_tokens=True)
    ids["<loc>"] = plain.vocab_size + 3
    theirs.add_tokens(["<loc>"])
    ours = Tokenizer(path, ids, special_tokens=["<pad>", "<image>", "<im_start>"], pad_token="<pad>")
    return ours, theirs


def strings(count: int) -> list[str]:
    """Fixed cases, then random mixtures of words, spaces, tokens, code points and bytes."""
    fixed = [
        "",
        " ",
        "  ",
        "   ",
        "\n",
        " \n ",
        "a",
        " a",
        "a ",
        "  a  b  ",
        "▁",
        "▁a",
        "a▁b",
        "▁▁",
        "</s>",
        " </s>",
        "</s> ",
    ]
    fixed += [
        "</s>a",
        "<s></s>",
        "a<s>b</s> c",
        "<unk>",
        " <unk>",
        "x<unk>",
        "<image>",
        "<image>\nHi",
        "a <image> b",
        "<0x41>",
    ]
    fixed += [
        "<loc>",
        "<loc>a",
        "a<loc> b",
        " <loc>",
        "<loc><image>",
        "<im_start><image><im_start>\n",
        "</s",
        "<<s>>",
        "s>",
    ]
    fixed += UNUSUAL.split(" ")
    fixed += [
        UNUSUAL,
        "é" * 50,
        "e\u0301",
        "a" * 300,
        "0123456789",
        "\r\nUSER:\r\n",
        "日本語のテキスト",
    ]
    generator = random.Random(1)
    pieces = [
        *WORDS.split(" "),
        *UNUSUAL.split(" "),
        " ",
        "  ",
        "\n",
        "<image>",
        "<im_start>",
        "<loc>",
        "<pad>",
        "",
        "12",
    ]
    mixed = []
    while len(fixed) + len(mixed) < count:
        chosen = generator.choices(pieces, k=generator.randint(1, 8))
        chosen += [chr(generator.choice([generator.randint(0, 0xD7FF), generator.randint(0xE000, 0x10FFFF)]))]
        raw = bytes(generator.randrange(256) for _ in range(generator.randint(0, 6)))
        chosen.append(raw.decode("latin-1" if generator.random() < 0.5 else "utf-8", "replace"))
        generator.shuffle(chosen)
        mixed.append(generator.choice(["", " "]).join(chosen))
    return fixed + mixed


@pytest.mark.parametrize("added", [False, True])
def test_encode_and_decode_equal_transformers(model_path: Path, added: bool) -> None:
    ours, theirs = pair(model_path, added)
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    for text in strings(3000):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, repr(text)
        assert ours.encode(text, add_bos=False) == theirs.encode(text, add_special_tokens=False), repr(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), (repr(text), ids, skip)


@pytest.mark.parametrize("added", [False, True])
def test_decode_of_arbitrary_ids_equals_transformers(model_path: Path, added: bool) -> None:
    ours, theirs = pair(model_path, added)
    generator = random.Random(2)
    first_byte = ours.convert_tokens_to_ids("<0x00>")
    common = [ours.convert_tokens_to_ids(token) for token in ("▁", "▁a", "a", "</s>", "<s>", "<unk>")]
    if added:
        common += [ours.convert_tokens_to_ids(token) for token in ("<pad>", "<image>", "<loc>")]
    for _ in range(3000):
        length = generator.randint(0, 12)
        ids = [
            generator.choice(
                [first_byte + generator.randrange(256), generator.choice(common), generator.randrange(len(ours))]
            )
            for _ in range(length)
        ]
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip) == expected, (ids, skip)
            decoder = IncrementalDecoder(ours, skip)
            pushed = [decoder.push(token_id) for token_id in ids]
            assert "".join(pushed) + decoder.finish() == expected, (ids, skip)


def test_encode_and_decode_round_trip(model_path: Path) -> None:
    tokenizer = Tokenizer(model_path)
    for text in strings(1000):
        if not any(lost in text for lost in ("▁", "<unk>", "<s>", "</s>")):  # decoded as a space, or skipped
            assert tokenizer.decode(tokenizer.encode(text)) == text, repr(text)


def test_vicuna_rules(model_path: Path) -> None:
    tokenizer = Tokenizer(model_path)
    space, newline = tokenizer.convert_tokens_to_ids(["▁", "<0x0A>"])
    assert tokenizer.encode("\n") == [1, space, newline]  # the text after an image
    assert tokenizer.encode("a</s>a") == [
        1,
        *tokenizer.encode("a", add_bos=False),
        2,
        tokenizer.convert_tokens_to_ids("a"),
    ]
    assert tokenizer.encode("") == [1]
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token_id is None
    assert tokenizer.convert_tokens_to_ids("no such token") == 0


def test_known_ids_of_the_real_vocabulary() -> None:
    if REAL is None:
        pytest.skip("SHARE4V_LLAMA_TOKENIZER names no file")
    tokenizer = Tokenizer(REAL)
    assert tokenizer.vocab_size == len(tokenizer) == 32000
    assert tokenizer.encode("\n") == [1, 29871, 13]
    assert tokenizer.encode("Hello <s>.") == [1, 15043, 29871, 1, 29889]  # from transformers' documentation


def test_incremental_decoder_returns_whole_characters(model_path: Path) -> None:
    tokenizer = Tokenizer(model_path)
    for text in ["😀", "a😀b", "😀😀", "👩‍👩‍👧 x", "\U0010ffff", "€€", "é\u202e"]:
        decoder = IncrementalDecoder(tokenizer)
        ids = tokenizer.encode(text)
        shown = ""
        for token_id in ids:
            shown += decoder.push(token_id)
            assert text.startswith(shown)
        assert shown == text
        assert decoder.finish() == ""
    first = tokenizer.convert_tokens_to_ids("<0xF0>")
    decoder = IncrementalDecoder(tokenizer)
    assert decoder.push(first) == ""
    assert decoder.push(tokenizer.convert_tokens_to_ids("a")) == "\ufffda"
    assert decoder.push(first) == ""
    assert decoder.finish() == "\ufffd"


def test_cost_per_token_does_not_grow_with_length(small_model: Path) -> None:
    decoder = IncrementalDecoder(Tokenizer(small_model))
    for _ in range(5000):
        decoder.push(300)
        assert sum(len(value) for value in vars(decoder).values() if isinstance(value, (str, bytes, list))) <= 3


@pytest.mark.parametrize("token_id", [-200, -1, -100, 400, 10**9])
def test_error_names_ids_that_are_not_tokens(small_model: Path, token_id: int) -> None:
    with pytest.raises(ValueError, match=f"id {token_id} is not a token: the vocabulary has 0 to 399"):
        Tokenizer(small_model).decode([5, token_id])


def test_invalid_arguments(small_model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(small_model)
    with pytest.raises(ValueError, match="an unpaired surrogate"):
        tokenizer.encode("a\ud83d")
    with pytest.raises(ValueError, match="encode expects a string, got a list"):
        tokenizer.encode(["a"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one list of ids at a time"):
        tokenizer.decode([[1, 2]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"an id must be an integer, got 1\.5"):
        tokenizer.decode([1.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="eos_token '<end>' is not in the vocabulary"):
        Tokenizer(small_model, eos_token="<end>")
    with pytest.raises(ValueError, match="added token '<image>' has the id -200"):
        Tokenizer(small_model, {"<image>": -200})
    with pytest.raises(ValueError, match="have the same id"):
        Tokenizer(small_model, {"<image>": 400, "<pad>": 400})
    with pytest.raises(FileNotFoundError, match="no sentencepiece model at"):
        Tokenizer(tmp_path / "absent.model")
    for data in (b"", b"no model", small_model.read_bytes()[:500]):
        with pytest.raises(ValueError, match="not a sentencepiece model, or damaged"):
            Tokenizer(data)


def test_vocabulary_that_normalizes_white_space_is_refused() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g"] * 9), model_writer=model, vocab_size=11, minloglevel=2
    )
    with pytest.raises(ValueError, match="normalizes white space"):
        Tokenizer(model.getvalue())


def test_vocabulary_without_an_unknown_piece_is_refused(small_model: Path) -> None:
    model = small_model.read_bytes()
    unknown = b"\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
    assert model.count(unknown) == 1
    with pytest.raises(ValueError, match=r"the given bytes: no unknown piece.*download it again"):
        Tokenizer(model.replace(unknown, unknown[:-1] + b"\x03"))


def test_saved_tokenizer_is_read_by_transformers_and_this_package(small_model: Path, tmp_path: Path) -> None:
    ids = {token: 400 + offset for token, offset in ADDED.items()}
    tokenizer = Tokenizer(small_model.read_bytes(), ids, special_tokens=["<image>", "<pad>"], pad_token="<pad>")
    tokenizer.save_pretrained(tmp_path / "new" / "place")
    again = Tokenizer.from_pretrained(tmp_path / "new" / "place")
    theirs = LlamaTokenizer.from_pretrained(tmp_path / "new" / "place")
    assert again.added_tokens == tokenizer.added_tokens == ids
    assert again.special_ids == tokenizer.special_ids == {0, 1, 2, 400, 401}
    assert again.pad_token_id == tokenizer.pad_token_id == theirs.pad_token_id == 401
    assert len(again) == len(theirs) == 404
    for text in ["a <image>\nphoto</s>a<im_start>b", "<pad>", "<im_end> a", "é"]:
        encoded = theirs.encode(text)
        assert again.encode(text) == tokenizer.encode(text) == encoded
        for skip in (True, False):
            assert again.decode(encoded, skip) == theirs.decode(encoded, skip_special_tokens=skip)


def place(small_model: Path, directory: Path, **files: object) -> Path:
    (directory / "tokenizer.model").write_bytes(small_model.read_bytes())
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def test_older_files_equal_transformers(small_model: Path, tmp_path: Path) -> None:
    token = {"content": "<s>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    place(
        small_model,
        tmp_path,
        tokenizer_config={
            "add_bos_token": True,
            "legacy": False,
            "bos_token": {"__type": "AddedToken", **token},
            "pad_token": None,
            "tokenizer_class": "LlamaTokenizer",
        },
        added_tokens={"<im_start>": 400, "<im_end>": 401, "<loc>": 402},
        special_tokens_map={
            "bos_token": token,
            "pad_token": "<unk>",
            "additional_special_tokens": ["<im_start>", {**token, "content": "<im_end>"}],
        },
    )
    ours, theirs = Tokenizer.from_pretrained(tmp_path), LlamaTokenizer.from_pretrained(tmp_path)
    assert ours.pad_token_id == theirs.pad_token_id == 0
    assert len(ours) == len(theirs) == 403
    for text in strings(300):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_directory_with_only_a_vocabulary(small_model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(place(small_model, tmp_path))
    assert tokenizer.added_tokens == {}
    assert tokenizer.encode("a photo") == Tokenizer(small_model).encode("a photo")


def test_pad_token_without_an_id_is_ignored(small_model: Path, tmp_path: Path) -> None:
    place(small_model, tmp_path, special_tokens_map={"pad_token": "[PAD]"})
    assert Tokenizer.from_pretrained(tmp_path).pad_token_id is None


def test_invalid_directories(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.model in .*: copy"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.model in .*tokenizer\.json, the fast tokenizer's file"):
        Tokenizer.from_pretrained(tmp_path)
    stated = {"400": {"content": "<image>", "rstrip": True}}
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: added token '<image>' has rstrip"):
        Tokenizer.from_pretrained(place(small_model, tmp_path, tokenizer_config={"added_tokens_decoder": stated}))
    stated = {"400": {"content": "<image>"}}
    place(small_model, tmp_path, tokenizer_config={"added_tokens_decoder": stated}, added_tokens={"<image>": 401})
    with pytest.raises(ValueError, match="'<image>' has two ids, 401 and 400"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"])
@pytest.mark.parametrize("kind", ["pipe", "broken link", "directory"])
def test_what_is_in_place_of_a_small_file_is_an_error(small_model: Path, tmp_path: Path, name: str, kind: str) -> None:
    """As if it did not exist, added tokens would be split; a cache whose files were deleted has links to nowhere."""
    place(small_model, tmp_path)
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("blobs/1")
    said = "a link to a file that does not exist" if kind == "broken link" else "not a regular file"
    with pytest.raises(ValueError, match=f"{name} is {said}: replace it"):
        Tokenizer.from_pretrained(tmp_path)


def test_tokenizer_can_be_pickled(small_model: Path) -> None:
    tokenizer = Tokenizer(small_model, {"<image>": 400})
    again = pickle.loads(pickle.dumps(tokenizer))
    text = "a <image> photo  é😀"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
