"""Verification: facts that captions state, and altered ones that a model finds (more in benchmarks/verify.py)."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from helpers.paths import TINY_SCRIPTS

from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.evaluation.stated_facts import StatedFact, stated_facts
from mindone.pipelines.image_to_text.evaluation.verify import Verifier
from mindone_share4v.cli import main

COUNT = 8
WORDS = {"color": ("red", "blue"), "number": ("two", "four"), "place": ("left", "right", "top", "bottom")}


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    sys.path.insert(0, str(TINY_SCRIPTS))
    try:
        yield importlib.import_module("scenes"), importlib.import_module("captions")
    finally:
        sys.path.remove(str(TINY_SCRIPTS))
        for name in ("scenes", "captions"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier(pipeline("image-to-text", model="sharegpt4v-tiny"), batch_size=16)


def altered(caption: str, rng: random.Random) -> tuple[str, StatedFact, str]:
    """The caption with one fact altered."""
    facts = [fact for fact in stated_facts(caption) if fact.start and fact.word.islower()]
    facts = [fact for fact in facts if "background" not in caption[fact.start : fact.start + 25]]
    fact = rng.choice(facts)
    word = rng.choice([word for word in WORDS[fact.kind] if word in fact.others])
    return caption[: fact.start] + word + caption[fact.start + len(fact.word) :], fact, word


def test_altered_facts_are_found_and_true_captions_are_not_flagged(
    modules: tuple[ModuleType, ModuleType], verifier: Verifier
) -> None:
    scenes, captions = modules
    images, true, changes = [], [], []
    for number in range(COUNT):
        rng = scenes.scene_rng(3, number)
        scene = scenes.sample_scene(rng, held_out=True)
        images.append(scenes.render(scene, rng))
        true.append(captions.caption(scene, rng))
        changes.append(altered(true[-1], rng))
    assert verifier.check(images, true) == [[]] * COUNT
    for found, (_, fact, word) in zip(verifier.check(images, [one[0] for one in changes]), changes, strict=True):
        own = [one for one in found if one.start == fact.start]
        assert [(one.kind, one.stated, one.expected) for one in own] == [(fact.kind, word, fact.word)]


def test_facts_with_their_alternatives() -> None:
    facts = stated_facts("A grey cat and Two dogs, a leftover, on the left")
    assert [(fact.kind, fact.word, fact.start) for fact in facts] == [
        ("color", "grey", 2),
        ("number", "Two", 15),
        ("place", "left", 44),
    ]
    assert facts[0].same == ("gray", "grey") and "red" in facts[0].others and "gray" not in facts[0].others
    assert {"a", "one", "three"} <= set(facts[1].others) and facts[2].others == ("right",)
    assert stated_facts("猫") == []


def test_the_command(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes, captions = modules
    rows = []
    for number in range(2):
        rng = scenes.scene_rng(3, number)
        scene = scenes.sample_scene(rng, held_out=True)
        scenes.render(scene, rng).save(tmp_path / f"{number}.png")
        text = captions.caption(scene, rng)
        rows.append({"path": f"{number}.png", "text": text if number else altered(text, rng)[0]})
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["match", str(tmp_path / "t.jsonl"), "--verify"]) == 0
    assert "2 rows, 1 with contradictions; 0 rows failed" in capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "t_match.jsonl").read_text().splitlines()]
    assert [bool(row["contradictions"]) for row in written] == [True, False]
    assert set(written[0]["contradictions"][0]) == {"kind", "stated", "expected", "start", "log_ratio"}
    assert main(["match", str(tmp_path / "t.jsonl")]) == 2
    assert "give --clip DIR, --verify or both" in capsys.readouterr().err
