"""Compare one transformer layer with PyTorch's by CPU time, on one thread each, in turn within one process.

    python benchmarks/layers.py bfloat16:bfloat16 float32:float32 int8:bfloat16

Each argument is our type and PyTorch's. Measures a layer of the 7B on a prompt of 512 tokens, and a layer of CLIP-L/336
on one image, with random weights. A thread's CPU time hardly depends on what else the machine does, so this also works
where `compare.py` cannot: on a busy machine. What several threads share, such as memory bandwidth, it does not show.
"int8" and "int4" have the layout that `share4v convert` writes.
"""

from __future__ import annotations

import argparse
import inspect
import os
import statistics
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before the libraries read it

import numpy as np
import torch
from random_layer import Sizes, cpu_seconds, layer_call, types_of
from shapes import SHAPES
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from mindone.models.share4v.kernels.library import library
from mindone.models.share4v.quantization import Precision

TOKENS = 512
VISION, LANGUAGE = SHAPES["7b"].vision, SHAPES["7b"].language


def prompt_pair(types: Precision, dtype: torch.dtype) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return calls of both sides' language layer on a prompt."""
    hidden, inner, heads = LANGUAGE.hidden_size, LANGUAGE.intermediate_size, LANGUAGE.num_attention_heads
    x = np.random.default_rng(1).standard_normal((TOKENS, hidden)).astype(np.float32)
    rows = np.array([(0, token, 0, token + 1) for token in range(TOKENS)], np.int32)
    sizes = Sizes(hidden, inner, heads, True, types.layers, types.kv_cache, types.input_group)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_hidden_layers=1,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):  # PyTorch would spend seconds on random numbers
        layer = LlamaDecoderLayer(config, 0)
    layer = layer.to_empty(device="cpu").to(dtype).eval()
    for parameter in layer.parameters():
        parameter.fill_(0.01)
    tensor, positions = torch.from_numpy(x)[None].to(dtype), torch.arange(TOKENS)[None]
    tables = tuple(table.to(dtype) for table in LlamaRotaryEmbedding(config)(tensor.float(), positions))
    fixed = {"position_ids": positions, "use_cache": True, "position_embeddings": tables}
    return layer_call(sizes, rows, x), lambda: layer(tensor, past_key_values=DynamicCache(), **fixed)


def image_pair(types: Precision, dtype: torch.dtype) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return calls of both sides' vision layer on one image."""
    hidden, inner, heads = VISION.hidden_size, VISION.intermediate_size, VISION.num_attention_heads
    tokens = (VISION.image_size // VISION.patch_size) ** 2 + 1
    x = np.random.default_rng(1).standard_normal((tokens, hidden)).astype(np.float32)
    rows = np.array([(0, token, 0, tokens) for token in range(tokens)], np.int32)
    sizes = Sizes(hidden, inner, heads, False, types.vision, "float32", 32)
    config = CLIPVisionConfig(
        hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads, attn_implementation="sdpa"
    )
    layer, tensor = CLIPEncoderLayer(config).to(dtype).eval(), torch.from_numpy(x)[None].to(dtype)
    masks = [None] * sum("mask" in name for name in inspect.signature(layer.forward).parameters)
    return layer_call(sizes, rows, x), lambda: layer(tensor, *masks)


def main() -> None:
    """Parse the command line, and print a row of a Markdown table for each pair and kind of layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", help="our type and PyTorch's, such as bfloat16:bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    library().threads = 1
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(f"kernels: {library().instruction_set}\n")
    print("| | ours | PyTorch | ours, CPU s | PyTorch, CPU s | ratio | rounds |\n|---|---|---|---|---|---|---|")
    for pair in arguments.pairs:
        dtype, _, peer = pair.partition(":")
        types = types_of(dtype)
        for name, make in (("prompt of 512", prompt_pair), ("image", image_pair)):
            calls = make(types, getattr(torch, peer))
            times = [[cpu_seconds(call) for call in calls] for _ in range(arguments.rounds + 1)][1:]
            ratios = [theirs / mine for mine, theirs in times]
            mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(
                f"| {name} | {dtype} | {peer} | {mine:.3f} | {theirs:.3f} | **{theirs / mine:.2f}** | {spread} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
