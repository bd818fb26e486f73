"""Measures which images count as near-equal, and what it costs to group them: `python benchmarks/near_images.py`.

Copies (JPEG of quality 60, half the size) of rendered scenes should be near-equal to them; scenes with one group of
another shape, color, size or number should not. The groups of `--images` random hashes, a tenth of which are noisy
copies, give time and memory.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from PIL import Image

from mindone.pipelines.image_to_text.dataset.audit.image_hash import LENGTH, MAX_DIFFERENCE, image_hash, read_hash
from mindone.pipelines.image_to_text.dataset.audit.near_images import NearImages

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples/sharegpt_4v/tiny"))
import scenes


def copies(image: Image.Image) -> dict[str, Image.Image]:
    """Return the copies of an image."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return {
        "jpeg": Image.open(file).convert("RGB"),
        "half": image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    }


def others(scene: scenes.Scene, rng: random.Random) -> dict[str, scenes.Scene]:
    """Return scenes that differ from one in one group."""
    index = rng.randrange(len(scene.groups))
    group = scene.groups[index]
    changes: dict[str, dict[str, Any]] = {
        "shape": {"shape": rng.choice([shape for shape in scenes.SHAPES if shape != group.shape])},
        "color": {"colour": rng.choice([c for c in scenes.clear_colours(scene.background) if c != group.colour])},
        "size": {"size": "small" if group.size == "large" else "large"},
        "number": {"count": group.count % 4 + 1},
    }
    return {
        name: replace(scene, groups=(*scene.groups[:index], replace(group, **change), *scene.groups[index + 1 :]))
        for name, change in changes.items()
    }


def shares(count: int, size: int) -> dict[str, float]:
    """Return the share of near-equal pairs by kind."""
    near: dict[str, list[bool]] = {}
    for number in range(count):
        rng = scenes.scene_rng(9, number)
        scene = scenes.sample_scene(rng)
        state = rng.getstate()
        image = scenes.render(scene, rng, size)
        versions = copies(image)
        for name, other in others(scene, random.Random(number)).items():
            rng.setstate(state)
            versions[name] = scenes.render(other, rng, size)
        own = read_hash(image_hash(image)).astype(int)
        for name, version in versions.items():
            difference = np.abs(read_hash(image_hash(version)) - own).max()
            near.setdefault(name, []).append(bool(difference <= MAX_DIFFERENCE))
    return {name: round(sum(found) / len(found), 4) for name, found in near.items()}


def grouping(count: int) -> dict[str, Any]:
    """Return what it costs to group random hashes, and how many of the copies were found."""
    rng = np.random.default_rng(0)
    near = NearImages()
    before, started, made = peak_mib(), time.perf_counter(), 0
    kept: list[np.ndarray] = []
    for number in range(count):
        if number % 10 == 9:
            values = kept[int(rng.integers(len(kept)))] + rng.integers(-1, 2, LENGTH)
            made += 1
        else:
            # Means of brightness and a smooth picture: neighbors are similar, as in photographs.
            coarse = rng.integers(4, 60, 25)
            values = np.repeat(coarse, LENGTH // 25) + rng.integers(-3, 4, LENGTH)
            values = values.clip(1, 62)
            if len(kept) < 2000:
                kept.append(values)
        bits = np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, -6:]
        near.add(base64.b64encode(np.packbits(bits).tobytes()).decode(), f"{number:07d}.png")
    added = time.perf_counter()
    found = near.find()
    ended = time.perf_counter()
    near.close()
    return {
        "images": count,
        "copies": made,
        "found": found.images,
        "seconds_to_add": round(added - started, 1),
        "seconds_to_group": round(ended - added, 1),
        "peak_mib": round(peak_mib()),
        "peak_mib_before": round(before),
    }


def peak_mib() -> float:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Print the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=500, help="number of scenes (default: %(default)s)")
    parser.add_argument("--images", type=int, default=20_000, help="number of hashes (default: %(default)s)")
    arguments = parser.parse_args()
    result = {
        "near_equal": {f"{size} pixels": shares(arguments.scenes, size) for size in (96, 192, 336)},
        "grouping": grouping(arguments.images),
        "machine": describe(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
