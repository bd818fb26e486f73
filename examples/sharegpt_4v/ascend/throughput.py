"""Time captions of one picture on MindSpore's device: first call, first token, tokens a second, for several batches.

python throughput.py --model sharegpt4v-7b --dtype bfloat16 --batch-sizes 1 4 16

One JSON object a line for each batch size. Nothing is used again between calls: each encodes and takes in its picture.
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
    """Seconds of one call that makes exactly `tokens` tokens of each text."""
    model.forget_values()
    start = time.perf_counter()
    ids = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens)
    seconds = time.perf_counter() - start
    if {len(text) for text in ids} != {tokens}:
        raise SystemExit(f"texts have {[len(text) for text in ids]} tokens, {tokens} were asked for")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sharegpt4v-tiny", help="known name, directory, or owner/name on a hub")
    parser.add_argument("--vision-tower", help="directory or name, where config.json's is not to be used")
    parser.add_argument("--dtype", default="float16", help="float32, float16, or on an Ascend bfloat16")
    parser.add_argument("--image", default=str(SCENE), help="path or URL")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=64, help="of each caption, at least 2")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    options = {"vision_tower": arguments.vision_tower, "dtype": arguments.dtype}
    # The cells, on a CPU too: the kernels have a benchmark of their own.
    model = Share4V.from_pretrained(arguments.model, language_backend="llama", vision_backend="clip", **options)
    processor, picture = Share4VProcessor.from_pretrained(arguments.model), load_image(arguments.image)
    for batch in arguments.batch_sizes:
        inputs = processor(images=[picture] * batch, text=["Describe this image"] * batch)
        first_call = timed(model, inputs, arguments.tokens)
        first_token = statistics.median(timed(model, inputs, 1) for _ in range(arguments.rounds))
        whole = statistics.median(timed(model, inputs, arguments.tokens) for _ in range(arguments.rounds))
        result = {"model": arguments.model, "dtype": arguments.dtype, "device": ms.get_context("device_target")}
        result |= {"batch_size": batch, "tokens": arguments.tokens, "first_call_seconds": round(first_call, 3)}
        result |= {"first_token_seconds": round(first_token, 4), "caption_seconds": round(whole, 4)}
        rate = batch * (arguments.tokens - 1) / max(whole - first_token, 1e-9)
        print(json.dumps(result | {"decoded_tokens_per_second": round(rate, 1)}), flush=True)


if __name__ == "__main__":
    main()
