"""The checkpoint in the package captions held-out scenes correctly; evaluate.py prints the share as JSON."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from captions import parse_caption
from helpers.paths import EXAMPLES
from helpers.warm_processes import warm_python
from PIL import Image
from scenes import render, sample_scene, scene_rng

from mindone.models.share4v.processing.prompts import Prompt
from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.captioning import ImageToTextPipeline


@pytest.fixture(scope="module")
def captioner() -> ImageToTextPipeline:
    return pipeline("image-to-text")


def test_held_out_scenes_are_captioned_with_every_fact_correct(captioner: ImageToTextPipeline) -> None:
    count = 60
    correct = 0
    rngs = [scene_rng(4242, index) for index in range(count)]
    scenes = [sample_scene(rng, held_out=True) for rng in rngs]
    pictures = [render(scene, rng) for scene, rng in zip(scenes, rngs, strict=True)]
    for answer, scene in zip(captioner(pictures, batch_size=16), scenes, strict=True):
        correct += parse_caption(answer[0]["generated_text"]) == scene
    assert correct >= 0.9 * count


def test_a_complete_prompt_gives_the_facts_that_the_question_gives(captioner: ImageToTextPipeline) -> None:
    """The prompt of every LLaVA example, without the system prompt and with a line end before ASSISTANT.

    Its own text is left unchanged, but the system prompt is put in front: verbatim, the model answers like one that was
    never trained with such prompts.
    """
    rngs = [scene_rng(4242, index) for index in range(80)]
    scenes = [sample_scene(rng, held_out=True) for rng in rngs]
    pictures = [render(scene, rng) for scene, rng in zip(scenes, rngs, strict=True)]
    prompt = "USER: <image>\nDescribe this image\nASSISTANT:"
    correct = Counter[str]()
    for kind, asked in (("question", "Describe this image"), ("complete", prompt), ("verbatim", Prompt(prompt))):
        answers = captioner.answer([asked] * 80, [[picture] for picture in pictures], {"max_new_tokens": 64})
        for answer, scene in zip(answers, scenes, strict=True):
            correct[kind] += parse_caption(answer.text) == scene
    assert correct["question"] == correct["complete"] == 80
    assert correct["verbatim"] < 10


def test_a_larger_image_gets_the_same_facts(captioner: ImageToTextPipeline) -> None:
    rng = scene_rng(4242, 0)
    scene = sample_scene(rng, held_out=True)
    large = render(scene, rng, size=480)
    assert parse_caption(captioner(large)[0]["generated_text"]) == scene


def test_the_readme_shows_the_caption_of_its_image(captioner: ImageToTextPipeline) -> None:
    caption = captioner(Image.open(EXAMPLES / "scene.png"))[0]["generated_text"]
    assert f"> {caption}\n" in (EXAMPLES.parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_package_stays_small() -> None:
    assets = Path(str(files("mindone.models.share4v"))) / "assets"
    assert sum(path.stat().st_size for path in assets.rglob("*")) < 8e6


def test_the_evaluation_script_prints_one_json_object() -> None:
    script = EXAMPLES / "tiny" / "evaluate.py"
    command = [warm_python(), script, "--seed", "5", "--count", "4", "--show", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    report = json.loads(done.stdout)
    assert report["count"] == 4 and report["seed"] == 5
    assert 0 <= report["all_facts_right"] <= 1
    assert set(report["parts_right"]) == {"position", "count", "size", "colour", "shape", "background"}
