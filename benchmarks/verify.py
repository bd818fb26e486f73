"""Measures `share4v match --verify` on rendered scenes: `python benchmarks/verify.py --count 500`.

Each scene has a true caption, and one in which a color, a number or a place is altered. Which of the altered words are
found, and how many true captions are flagged, is printed for several margins.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from pathlib import Path

from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.evaluation.stated_facts import StatedFact, stated_facts
from mindone.pipelines.image_to_text.evaluation.verify import Verifier

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples/sharegpt_4v/tiny"))
import captions
import scenes

MARGINS = (0.5, 1.0, 1.5, 2.0, 3.0)
OTHERS = {
    "color": list(scenes.COLOURS),
    "number": ["two", "three", "four"],
    "place": ["left", "right", "top", "bottom"],
}


def altered(caption: str, rng: random.Random) -> tuple[str, StatedFact] | None:
    """Return a caption with one fact altered, and the fact; None if it has none that can be."""
    facts = [fact for fact in stated_facts(caption) if fact.start and not fact.word[0].isupper()]
    rng.shuffle(facts)
    for fact in facts:
        choices = [word for word in OTHERS[fact.kind] if word in fact.others]
        if choices and not re.match(r"\w+ background", caption[fact.start :]):
            word = rng.choice(choices)
            return caption[: fact.start] + word + caption[fact.start + len(fact.word) :], fact
    return None


def main() -> None:
    """Print the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="number of scenes (default: %(default)s)")
    parser.add_argument("--model", default="sharegpt4v-tiny", help="model (default: %(default)s)")
    arguments = parser.parse_args()
    images, true, wrong, facts = [], [], [], []
    number = 0
    while len(true) < arguments.count:
        rng = scenes.scene_rng(77, number)
        number += 1
        scene = scenes.sample_scene(rng, held_out=True)
        image = scenes.render(scene, rng)
        caption = captions.caption(scene, rng)
        change = altered(caption, rng)
        if change is not None:
            images.append(image)
            true.append(caption)
            wrong.append(change[0])
            facts.append(change[1])
    verifier = Verifier(pipeline("image-to-text", model=arguments.model), margin=min(MARGINS), batch_size=16)
    of_true, of_wrong = verifier.check(images, true), verifier.check(images, wrong)
    result = {}
    for margin in MARGINS:
        hits: dict[str, list[bool]] = {}
        for fact, found in zip(facts, of_wrong, strict=True):
            hit = any(one.start == fact.start and one.log_ratio >= margin for one in found)
            hits.setdefault(fact.kind, []).append(hit)
            hits.setdefault("all", []).append(hit)
        flagged = [any(one.log_ratio >= margin for one in found) for found in of_true]
        result[str(margin)] = {
            "found": {kind: f"{sum(found)} of {len(found)}" for kind, found in sorted(hits.items())},
            "true_captions_flagged": f"{sum(flagged)} of {len(flagged)}",
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
