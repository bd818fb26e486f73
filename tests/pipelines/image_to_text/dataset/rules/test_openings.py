"""Openings are removed from the start of captions, and other text is unchanged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindone.pipelines.image_to_text.dataset.rules.openings import remove_opening


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
