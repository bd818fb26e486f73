"""What mindone 0.5.0's Open-Sora examples do with an annotation file, told anew; only the reading, without a model.

The examples are no part of the installed mindone. Where they use mindone's own reader of videos, so does this.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any


def read_plan(data_list: Path, train_fps: float = 24.0) -> list[dict[str, Any]]:
    """`T2V_dataset.read_jsons` and `define_frame_index` of examples/opensora_pku/opensora/dataset/t2v_datasets.py.

    Args:
        data_list: what `--data` names; a line is `FOLDER,ANNOTATIONS`.
        train_fps: frames a second to train at.

    Returns:
        What would be trained on, filters on size and length left out.
    """
    chosen = []
    for line in data_list.read_text().splitlines():
        folder, annotations = line.strip().split(",")
        with open(annotations) as file:  # noqa: PTH123 - in the machine's encoding, as there
            items = json.load(file)
        for item in items:
            item["path"] = os.path.join(folder, item["path"])  # noqa: PTH118
            if item.get("cap") is None:
                continue
            if item["path"].endswith(".mp4"):
                fps, duration, size = (item.get(name) for name in ("fps", "duration", "resolution"))
                if fps is None or duration is None or size is None or None in (size.get("height"), size.get("width")):
                    continue
                item["num_frames"] = int(fps * duration)
                step = fps / train_fps
                item["sample_frame_index"] = [
                    int(place * step) for place in range(item["num_frames"]) if int(place * step) < item["num_frames"]
                ]
            elif not item["path"].endswith(".jpg"):
                raise NameError(item["path"])
            chosen.append(item)
    return chosen


def plan_captions(annotations: Path) -> list[str]:
    """`TextDataset.read_captions` of examples/opensora_pku, with file_column="path" and caption_column="cap"."""
    captions: list[str] = []
    for item in json.loads(annotations.read_text()):
        captions += [item["cap"]] if isinstance(item["cap"], str) else item["cap"]
    return captions


def read_table(csv_path: Path, video_folder: Path) -> list[dict[str, Any]]:
    """`VideoDatasetRefactored._read_data` of examples/opensora_hpcai, with folders of embeddings."""
    with open(csv_path) as file:  # noqa: PTH123 - without newline="", in the machine's encoding, as there
        return [
            {
                **item,
                "video": os.path.join(video_folder, item["video"]),  # noqa: PTH118
                "text_emb": str(Path("embeddings") / Path(item["video"]).with_suffix(".npz")),
            }
            for item in csv.DictReader(file)
        ]


def fetch(row: dict[str, Any], count: int) -> dict[str, Any]:
    """`VideoDatasetRefactored._get_item` without latents: `count` frames by mindone's reader, and the caption."""
    from mindone.data.video_reader import VideoReader

    with VideoReader(row["video"]) as reader:
        return {"video": reader.fetch_frames(num=count), "fps": reader.fps, "caption": row["caption"]}
