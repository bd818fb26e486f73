"""Measure captioning one image on MindSpore's device: first call, first token, tokens per second, for several batches.

This script has never run on an Ascend; its tests run it on a CPU.

python throughput.py --model sharegpt4v-7b --dtype bfloat16 --batch-sizes 1 4 16

Prints one JSON object per line, one for each batch size. Caches are reset between calls: each call encodes its image
and processes its whole prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import mindspore as ms

from mindone.models.share4v import Share4V, Share4VProcessor
from mindone.models.share4v.processing.image_loading import load_image

SCENE = Path(__file__).parents[1] / "scene.png"


def timed(model: Share4V, inputs: dict[str, object], tokens: int) -> float:
    """Return the seconds of one call that generates exactly `tokens` tokens for each sequence."""
    model.forget_values()
    start = time.perf_counter()
    ids = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens)
    seconds = time.perf_counter() - start
    if {len(sequence) for sequence in ids} != {tokens}:
        raise SystemExit(f"the sequences have {[len(sequence) for sequence in ids]} tokens instead of {tokens}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sharegpt4v-tiny", help="known name, directory, or owner/name on a hub")
    parser.add_argument("--vision-tower", help="directory or name (default: the one named in config.json)")
    parser.add_argument("--dtype", default="float16", help="float32, float16, bfloat16, int8 or int4")
    parser.add_argument("--image", default=str(SCENE), help="path or URL of the image")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 4], help="numbers of images to caption together"
    )
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each caption, at least 2")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; the median counts")
    parser.add_argument("--device", choices=("Ascend", "CPU"), help="default: the one that MindSpore finds")
    arguments = parser.parse_args()
    if arguments.device:
        ms.set_device(arguments.device)
    # Use MindSpore cells on a CPU too: benchmarks/bench.py measures the CPU kernels.
    model = Share4V.from_pretrained(
        arguments.model,
        language_backend="llama",
        vision_backend="clip",
        vision_tower=arguments.vision_tower,
        dtype=arguments.dtype,
    )
    processor = Share4VProcessor.from_pretrained(arguments.model, vision_tower=arguments.vision_tower)
    image = load_image(arguments.image)
    for batch in arguments.batch_sizes:
        inputs = processor(images=[image] * batch, text=["Describe this image"] * batch)
        first_call = timed(model, inputs, arguments.tokens)
        first_token = statistics.median(timed(model, inputs, 1) for _ in range(arguments.rounds))
        caption = statistics.median(timed(model, inputs, arguments.tokens) for _ in range(arguments.rounds))
        decoded_per_second = batch * (arguments.tokens - 1) / max(caption - first_token, 1e-9)
        result = {
            "model": arguments.model,
            "dtype": arguments.dtype,
            "device": ms.get_context("device_target"),
            "batch_size": batch,
            "tokens": arguments.tokens,
            "first_call_seconds": round(first_call, 3),
            "first_token_seconds": round(first_token, 4),
            "caption_seconds": round(caption, 4),
            "decoded_tokens_per_second": round(decoded_per_second, 1),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
