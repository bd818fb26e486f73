"""sharegpt4v-tiny as the earlier MindSpore port's converter and folders would hold it."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

TINY = Path(str(files("mindone.models.share4v"))) / "assets" / "sharegpt4v-tiny"
LLAMA_CKPT, TOWER_CKPT = "mindspore_llama_model.ckpt", "vit-large336-l12.ckpt"
# What its share4v/tools/convert_weights.py replaces, in its order; each in names that begin as the key says.
RENAMES = {
    "model.layers": (
        ("self_attn.q_proj", "attention.wq"),
        ("self_attn.k_proj", "attention.wk"),
        ("self_attn.v_proj", "attention.wv"),
        ("self_attn.o_proj", "attention.wo"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.up_proj", "feed_forward.w3"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ),
    "vision_model": (
        ("vision_model", "vision_tower.vision_model"),
        ("position_embedding.weight", "position_embedding.embedding_table"),
    ),
    "": (("model.norm", "model.norm_out"),),
}


def converted(name: str) -> str:
    """Return the name that the converter gives to one of the original's."""
    begin = next(begin for begin in RENAMES if name.startswith(begin))
    for old, new in RENAMES[begin]:
        name = name.replace(old, new)
    if begin == "vision_model" and "norm" in name:
        name = name.replace("weight", "gamma").replace("bias", "beta")
    return name.replace("embed_tokens.weight", "embed_tokens.embedding_table")


def write_port(folder: Path, tower: str = ".", configs: bool = True) -> Path:
    """Write the port's model folder and return it.

    Args:
        folder: made by this.
        tower: where the vision tower's .ckpt lies, from `folder`.
        configs: put the port's `share4v/configs` into it, which it kept among its sources.
    """
    import mindspore as ms
    from safetensors.numpy import load_file

    folder.mkdir(parents=True)
    parts: dict[str, list[dict[str, Any]]] = {LLAMA_CKPT: [], TOWER_CKPT: []}
    for ours, array in load_file(TINY / "model.safetensors").items():
        name = ours.replace("vision_tower.vision_model", "vision_model").replace("mm_projector", "model.mm_projector")
        name = name.replace("language_model.model.", "model.").replace("language_model.lm_head", "lm_head")
        part = TOWER_CKPT if name.startswith("vision_model") else LLAMA_CKPT
        parts[part].append({"name": converted(name), "data": ms.Tensor(array.astype(np.float32))})
    config = json.loads((TINY / "config.json").read_text())
    for layer in range(config["text_config"]["num_hidden_layers"]):  # the converter keeps these
        name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        parts[LLAMA_CKPT].append({"name": name, "data": ms.Tensor(np.ones(16, np.float32))})
    (folder / tower).mkdir(exist_ok=True)
    ms.save_checkpoint(parts[LLAMA_CKPT], str(folder / LLAMA_CKPT))
    ms.save_checkpoint(parts[TOWER_CKPT], str(folder / tower / TOWER_CKPT))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    if configs:
        write_configs(folder, str(folder / tower / TOWER_CKPT))
    return folder


def write_configs(folder: Path, tower_path: str) -> None:
    """Write the port's `configs`: config.json and vit/, filled in as its readme tells."""
    config = json.loads((TINY / "config.json").read_text())
    text = {name: value for name, value in config["text_config"].items() if name not in ("rope_theta", "head_dim")}
    port = {
        **text,
        "_name_or_path": "MS_ShareGPT4V-7B",
        "architectures": ["Share4VLlamaForCausalLM"],
        "model_type": "share4v",
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "mm_hidden_size": config["vision_config"]["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "share4v/configs/vit",
        "mm_vision_tower_path": tower_path,
        "dtype": "float16",
        "tune_vision_tower": False,
        "use_return_dict": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vit").mkdir()
    (folder / "config.json").write_text(json.dumps(port))
    tower = {"model_type": "clip_vision_model", **config["vision_config"]}
    (folder / "vit" / "config.json").write_text(json.dumps(tower))
    shutil.copy(TINY / "preprocessor_config.json", folder / "vit")
