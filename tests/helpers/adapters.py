"""A LoRA adapter for a LLaMA of any size, under the names that PEFT gives LLaVA's language model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mindone.models.share4v.configuration import TextConfig
from mindone.models.share4v.language.weights import LANGUAGE_MODEL, language_shapes

RANK = 2


def write_adapter(
    directory: Path,
    text: TextConfig,
    scale: float = 0.1,
    layers: Sequence[int] | None = None,
    modules: Sequence[str] = ("mlp.down_proj",),
    **fields: Any,
) -> Path:
    """Write an adapter of these modules of every layer, or of `layers`; `scale` 0 changes nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    rng, tensors = np.random.default_rng(0), {}
    for layer in range(text.num_hidden_layers) if layers is None else layers:
        for module in modules:
            outputs, inputs = language_shapes(text)[f"{LANGUAGE_MODEL}layers.{layer}.{module}.weight"]
            for part, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                name = f"base_model.model.model.layers.{layer}.{module}.lora_{part}.weight"
                tensors[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "down_proj"], **fields}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory
