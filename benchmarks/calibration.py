"""What each type of weights costs on sharegpt4v-tiny, and what pictures add to the calibration of int4.

    python benchmarks/calibration.py

The checkpoint is loaded in each type, and converted to int4 with the packaged text only, with scenes, and with scenes
and their captions. The KL divergence from float32 is that of all tokens of correct captions of other scenes, which the
model was not trained on either.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mindone.models.share4v import Share4V, Share4VProcessor, convert

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "sharegpt_4v" / "tiny"))

from captions import caption
from scenes import render, sample_scene, scene_rng

MODEL = "sharegpt4v-tiny"


def captioned(seed: int, count: int) -> list[tuple[Any, str]]:
    """Return scenes that the model was not trained on, with a correct caption each."""
    found = []
    for number in range(count):
        rng = scene_rng(seed, number)
        scene = sample_scene(rng, held_out=True)
        found.append((render(scene, rng), caption(scene, rng)))
    return found


def log_probabilities(model: Share4V, scenes: list[tuple[Any, str]]) -> np.ndarray:
    """Return the log probabilities [N, V] at every token of the captions."""
    processor, found = Share4VProcessor.from_pretrained(MODEL), []
    for image, text in scenes:
        inputs, answer = processor(images=image), processor.tokenizer.encode(text, add_bos=False)
        ids = np.concatenate((inputs["input_ids"], [answer]), 1)
        logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits.asnumpy()[0, -len(answer) - 1 : -1]
        wide = logits.astype(np.float64)
        found.append(wide - wide.max(-1, keepdims=True))
        found[-1] -= np.log(np.exp(found[-1]).sum(-1, keepdims=True))
    return np.concatenate(found)


def main() -> None:
    """Convert and measure; print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=60, help="scenes to calibrate on (default: %(default)s)")
    parser.add_argument("--evaluated", type=int, default=60, help="scenes to evaluate on (default: %(default)s)")
    arguments = parser.parse_args()
    evaluated = captioned(1000, arguments.evaluated)
    exact = log_probabilities(Share4V.from_pretrained(MODEL, dtype="float32"), evaluated)
    print(f"{len(exact)} tokens\n| setting | KL per token | worst token | same most likely token |\n|---|---|---|---|")

    def report(name: str, model: Share4V) -> None:
        rounded = log_probabilities(model, evaluated)
        kl = (np.exp(exact) * (exact - rounded)).sum(-1)
        same = 100 * (exact.argmax(-1) == rounded.argmax(-1)).mean()
        print(f"| {name} | {kl.mean():.1e} | {kl.max():.3f} | {same:.2f} % |", flush=True)

    report("float16", Share4V.from_pretrained(MODEL, dtype="float16"))
    report("int8", Share4V.from_pretrained(MODEL, dtype="int8"))
    report("int8 KV cache, weights in float32", Share4V.from_pretrained(MODEL, dtype="float32", kv_cache_dtype="int8"))
    report("int4 on loading", Share4V.from_pretrained(MODEL, dtype="int4"))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "scenes")
        folder.mkdir()
        scenes = captioned(77, arguments.pictures)
        for name, uses_pictures, has_captions in (
            ("int4, convert", False, False),
            ("int4, convert --calibrate, images only", True, False),
            ("int4, convert --calibrate, images with captions", True, True),
        ):
            for number, (image, text) in enumerate(scenes):
                image.save(folder / f"{number}.png")
                if has_captions:
                    (folder / f"{number}.txt").write_text(text, encoding="utf-8")
            out = Path(work, name.replace(", ", "-").replace(" ", "-"))
            report(
                name,
                Share4V.from_pretrained(convert(MODEL, out, None, "int4", calibrate=folder if uses_pictures else None)),
            )


if __name__ == "__main__":
    main()
