"""Protected text: special tokens in it are text, and everything else is encoded as without protection."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mindone.models.share4v import Share4VProcessor
from mindone.models.share4v.processing.plain_text import protect, unprotect

PROCESSOR = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
TOKENS = ("<image>", *PROCESSOR.tokenizer.split_tokens)
MARK = "\ufdd0"
PARTS = st.sampled_from(["<image>", "</s>", "<s>", "<unk>", "<", "image>", "a red ", MARK, "\n", "\u4e2d", " "])
TEXTS = st.lists(PARTS, max_size=12).map("".join)


@given(TEXTS | st.text(max_size=30))
def test_no_token_is_left_and_the_text_comes_back(text: str) -> None:
    protected = protect(text, TOKENS)
    assert not any(token in protected for token in TOKENS)
    assert unprotect(protected) == text


@given(TEXTS)
def test_tokens_in_a_protected_text_are_not_special(text: str) -> None:
    ids = PROCESSOR.encode_prompt(protect(text, TOKENS), is_protected=True)
    special = {*PROCESSOR.tokenizer.special_ids, PROCESSOR.image_token_id}
    assert special.isdisjoint(ids[1:])
    assert PROCESSOR.tokenizer.decode(ids) == text


@given(st.text(st.characters(exclude_characters="<\u2581", exclude_categories=["Cs"]), max_size=30))
def test_other_texts_have_the_ids_they_have_without_protection(text: str) -> None:
    assert PROCESSOR.encode_prompt(protect(text, TOKENS), is_protected=True) == PROCESSOR.encode_prompt(text)


def test_a_processor_without_special_tokens() -> None:
    usual = PROCESSOR(text="What is </s>?")["input_ids"]
    plain = PROCESSOR(text="What is </s>?", special_tokens=False)["input_ids"]
    eos = PROCESSOR.tokenizer.eos_token_id
    assert (usual == eos).sum() == 1 and (plain == eos).sum() == 0
    assert (PROCESSOR(text="What?")["input_ids"] == PROCESSOR(text="What?", special_tokens=False)["input_ids"]).all()


def test_an_overlapping_token_is_found() -> None:
    assert protect("abab", ["ab", "ba"]) == f"a{MARK}b{MARK}a{MARK}b"
