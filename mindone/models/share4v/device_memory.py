"""How much of a device's memory a model of cells takes, computed from its config; nothing is loaded.

What is computed exactly are the weights and the KV cache. Activations are an estimate of the largest of them that live
at the same time. The memory of the driver, of MindSpore and of operators' workspaces is not in any figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from .checkpoint.weights import expected_shapes
from .configuration import Share4VConfig
from .language.llama import CachedLlama
from .language.weights import LANGUAGE_MODEL, LM_HEAD
from .nn.device_operators import IntegerLimits
from .nn.fused import INTEGERS

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Weights that cells hold as float32 although they have two axes.
_FLOAT32 = (".position_embedding.weight",)
_EMBEDDING = f"{LANGUAGE_MODEL}embed_tokens.weight"


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of a model, in bytes.

    Attributes:
        weights: of the vision tower, the projector and the language model.
        cache: keys and values of all sequences.
        activations: an estimate for the larger of a prefill step and the encoding of an image.
    """

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """The sum, without what the driver, MindSpore and workspaces take."""
        return self.weights + self.cache + self.activations


def device_memory(config: Share4VConfig, dtype: str, batch_size: int, context: int) -> DeviceMemory:
    """Compute the memory of a model of cells on an Ascend, with all of its operators.

    Args:
        config: of the model.
        dtype: "float32", "float16", "bfloat16", "int8" or "int4".
        batch_size: sequences that are generated together.
        context: capacity of the cache in tokens per sequence.

    Raises:
        ValueError: the dtype is unknown, or a size is not positive.

    Example:
        >>> from mindone.models.share4v import ProjectorConfig, Share4VConfig, VisionConfig
        >>> from mindone.models.share4v.device_memory import device_memory
        >>> tower = VisionConfig(1024, 4096, 24, 16, image_size=336, patch_size=14)
        >>> config = Share4VConfig(tower, ProjectorConfig("mlp2x_gelu"))
        >>> memory = device_memory(config, "bfloat16", batch_size=4, context=2048)
        >>> memory.weights // 2**20, memory.cache // 2**20
        (13473, 4224)
    """
    if dtype not in (*BYTES, *INTEGERS):
        raise ValueError(f"dtype {dtype!r} is not supported: expected one of {', '.join((*BYTES, *INTEGERS))}")
    if batch_size < 1 or context < 1:
        raise ValueError(f"batch_size {batch_size} and context {context} must be positive")
    return DeviceMemory(
        weight_bytes(config, dtype),
        batch_size * cache_bytes(config, dtype, context + CachedLlama.chunk),
        activation_bytes(config, dtype, batch_size, context),
    )


def weight_bytes(config: Share4VConfig, dtype: str) -> int:
    """Return the bytes of all Parameters: vectors are float32, matrices have the dtype or are integers with scales."""
    return sum(_bytes_of(name, shape, dtype) for name, shape in expected_shapes(config)[0].items())


def cache_bytes(config: Share4VConfig, dtype: str, slots: int) -> int:
    """Return the bytes of one sequence's keys and values of `slots` tokens."""
    text = config.text_config
    values = 2 * text.num_hidden_layers * text.kv_heads * text.head_size
    return values * slots * BYTES.get(dtype, 2)


def activation_bytes(config: Share4VConfig, dtype: str, batch_size: int, context: int) -> int:
    """Estimate the activations of the larger graph; what one layer holds, since its memory is used again by the next.

    Per row: the residual and the normalized input, once in the dtype and once in float32; queries, keys, values and
    what attention returns; gate (also in float32), up and their product. Plus the mask and the logits of a prefill.
    """
    text, vision, size = config.text_config, config.vision_config, BYTES.get(dtype, 2)
    heads = (2 * text.num_attention_heads + 2 * text.kv_heads) * text.head_size
    row = 2 * text.hidden_size * (size + 4) + heads * (size + 4) + text.intermediate_size * (3 * size + 4)
    chunk = CachedLlama.chunk
    prefill = batch_size * (chunk * row + chunk * (context + chunk) + text.vocab_size * (size + 4))
    patch = 2 * vision.hidden_size * (size + 4) + 4 * vision.hidden_size * size
    patch += vision.intermediate_size * (2 * size + 4)
    return max(prefill, (vision.num_patches + 1) * patch)  # cells encode images one by one


def _bytes_of(name: str, shape: tuple[int, ...], dtype: str) -> int:
    count = 1
    for length in shape:
        count *= length
    if len(shape) == 1 or name.endswith(_FLOAT32):
        return 4 * count
    size, limits = BYTES.get(dtype, 2), IntegerLimits()
    is_language = name.startswith("language_model.") and name != _EMBEDDING
    integers = "int8" if dtype in INTEGERS and name.startswith(LM_HEAD) else dtype
    if dtype not in INTEGERS or not is_language or not limits.allow(integers, shape[1], shape[0]):
        return size * count
    if integers == "int8":
        return count + size * shape[0]
    return count // 2 + 2 * size * (shape[1] // limits.group) * shape[0]  # scales and offsets
