"""A small stand-in for sharegpt4v-7b: the weights of sharegpt4v-tiny in the original layout, served as by a mirror."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

MODEL, TOWER = "ShareGPT4V-7B", "ShareGPT4V-7B_Pretrained_vit-large336-l12"
# Folder on the mirror -> the folder that it copies.
SERVED = {
    "sharegpt4v-7b": MODEL,
    "sharegpt4v-13b": MODEL,
    "sharegpt4v-7b-vision-tower": TOWER,
    "sharegpt4v-13b-vision-tower": TOWER,
}
# Prefix of our names -> the part that has these weights, and the prefix of their names there.
NAMES = {
    "vision_tower.": (TOWER, ""),
    "mm_projector.": (MODEL, "model.mm_projector."),
    "language_model.model.": (MODEL, "model."),
    "language_model.lm_head.": (MODEL, "lm_head."),
}

PICTURES = ("photo.jpg", "a.jpg", "b.jpg", "before.jpg", "after.jpg", "photos/1.jpg", "photos/2.jpg", "photos/3.jpg")


def write_original(tiny: Path, folder: Path) -> None:
    """Write the model and its vision tower below `folder`, from the directory of sharegpt4v-tiny."""
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    tensors: dict[str, dict[str, torch.Tensor]] = {MODEL: {}, TOWER: {}}
    for ours, tensor in load_file(tiny / "model.safetensors").items():
        prefix = next(item for item in NAMES if ours.startswith(item))
        part, theirs = NAMES[prefix]
        tensors[part][theirs + ours.removeprefix(prefix)] = tensor
    for part in tensors:
        (folder / part).mkdir(parents=True)
    names = sorted(tensors[MODEL])
    files: dict[str, str] = {}
    for number in (1, 2):
        shard = f"pytorch_model-{number:05d}-of-00002.bin"
        weights = {name: tensors[MODEL][name] for name in names[number - 1 :: 2]}
        torch.save(weights, folder / MODEL / shard)
        files |= dict.fromkeys(weights, shard)
    write_json(folder / MODEL / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": files})
    write_json(folder / MODEL / "config.json", original_config(config))
    torch.save(tensors[TOWER], folder / TOWER / "pytorch_model.bin")
    write_json(folder / TOWER / "config.json", {"model_type": "clip_vision_model", **config["vision_config"]})
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder / MODEL)
    shutil.copy(tiny / "preprocessor_config.json", folder / TOWER)


def original_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return config.json in the original format."""
    return {
        **config["text_config"],
        "model_type": "share4v",
        "architectures": ["Share4VLlamaForCausalLM"],
        "torch_dtype": config["torch_dtype"],
        "mm_hidden_size": config["vision_config"]["hidden_size"],
        "mm_projector_type": config["projector_config"]["projector_type"],
        "mm_vision_select_layer": config["select_layer"],
        "mm_vision_select_feature": config["select_feature"],
        "mm_vision_tower": f"Lin-Chen/{TOWER}",
        "image_aspect_ratio": config["image_aspect_ratio"],
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
    }


def write_mirror(originals: Path, folder: Path) -> None:
    """Copy the originals into the layout of SHARE4V_MIRROR: one folder for each name, with a manifest."""
    for name, part in SERVED.items():
        shutil.copytree(originals / part, folder / name)
        entries = [
            {
                "name": path.name,
                "size": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in sorted((folder / name).iterdir())
        ]
        write_json(folder / name / "manifest.json", {"files": entries})


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def draw_pictures(scene: Path, folder: Path) -> None:
    """Write the images that the pages use into a folder: one scene, rotated and mirrored."""
    with Image.open(scene) as drawn:
        for number, name in enumerate(PICTURES):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            turned = drawn.convert("RGB").rotate(90 * (number % 4))
            (turned if number < 4 else turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).save(path, quality=95)
