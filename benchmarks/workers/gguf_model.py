"""Writes a GGUF file of a LLaMA with random weights and a placeholder vocabulary, for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from shapes import LanguageShape

# A block of 32 weights is a float16 scale followed by 32 integers: 4 bits (offset by 8) or 8 bits (signed) each. With
# these scales the weights have a standard deviation near 0.02, like trained ones.
BLOCKS = {
    "Q4_0": (gguf.GGMLQuantizationType.Q4_0, 2 + 16, 0.02 / 4.6),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, 2 + 32, 0.02 / 73.9),
}
# llama.cpp's bfloat16 is stored as its bits.
FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
PATTERN = 1_000_003  # values or blocks; a prime, so that repeating the pattern makes no two rows of a matrix equal


def write_model(path: Path, shape: LanguageShape, kind: str) -> None:
    """Write the file tensor by tensor; it gets its final name only when it is complete.

    Every matrix has the same type, including the embedding and the head; the norms are float32.

    Args:
        path: file to write.
        shape: the model's sizes.
        kind: "F32", "F16", "BF16", "Q8_0" or "Q4_0".

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in (*FLOATS, *BLOCKS):
        raise ValueError(f"unknown llama.cpp type {kind!r}: expected one of {', '.join((*FLOATS, *BLOCKS))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, "llama")
    _add_metadata(writer, shape)
    tensors = _tensors(shape)
    values = _RandomValues(kind)
    for name, dimensions in tensors:
        values.declare(writer, name, dimensions)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, dimensions in tensors:
        writer.write_tensor_data(values.make(dimensions))
    writer.close()
    part.replace(path)


def _add_metadata(writer: gguf.GGUFWriter, shape: LanguageShape) -> None:
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_attention_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_dimension_count(shape.hidden_size // shape.num_attention_heads)
    writer.add_vocab_size(shape.vocab_size)
    pieces, types = _vocabulary(shape.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(index) for index in range(shape.vocab_size)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _vocabulary(size: int) -> tuple[list[str], list[int]]:
    """Return sentencepiece's special tokens, its 256 bytes, and placeholders: the benchmark only uses token ids."""
    special = ["<unk>", "<s>", "</s>"]
    single_bytes = [f"<0x{value:02X}>" for value in range(256)]
    fillers = [f"▁piece{index}" for index in range(size - len(special) - len(single_bytes))]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256 + [kinds.NORMAL] * len(fillers)
    return special + single_bytes + fillers, [int(kind) for kind in types]


def _tensors(shape: LanguageShape) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and dimensions [out, in] in the order of the file; the vectors are norms."""
    hidden, inner, vocab = shape.hidden_size, shape.intermediate_size, shape.vocab_size
    layer = [
        ("attn_norm", (hidden,)), ("attn_q", (hidden, hidden)), ("attn_k", (hidden, hidden)),
        ("attn_v", (hidden, hidden)), ("attn_output", (hidden, hidden)), ("ffn_norm", (hidden,)),
        ("ffn_gate", (inner, hidden)), ("ffn_up", (inner, hidden)), ("ffn_down", (hidden, inner)),
    ]  # fmt: skip
    tensors: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (vocab, hidden))]
    for index in range(shape.num_hidden_layers):
        tensors += [(f"blk.{index}.{name}.weight", dimensions) for name, dimensions in layer]
    return [*tensors, ("output_norm.weight", (hidden,)), ("output.weight", (vocab, hidden))]


class _RandomValues:
    """Makes tensors by repeating one random pattern, since generating gigabytes of random numbers takes minutes."""

    def __init__(self, kind: str) -> None:
        generator = np.random.default_rng(0)
        self.quantized = BLOCKS.get(kind)
        self.raw_dtype = gguf.GGMLQuantizationType.BF16 if kind == "BF16" else None
        if self.quantized is None:
            values = generator.standard_normal((PATTERN, 1), dtype=np.float32) * np.float32(0.02)
            self.pattern = (values.view(np.uint32) >> 16 if kind == "BF16" else values).astype(FLOATS[kind])
        else:
            _, size, scale = self.quantized
            self.pattern = generator.integers(0, 256, (PATTERN, size), dtype=np.uint8)
            self.pattern[:, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)

    def declare(self, writer: gguf.GGUFWriter, name: str, dimensions: tuple[int, ...]) -> None:
        """Declare a tensor's type and size; all are declared before the first is written."""
        if len(dimensions) == 1 or self.quantized is None:
            dtype = np.dtype(np.float32) if len(dimensions) == 1 else self.pattern.dtype
            size = int(np.prod(dimensions)) * dtype.itemsize
            raw_dtype = None if len(dimensions) == 1 else self.raw_dtype
            writer.add_tensor_info(name, dimensions, dtype, size, raw_dtype=raw_dtype)
            return
        kind, block, _ = self.quantized
        row = dimensions[1] // 32 * block
        writer.add_tensor_info(name, (dimensions[0], row), np.dtype(np.uint8), dimensions[0] * row, raw_dtype=kind)

    def make(self, dimensions: tuple[int, ...]) -> NDArray[np.generic]:
        """Return the values of a tensor; a norm is all ones."""
        if len(dimensions) == 1:
            return np.ones(dimensions, np.float32)
        weights = dimensions[0] * dimensions[1]
        units = weights if self.quantized is None else weights // 32
        repeated = np.resize(self.pattern, (units, self.pattern.shape[1]))
        return repeated.reshape(dimensions[0], -1)
