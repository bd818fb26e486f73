"""Caption a folder with as many cards as `msrun` starts workers: each takes its share and writes a file of its own.

msrun --worker_num=8 --local_worker_num=8 --join=True caption_ranks.py --model sharegpt4v-7b --dtype bfloat16 \
    --images photos --out captions

Workers do not talk to each other: worker R of N captions pictures R, R + N, R + 2N, ... of the sorted list into
OUT/captions-R.jsonl. Run again, it goes on where the files end, and tries again what failed. A picture that cannot be
read has an "error" in place of a "caption"; the exit status stays 0, since msrun ends all workers when one has another.
Without msrun there is one worker.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


def captions(captioner: Any, pictures: list[str], max_new_tokens: int) -> Iterator[dict[str, str]]:
    """Yield a record of each picture; one that cannot be read spoils none but its own."""
    try:
        answers = captioner(pictures, batch_size=len(pictures), max_new_tokens=max_new_tokens)
    except (OSError, ValueError) as error:
        if len(pictures) == 1:
            yield {"image": pictures[0], "error": str(error)}
            return
        for picture in pictures:
            yield from captions(captioner, [picture], max_new_tokens)
        return
    for picture, answer in zip(pictures, answers, strict=True):
        yield {"image": picture, "caption": answer[0]["generated_text"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sharegpt4v-tiny", help="known name, directory, or owner/name on a hub")
    parser.add_argument("--dtype", help="float32, float16, or on an Ascend bfloat16")
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures, in subfolders too")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    arguments = parser.parse_args()
    if os.environ.get("MS_ROLE") == "MS_SCHED":  # msrun also starts a scheduler, for workers that talk to each other
        return 0
    rank, workers = int(os.environ.get("RANK_ID", "0")), int(os.environ.get("MS_WORKER_NUM", "1"))

    import mindspore as ms

    from mindone.pipelines import pipeline

    if ms.get_context("device_target") == "Ascend":
        ms.set_device("Ascend", int(os.environ.get("DEVICE_ID", "0")))
    pictures = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in ENDINGS)[rank::workers]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"captions-{rank}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    # A worker that was killed may have left half a line.
    kept = {line: json.loads(line) for line in lines if line.endswith("\n") and "caption" in json.loads(line)}
    path.write_text("".join(kept), encoding="utf-8")
    done = {record["image"] for record in kept.values()}
    left = [str(picture) for picture in pictures if str(picture) not in done]
    captioner = pipeline("image-to-text", model=arguments.model, dtype=arguments.dtype)
    failed = 0
    with path.open("a", encoding="utf-8") as file:
        for start in range(0, len(left), arguments.batch_size):
            for record in captions(captioner, left[start : start + arguments.batch_size], arguments.max_new_tokens):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                failed += "error" in record
            file.flush()
    print(
        f"worker {rank} of {workers}: {len(left) - failed} captioned, {failed} failed, {len(done)} were there already"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
