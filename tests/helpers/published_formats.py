"""Writes a reference model to disk in every form in which checkpoints are published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from .llava import Reference

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOWER = "vit-tiny-l3"
SELECT_FEATURE = {"default": "patch", "full": "cls_patch"}


def write_original(
    reference: Reference, directory: Path, dtype: str = "float32", shards: int = 2, **fields: object
) -> Path:
    """The original's layout: `.bin` shards with an index, the vision tower beside; return the main directory.

    `fields` are added to config.json.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {"main": {}, "tower": {}}
    for name, tensor in _weights(reference, dtype).items():
        part, ours = _original_name(name)
        parts[part][ours] = tensor
    text = reference.model.config.text_config
    inverse = reference.model.model.language_model.rotary_emb.original_inv_freq
    for layer in range(text.num_hidden_layers):
        parts["main"][f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = inverse.clone()
    main, tower = directory / "ShareGPT4V-tiny", directory / TOWER
    for path in (main, tower):
        path.mkdir(parents=True)
    _write_json(main / "config.json", {**_original_config(reference, dtype), **fields})
    _write_shards(parts["main"], main, shards)
    reference.model.config.vision_config.save_pretrained(tower)
    torch.save(parts["tower"], tower / "pytorch_model.bin")
    return main


def write_llava(reference: Reference, directory: Path, dtype: str = "float32") -> Path:
    """What LlavaForConditionalGeneration.save_pretrained writes."""
    model = reference.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to(DTYPES[dtype]).save_pretrained(directory)
    model.to(torch.float32).load_state_dict(before)
    return directory


def write_llava_in_memory_names(reference: Reference, directory: Path, dtype: str = "float32") -> Path:
    """LLaVA's form under the names that transformers has in memory since 4.52."""
    directory.mkdir(parents=True)
    tied = reference.model.config.text_config.tie_word_embeddings
    weights = {name: value for name, value in _weights(reference, dtype).items() if not (tied and "lm_head" in name)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    reference.model.config.save_pretrained(directory)
    return directory


def _weights(reference: Reference, dtype: str) -> dict[str, torch.Tensor]:
    return {name: tensor.to(DTYPES[dtype]).clone() for name, tensor in reference.model.state_dict().items()}


def _original_name(name: str) -> tuple[str, str]:
    names = {
        "model.vision_tower.": ("tower", ""),
        "model.language_model.": ("main", "model."),
        "model.multi_modal_projector.linear_1.": ("main", "model.mm_projector.0."),
        "model.multi_modal_projector.linear_2.": ("main", "model.mm_projector.2."),
        "lm_head.": ("main", "lm_head."),
    }
    prefix = next(item for item in names if name.startswith(item))
    part, start = names[prefix]
    return part, start + name.removeprefix(prefix)


def _original_config(reference: Reference, dtype: str) -> dict[str, object]:
    text, shape = reference.model.config.text_config.to_dict(), reference.shape
    return {
        **{key: value for key, value in text.items() if value is not None},
        "model_type": "share4v",
        "architectures": ["Share4VLlamaForCausalLM"],
        "torch_dtype": dtype,
        "mm_hidden_size": reference.model.config.vision_config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": shape.select_layer,
        "mm_vision_select_feature": SELECT_FEATURE[shape.strategy],
        "mm_vision_tower": f"somewhere/else/{TOWER}",
        "image_aspect_ratio": "pad",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "pretraining_tp": 1,
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }


def _write_shards(tensors: Mapping[str, torch.Tensor], directory: Path, shards: int) -> None:
    names = list(tensors)
    files = {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        held = {item: tensors[item] for item in names[number::shards]}
        torch.save(held, directory / name)
        files |= dict.fromkeys(held, name)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _write_json(directory / "pytorch_model.bin.index.json", {"metadata": {"total_size": size}, "weight_map": files})


def _write_json(path: Path, data: Mapping[str, object]) -> None:
    path.write_text(json.dumps(data, indent=2), encoding="utf-8")
