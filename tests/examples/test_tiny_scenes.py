"""The scenes of sharegpt4v-tiny: a caption is parsed back into exactly its scene's facts, and images show them."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from captions import DEFAULT_QUESTION, FORMS, QUESTIONS, caption, parse_caption, question
from scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    POSITIONS,
    SHAPES,
    SIZES,
    Group,
    Scene,
    is_held_out,
    render,
    sample_scene,
    scene_rng,
)
from vocabulary import SYSTEM, sentences, train_vocabulary

# Area of one object as a fraction of the image: the largest small object (a square) is below, the smallest large one
# above.
SIZE_BORDER = 0.0147


def scenes(count: int, seed: int = 1, held_out: bool = False) -> list[Scene]:
    return [sample_scene(scene_rng(seed, index), held_out) for index in range(count)]


def mutations(scene: Scene) -> Iterator[Scene]:
    """Yield every scene that differs in exactly one fact, or lacks one group."""
    for name in BACKGROUNDS:
        if name != scene.background:
            yield replace(scene, background=name)
    values = {"count": COUNTS, "size": SIZES, "colour": COLOURS, "shape": SHAPES, "position": POSITIONS}
    taken = {group.position for group in scene.groups}
    for index, group in enumerate(scene.groups):
        rest = scene.groups[:index] + scene.groups[index + 1 :]
        if rest:
            yield Scene(scene.background, rest)
        for field, choices in values.items():
            for value in choices:
                if value != getattr(group, field) and not (field == "position" and value in taken):
                    yield Scene(scene.background, (*rest, replace(group, **{field: value})))


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_every_sentence_form_is_parsed_back_into_the_same_facts(form: int) -> None:
    for scene in scenes(2000):
        assert parse_caption(FORMS[form](scene)) == scene


def test_one_wrong_fact_makes_a_caption_wrong() -> None:
    for index, scene in enumerate(scenes(60)):
        for wrong in mutations(scene):
            assert parse_caption(FORMS[index % len(FORMS)](wrong)) == wrong != scene


def test_one_wrong_word_makes_a_caption_wrong() -> None:
    words = [w for table in (SIZES, COLOURS, SHAPES, BACKGROUNDS) for name in table for w in name.split()]
    words += ["two", "three", "four", "dog", "not", "no", "top", "bottom", "left", "right", "center"]
    facts = re.compile(rf"\b({'|'.join([*words, *(s + 's' for s in SHAPES)])})\b")
    rng = random.Random(0)
    for scene in scenes(300):
        text = caption(scene, rng)
        for match in facts.finditer(text):
            for word in words:
                if word != match.group():
                    wrong = text[: match.start()] + word + text[match.end() :]
                    assert parse_caption(wrong) != scene, wrong


def test_the_order_of_the_groups_does_not_matter() -> None:
    first, second = Group(1, "small", "red", "star", "top left"), Group(3, "large", "blue", "circle", "bottom right")
    assert Scene("white", (first, second)) == Scene("white", (second, first))
    text = "A white background. The bottom right shows three large blue circles. The top left shows a small red star."
    assert parse_caption(text) == Scene("white", (first, second))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A small red star.",
        "There is a small red star in the top left on a white background",  # truncated
        "There is a small red star in the top left.",  # no background
        "There is a small red stars in the top left on a white background.",
        "There are two small red star in the top left on a white background.",
        "There is a small red star on a white background.",  # no position
        "There is a small red star in the center on a white background.",  # no such position
        "There is a red star in the top left on a white background.",  # no size
        "There is no small red star in the top left on a white background.",
        "There is a small red star and a dog in the top left on a white background.",
        "There is a small red star in the top left on a white background. The background is black.",
        "There is a small red star in the top left and a small blue star in the top left on a white background.",
        "There is a small red star a small blue star in the top left in the top right on a white background.",
    ],
)
def test_unclear_captions_are_not_parsed(text: str) -> None:
    assert parse_caption(text) is None


def test_grammar() -> None:
    one = Scene("gray", (Group(1, "large", "orange", "square", "bottom left"),))
    assert FORMS[0](one) == "The background is gray. In the bottom left there is a large orange square."
    for scene in scenes(500):
        for form in FORMS:
            text = form(scene)
            assert text[0].isupper() and text.endswith(".") and "  " not in text
            assert not re.search(r"\b(a \w+ \w+ \w+s|(two|three|four) \w+ \w+ (?!\w+s\b)\w+)\b", text), text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


def test_a_seed_determines_scene_image_and_caption() -> None:
    def draw(index: int) -> tuple[Scene, bytes, str, str]:
        rng = scene_rng(7, index)
        scene = sample_scene(rng)
        return scene, render(scene, rng).tobytes(), caption(scene, rng), question(rng)

    assert [draw(i) for i in range(20)] == [draw(i) for i in range(20)]
    assert len({draw(i)[1] for i in range(20)}) == 20


def test_held_out_scenes_never_occur_in_training() -> None:
    training, held_out = set(scenes(20_000, seed=1)), set(scenes(2000, seed=2, held_out=True))
    assert not training & held_out
    assert all(map(is_held_out, held_out)) and not any(map(is_held_out, training))
    assert {len(scene.groups) for scene in held_out} == {1, 2, 3}


def test_scenes_are_unambiguous() -> None:
    for scene in scenes(2000):
        assert len({g.position for g in scene.groups}) == len(scene.groups)
        assert len({(g.colour, g.shape) for g in scene.groups}) == len(scene.groups)
        assert all(math.dist(COLOURS[g.colour], BACKGROUNDS[scene.background]) > 100 for g in scene.groups)


@pytest.mark.parametrize("size", [64, 96, 256])
def test_images_show_colour_size_and_position(size: int) -> None:
    for index, scene in enumerate(scenes(150)):
        for group in scene.groups:
            single = Scene(scene.background, (group,))
            picture = np.asarray(render(single, random.Random(index), size)).astype(float)
            assert picture.shape == (size, size, 3)
            ground, colour = np.array(BACKGROUNDS[scene.background]), np.array(COLOURS[group.colour])
            # coverage of each pixel: 0 is the background's colour, 1 the object's
            covered = (picture - ground) @ (colour - ground) / np.sum((colour - ground) ** 2)
            rows, columns = np.nonzero(covered > 0.5)
            middle = (int(2 * columns.mean() / size), int(2 * rows.mean() / size))
            assert middle == POSITIONS[group.position], (scene, group)
            area = len(rows) / size**2 / group.count
            assert (area > SIZE_BORDER) == (group.size == "large"), (scene, group, area)
            inside = picture[covered > 0.9].mean(axis=0)
            assert min(COLOURS, key=lambda name: math.dist(COLOURS[name], inside)) == group.colour


def test_the_default_question_is_the_most_frequent() -> None:
    asked = [question(random.Random(i)) for i in range(3000)]
    assert set(asked) == set(QUESTIONS)
    assert max(set(asked), key=asked.count) == DEFAULT_QUESTION


def test_vocabulary(tmp_path: Path) -> None:
    train_vocabulary(tmp_path / "tokenizer.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id(), pieces.pad_id()) == (0, 1, 2, -1)
    assert (tmp_path / "tokenizer.model").stat().st_size < 15_000
    for text in [*sentences(200, seed=3), SYSTEM, "  two  spaces\n", "naïve 東京 🙂"]:
        assert pieces.decode(pieces.encode(text)) == text
    words = {w for text in sentences(2000, seed=3) for w in re.findall(r"[A-Za-z]+", text)}
    words -= {"s"}  # from "user's"
    assert [w for w in words if len(pieces.encode(w)) > 1] == []
    assert max(len(pieces.encode(form(scene))) for scene in scenes(500) for form in FORMS) <= 45
