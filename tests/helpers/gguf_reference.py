"""The models whose features, logits and captions llama.cpp computed once, and where the tests have these.

benchmarks/llama_cpp_captions.py makes the file DATA. A model is written anew in every run; `digest` says whether its
tensors are those that llama.cpp read.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.paths import ROOT
from helpers.pictures import scene
from mindone.models.share4v import Share4VConfig, TextConfig, VisionConfig, export_gguf, resolve
from mindone.models.share4v.checkpoint import save_weights
from mindone.models.share4v.checkpoint.weights import expected_shapes
from mindone.models.share4v.configuration import ProjectorConfig

DATA = ROOT / "tests/models/share4v/checkpoint/data/llama_cpp.npz"
QUESTION, NEW_TOKENS, STORED_STEPS = "Describe this image", 32, 6
# Name -> the checkpoint and the type of the files.
CASES = {
    "tiny-f32": ("sharegpt4v-tiny", "f32"),
    "tiny-f16": ("sharegpt4v-tiny", "f16"),
    "tiny-q8_0": ("sharegpt4v-tiny", "q8_0"),
    "tiny-q4_0": ("sharegpt4v-tiny", "q4_0"),
    "random-f32": ("random", "f32"),
    "random-q8_0": ("random", "q8_0"),
}


def image(name: str) -> Image.Image:
    """Return the image of a case; it has the vision tower's size, because llama.cpp resizes in another way."""
    return scene(0, 96 if CASES[name][0] == "sharegpt4v-tiny" else 28)


def write_case(name: str, folder: Path) -> tuple[Path, Path]:
    """Write the files of a case, and return the language model's and the vision tower's."""
    source, dtype = CASES[name]
    if source == "random":
        write_random(folder / "source")
    model, mmproj = folder / "model.gguf", folder / "mmproj.gguf"
    return export_gguf(folder / "source" if source == "random" else source, model, mmproj, dtype=dtype)


def write_random(directory: Path) -> None:
    """Write a checkpoint of a shape that differs from LLaMA's in whatever may differ, with random weights."""
    config = Share4VConfig(
        vision_config=VisionConfig(
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
        ),
        projector_config=ProjectorConfig("mlp2x_gelu"),
        text_config=TextConfig(
            vocab_size=650,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            rms_norm_eps=1e-6,
            rope_theta=500000.0,
            max_position_embeddings=256,
        ),
        select_layer=-1,
        image_aspect_ratio="pad",
    )
    rng = np.random.default_rng(18)
    weights = {}
    for name, shape in expected_shapes(config)[0].items():
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 25)
        is_norm = len(shape) == 1 and "norm" in name and name.endswith("weight")
        weights[name] = (values + is_norm).astype(np.float32)
    save_weights(weights.items(), directory)
    config.save_pretrained(directory)
    for name in ("tokenizer.model", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(resolve("sharegpt4v-tiny") / name, directory)


def digest(*paths: Path) -> str:
    """Return a hash of the tensors of GGUF files: names, types and bytes."""
    from gguf import GGUFReader

    found = hashlib.sha256()
    for path in paths:
        for tensor in sorted(GGUFReader(path).tensors, key=lambda tensor: tensor.name):
            found.update(f"{tensor.name} {tensor.tensor_type.name}".encode())
            found.update(np.ascontiguousarray(tensor.data).tobytes())
    return found.hexdigest()
