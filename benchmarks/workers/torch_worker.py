"""The PyTorch worker of compare.py: transformers' LLaMA and CLIP with scaled-dot-product attention."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from shapes import SHAPES, Shape
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from workers.protocol import Options, Runner, serve

FIRST_ORDINARY_TOKEN = 259  # after <unk>, <s>, </s> and the 256 bytes


class TorchRunner:
    """Runs LLaMA and CLIP models with random weights; each is built on first use, and only one is in memory."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self._model: LlamaForCausalLM | CLIPVisionModel | None = None
        self._drop_cache()

    def encode(self) -> float:
        """Returns the hidden states of every layer, since ShareGPT4V uses those of the second to last."""
        if not isinstance(self._model, CLIPVisionModel):
            self._model = None  # free the other one first
            self._drop_cache()
            config = CLIPVisionConfig(**asdict(self.shape.vision), attn_implementation="sdpa")
            self._model = CLIPVisionModel(config).to(self.dtype).eval()
        size = self.shape.vision.image_size
        pixel_values = torch.randn(1, 3, size, size).to(self.dtype)
        start = time.perf_counter()
        self._model(pixel_values, output_hidden_states=True)
        return time.perf_counter() - start

    def prefill(self, tokens: int) -> float:
        """Keeps the cache, for `decode` after the same number of tokens."""
        llama = self._llama()
        self._drop_cache()
        ids = torch.randint(FIRST_ORDINARY_TOKEN, self.shape.language.vocab_size, (1, tokens))
        start = time.perf_counter()
        output = llama(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        output.logits.argmax(-1)
        elapsed = time.perf_counter() - start
        self._rows = 1
        return elapsed

    def decode(self, tokens: int, context: int) -> float:
        """`batch_decode` with one sequence."""
        return self.batch_decode(1, tokens, context)

    def batch_decode(self, batch: int, tokens: int, context: int) -> float:
        """Every sequence continues a copy of the cache of one prompt."""
        llama = self._llama()
        if self._rows != batch or self._cache.get_seq_length() < context:
            self.prefill(context)
            self._cache.batch_repeat_interleave(batch)
            self._rows = batch
        self._cache.crop(context)
        token = torch.randint(FIRST_ORDINARY_TOKEN, self.shape.language.vocab_size, (batch, 1))
        start = time.perf_counter()
        for _ in range(tokens):
            token = llama(token, past_key_values=self._cache, use_cache=True).logits[:, -1:].argmax(-1)
        return (time.perf_counter() - start) / tokens

    def _drop_cache(self) -> None:
        self._cache, self._rows = DynamicCache(), 0

    def _llama(self) -> LlamaForCausalLM:
        if not isinstance(self._model, LlamaForCausalLM):
            self._model = None
            config = LlamaConfig(**asdict(self.shape.language), attn_implementation="sdpa")
            config.dtype = self.dtype
            self._model = _random_llama(config, self.dtype)
        return self._model


def _random_llama(config: LlamaConfig, dtype: torch.dtype) -> LlamaForCausalLM:
    """Build a model without the library's own initialization, which takes minutes at this size."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    model = model.to_empty(device="cpu").eval()
    model.model.rotary_emb = LlamaRotaryEmbedding(
        config
    )  # its buffer is computed in the constructor, and `to_empty` discarded it
    pattern = (torch.randn(1_000_003) * 0.02).to(dtype)  # a prime length, so that no two rows of a matrix are equal
    for parameter in model.parameters():
        _fill(parameter.view(-1), pattern)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
    return model


def _fill(flat: torch.Tensor, pattern: torch.Tensor) -> None:
    for start in range(0, flat.numel(), pattern.numel()):
        part = flat[start : start + pattern.numel()]
        part.copy_(pattern[: part.numel()])


def build(options: Options) -> tuple[Runner, dict[str, Any]]:
    """Return a runner for one dtype, and what PyTorch reports about the CPU."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    runner = TorchRunner(SHAPES[options.shape], getattr(torch, options.dtype))
    return runner, {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": bool(torch.backends.mkldnn.is_available()),
    }


if __name__ == "__main__":
    serve(build, packages=("torch", "transformers"))
