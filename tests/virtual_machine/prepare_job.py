"""python prepare_job.py FOLDER, on the host: writes a converted model, and what the complete model answers here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from helpers.stored_caption import STORED, pixels
from kernel_replica import DTYPE, TOKENS

from mindone.models.share4v import Share4V, convert


def main(folder: Path) -> None:
    """Write model and answer.json."""
    convert("sharegpt4v-tiny", folder / "model", dtype=DTYPE, fast=True)
    model = Share4V.from_pretrained(folder / "model")
    prompt = json.loads(STORED.read_text(encoding="utf-8"))["prompt"]
    picture = pixels(model.config.vision_config.image_size)
    ids = model.generate(np.array([prompt]), picture, max_new_tokens=TOKENS, temperature=0)[0]
    (folder / "answer.json").write_text(json.dumps([int(id) for id in ids]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
