"""The named shapes of the benchmarks, as plain numbers, because the peers' environments do not have mindone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LanguageShape:
    """LLaMA's sizes, under the names of transformers' LlamaConfig."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int = 32000
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5


@dataclass(frozen=True)
class VisionShape:
    """CLIP's sizes, under the names of transformers' CLIPVisionConfig; the defaults are ViT-L/14 at 336 px."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 336
    patch_size: int = 14


@dataclass(frozen=True)
class Shape:
    """The sizes of a complete model; the projector is always mlp2x_gelu."""

    language: LanguageShape
    vision: VisionShape = VisionShape()


SHAPES = {
    "7b": Shape(LanguageShape(4096, 11008, 32, 32)),
    "7b-8l": Shape(LanguageShape(4096, 11008, 8, 32)),
    "7b-2l": Shape(LanguageShape(4096, 11008, 2, 32)),
    "13b": Shape(LanguageShape(5120, 13824, 40, 40)),
    "13b-4l": Shape(LanguageShape(5120, 13824, 4, 40)),
    "tiny": Shape(LanguageShape(128, 384, 3, 4, 1024, 512), VisionShape(128, 512, 4, 4, 96, 24)),
}
