"""Caption held-out scenes and print, as one JSON object, the share of captions whose facts are all correct."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import fields

from captions import parse_caption
from scenes import Group, Scene, render, sample_scene, scene_rng

from mindone.pipelines import pipeline

FACTS = tuple(field.name for field in fields(Group) if field.name != "position")


def correct_facts(stated: Scene | None, scene: Scene) -> Counter[str]:
    """Count the facts of `scene` that a caption states correctly; groups are matched by position."""
    if stated is None:
        return Counter()
    correct = Counter(background=int(stated.background == scene.background))
    groups = {group.position: group for group in stated.groups}
    for group in scene.groups:
        other = groups.get(group.position)
        correct["position"] += other is not None
        for fact in FACTS:
            correct[fact] += other is not None and getattr(other, fact) == getattr(group, fact)
    return correct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=1000, help="seed of the scenes; their facts never occur in training"
    )
    parser.add_argument("--count", type=int, default=500, help="number of scenes")
    parser.add_argument("--model", default="sharegpt4v-tiny", help="name or directory")
    parser.add_argument("--dtype", help="type of the weights in memory: float32, float16, bfloat16, int8, int4")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="include the first N wrong captions in the JSON"
    )
    args = parser.parse_args()

    scenes = []
    images = []
    for index in range(args.count):
        rng = scene_rng(args.seed, index)
        scenes.append(sample_scene(rng, held_out=True))
        images.append(render(scenes[-1], rng))
    captioner = pipeline("image-to-text", model=args.model, dtype=args.dtype)
    answers = captioner(images, batch_size=args.batch_size, max_new_tokens=64)
    captions = [answer[0]["generated_text"] for answer in answers]

    stated = [parse_caption(text) for text in captions]
    correct: Counter[str] = Counter()
    for one, scene in zip(stated, scenes, strict=True):
        correct += correct_facts(one, scene)
    groups = sum(len(scene.groups) for scene in scenes)
    wrong = [text for text, one, scene in zip(captions, stated, scenes, strict=True) if one != scene]
    report = {
        "seed": args.seed,
        "count": args.count,
        "all_facts_right": round(1 - len(wrong) / args.count, 4),
        "parts_right": {fact: round(correct[fact] / groups, 4) for fact in ("position", *FACTS)}
        | {"background": round(correct["background"] / args.count, 4)},
    }
    if args.show:
        report["wrong"] = wrong[: args.show]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
