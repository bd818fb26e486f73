"""Text rules: removing openings, detecting degenerate repetition, and counting words and sentences."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.paths import TINY_SCRIPTS
from hypothesis import given
from hypothesis import strategies as st

from mindone.models.share4v import AutoProcessor
from mindone.pipelines.image_to_text.dataset.rules.openings import remove_opening
from mindone.pipelines.image_to_text.dataset.rules.repetition import find_repetition
from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules, clean, violations
from mindone.pipelines.image_to_text.dataset.rules.words import count_words, has_word, missing_words, split_sentences

# Openings


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("The image shows a dog.", "A dog."),
        ("The image showcases a vibrant street.", "A vibrant street."),
        ("This picture depicts two red cars.", "Two red cars."),
        ("The photograph captures the moment a wave breaks.", "The moment a wave breaks."),
        ("The image features: a cat", "A cat"),
        ("The provided image presents an old town.", "An old town."),
        ("The image shows that the man is tall.", "The man is tall."),
        ("The image is a close-up of a flower.", "A close-up of a flower."),
        ("The image appears to be a still from a film.", "A still from a film."),
        ("The image is of a dog.", "A dog."),
        ("This is an image of a dog.", "A dog."),
        ("Here is a picture of a dog.", "A dog."),
        ("An image of a dog.", "A dog."),
        ("In this picture, we can see a dog.", "A dog."),
        ("In this image we can see a dog.", "A dog."),
        ("In the image, there are two dogs.", "There are two dogs."),
        ("In the picture a man stands.", "A man stands."),
        ("in the photo, you see the sea.", "The sea."),
        ("We can see a dog.", "A dog."),
        ("In this image, the picture shows a dog.", "A dog."),
        ("The  image\nshows  a dog.", "A dog."),
        ('The image shows "stop" on a sign.', '"Stop" on a sign.'),
        ("The image shows iPhones on a table.", "iPhones on a table."),
        ("The image shows élan.", "Élan."),
        ("The video shows a runner.", "A runner."),
    ],
)
def test_openings_are_removed(caption: str, expected: str) -> None:
    assert remove_opening(caption) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "A dog.",
        "The image's background is blue.",
        "The image does not show any people.",
        "The image is dark.",
        "The image is a bit dark.",
        "The images show dogs.",
        "The picture frame hangs on a wall.",
        "The photographer shows a camera.",
        "The painting shows a dog.",  # that it is a painting is content
        "A photo of a dog.",
        "In the image on the left, a dog sits.",
        "In the center of the image, a dog sits.",
        "In the picturesque valley, a river runs.",
        "This picture has a white background.",
        "There is a dog.",
        "The image shows",
        "The image shows.",
        "In this image, ",
        "iPhone on a table",
        "",
    ],
)
def test_other_text_is_unchanged(caption: str) -> None:
    assert remove_opening(caption) == caption.strip()


def test_custom_openings() -> None:
    assert remove_opening("Sure! here it is: a dog.", ["Sure!", "Here it is"]) == "A dog."
    assert remove_opening("The photographer smiles.", ["the photo"]) == "The photographer smiles."
    assert remove_opening("The image shows a dog.", ["Sure!"], common=False) == "The image shows a dog."


WORDS = "the image shows this picture in we can see a dog of is an there, two that. it photo"
words = st.sampled_from(sorted(WORDS.split()))


@given(st.lists(words, max_size=14).map(" ".join))
def test_the_result_is_a_suffix_without_an_opening(caption: str) -> None:
    left = remove_opening(caption)
    assert caption.lower().endswith(left.lower())
    assert bool(left) == bool(caption)
    assert remove_opening(left) == left
    if left != caption and left[0].isalpha():
        assert left[0].isupper()


# Repetition


def has_repetition(items: list[int], min_length: int) -> bool:
    """Test the definition by brute force."""
    for start in range(len(items)):
        for period in range(1, len(items) // 3 + 1):
            needed = max(min_length, period * (5 if period < 8 else 3))
            if start + needed > len(items):
                continue
            if all(items[index] == items[index + period] for index in range(start, start + needed - period)):
                return True
    return False


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.integers(1, 12),
    st.lists(st.integers(0, 5), max_size=12),
    st.lists(st.integers(0, 5), max_size=12),
)
def test_repetition_in_ids_matches_the_definition(
    unit: list[int], times: int, head: list[int], tail: list[int]
) -> None:
    ids = head + unit * times + tail
    found = find_repetition(ids)
    assert (found is not None) == has_repetition(ids, 24)
    if found:
        length = round(found.period * found.repeats)
        run = ids[found.start : found.start + length]
        assert length >= 24 and run[found.period :] == run[: -found.period]
        assert found.unit == " ".join(map(str, run[: found.period]))


@pytest.mark.parametrize(
    "text",
    [
        "A shelf. " + "There is a book to the left of the book. " * 3,
        "A crowd: " + "a man and a woman, " * 5 + "and so on",
        "very " * 16,
        "A sign reads " + "HA" * 60,
        "天空是蓝色的，" * 20,
        "The dog is very happy. It runs. The dog is very happy. It sits. The dog is very happy. It barks.",
        "Before " + " ".join(f"word{number}" for number in range(30)) + " one two three four five six" * 5 + " after.",
    ],
)
def test_repetition_in_text(text: str) -> None:
    assert find_repetition(text) is not None and "repetition: " in violations(text, TextRules())[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A dog.",
        "In the top left there are four small blue stars. In the bottom left there are two small yellow squares. In "
        "the bottom right there are four small blue circles.",
        "A man in a red shirt stands beside a man in a blue shirt, beside a man in a green shirt, beside a man in a "
        "red shirt. Behind them stand a woman in a red dress, a woman in a blue dress and a woman in a green dress.",
        "From left to right: red, blue, red, blue, red, blue, red.",
        "The neon sign says 'ha ha ha ha ha'. Below it, bottles stand in a row: green, green, green, brown, green.",
        "It is red. It is red. It is red.",
        "One cup stands on the left. One cup stands on the right. One plate stands on the left. One plate lies behind.",
        "The scoreboard shows 0 0 0 1 0 0 2 0 0. The clock shows 10:10.",
        "Table of contents ........................ 3\nIndex ........................ 9",
    ],
)
def test_ordinary_captions_have_no_repetition(text: str) -> None:
    assert find_repetition(text) is None


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """The modules that render scenes and write their captions."""
    monkeypatch.syspath_prepend(str(TINY_SCRIPTS))
    yield importlib.import_module("scenes"), importlib.import_module("captions")
    for name in ("scenes", "captions"):
        sys.modules.pop(name, None)


def test_correct_captions_of_scenes_have_no_repetition(tiny: tuple[Any, Any]) -> None:
    scenes, captions = tiny
    tokenizer = AutoProcessor.from_pretrained("sharegpt4v-tiny").tokenizer
    for number in range(1500):
        scene = scenes.sample_scene(scenes.scene_rng(5, number))
        for form in captions.FORMS:
            text = form(scene)
            assert find_repetition(text) is None and find_repetition(tokenizer.encode(text)) is None, text


def test_repetition_in_the_ids_of_a_caption_can_be_removed() -> None:
    tokenizer = AutoProcessor.from_pretrained("sharegpt4v-tiny").tokenizer
    text = "The background is white. " + "In the top left there are two red stars. " * 4 + "The end."
    ids = tokenizer.encode(text)
    found = find_repetition(ids)
    assert found is not None and found.repeats >= 3
    once = tokenizer.decode(ids[: found.start + found.period])
    assert once.count("two red stars") == 1 and find_repetition(once) is None


def test_the_time_for_a_long_caption_is_not_quadratic() -> None:
    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abcdefgh", k=4)) for _ in range(100_000))
    assert find_repetition(text) is None  # in quadratic time this would take an hour


# Length, words, tags


@given(st.text(alphabet=st.sampled_from("ab.!? \n\"'。"), max_size=40))
def test_concatenated_sentences_are_the_text(text: str) -> None:
    assert "".join(split_sentences(text)) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Mr. and Mrs. Fox live at No. 5, St. Louis. They are 3.5 ft. tall.", 2),
        ('He says "Stop!" and waits. "Stop!" She stops. Then?', 4),
        ("One line\nanother line", 2),
        ("It costs 3.50. J. R. Smith paid, e.g. in cash.", 2),
        ("狗在跑。猫在睡。", 2),
        ("no end", 1),
        ("", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(split_sentences(text)) == count


def test_long_captions_lose_whole_sentences() -> None:
    text = "A dog runs. It is brown. It barks loudly at a cat."
    assert clean(text, TextRules(max_words=6)) == "A dog runs. It is brown."
    assert clean(text, TextRules(max_sentences=1)) == "A dog runs."
    assert clean(text, TextRules(max_words=2)) == "A dog runs."
    assert violations(clean(text, TextRules(max_words=2)), TextRules(max_words=2)) == ("3 words, at most 2 allowed",)
    assert clean("cat, dog, red bird, sea", TextRules(as_tags=True, max_words=4)) == "cat, dog, red bird"


@given(st.text(max_size=60), st.integers(1, 5), st.integers(1, 8), st.booleans(), st.booleans())
def test_cleaning_never_empties_a_caption(text: str, sentences: int, max_words: int, tags: bool, strip: bool) -> None:
    rules = TextRules(strip_openings=strip, as_tags=tags, max_sentences=sentences, max_words=max_words)
    cleaned = clean(text, rules)
    assert bool(cleaned) == bool(text.strip())
    assert cleaned == cleaned.strip()


def test_tags_are_normalized() -> None:
    rules = TextRules(as_tags=True, strip_openings=True)
    assert clean("Tags: Cat, 'black cat', CAT, sofa, and sunlight.", rules) == "cat, black cat, sofa, sunlight"
    assert clean("1. cat\n2. sofa\n- 3 dogs\n* #sun", rules) == "cat, sofa, 3 dogs, sun"
    assert clean("!!!", rules) == "!!!"


def test_words_match_whole_and_lower_case_matches_any_case() -> None:
    assert has_word("The CAT sat", "cat") and has_word("cat's", "cat") and not has_word("concatenate", "cat")
    assert has_word("an Apple logo", "Apple") and not has_word("an apple", "Apple")
    assert has_word("written in C++.", "c++") and has_word("#1 fan", "#1") and not has_word("a#1 fan", "a#")
    assert has_word("a stock\nphoto", "stock photo") and not has_word("stock photos", "stock photo")
    assert has_word("一只黑猫", "猫")
    assert missing_words("a dog", ["cat", "dog", "Dog"]) == ["cat", "Dog"]
    assert count_words("a well-lit room, 3 m wide") == 6 and count_words("黑猫 cat") == 3


def test_violations_are_described() -> None:
    rules = TextRules(min_words=4, required_words=("cat",), forbidden_words=("stock photo",))
    assert violations("a Stock photo", rules) == (
        "3 words, at least 4 required",
        "required word missing: cat",
        "forbidden word: stock photo",
    )
    assert violations("A cat on a sofa", rules) == () and violations("", TextRules()) == ("empty",)
    assert violations("fine text", TextRules(), [5] * 30)[0].startswith("repetition: '5' 30 times")
    assert violations("fine text", TextRules(refuse_loops=False), [5] * 30) == ()


def test_rules_of_a_style_and_of_a_user_are_combined() -> None:
    style = TextRules(strip_openings=True, max_sentences=1, required_words=("cat",))
    user = TextRules(min_words=3, max_sentences=2, required_words=("dog", "cat"))
    assert style.combine(user) == TextRules(
        strip_openings=True, max_sentences=2, min_words=3, required_words=("cat", "dog")
    )
    assert style.combine(TextRules()) == style


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_words": 0}, "max_words must be 1 or more, got 0"),
        ({"min_words": 5, "max_words": 4}, "min_words 5 is more than max_words 4"),
        ({"required_words": (" ",)}, "required_words contains an empty word"),
        ({"required_words": ("a",), "forbidden_words": ("a",)}, "'a' is both required and forbidden"),
    ],
)
def test_invalid_rules_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextRules(**options)
