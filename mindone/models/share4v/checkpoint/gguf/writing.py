"""Writing GGUF files that llama.cpp reads, with its own package `gguf`; one tensor at a time is in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...configuration import Share4VConfig, TextConfig
from ...language.weights import LANGUAGE_MODEL, LM_HEAD
from ...vision.weights import VISION_MODEL
from ..errors import CheckpointError
from ..formats.tensor import StoredTensor
from ..loading import cast
from ..packed import finite_vector
from ..weights import FORMATS
from .tensors import adjacent_pairs, swapped_name

if TYPE_CHECKING:
    from gguf import GGUFWriter

# What `share4v convert` calls a GGUF type -> ggml's type of the layers' matrices, and of the embeddings and the output
# layer, whose errors no other layer averages out.
DTYPES = {"f32": ("F32", "F32"), "f16": ("F16", "F16"), "q8_0": ("Q8_0", "Q8_0"), "q4_0": ("Q4_0", "Q8_0")}
_GROUP = 32
_FLOATS = {"F32": "float32", "F16": "float16"}
_OURS_TO_GGUF = {ours: theirs for theirs, ours in FORMATS["gguf"].items() if ours is not None}


@dataclass(frozen=True)
class Planned:
    """A tensor to write.

    Attributes:
        name: in the file.
        shape: sizes in the order of NumPy.
        type: ggml's name of its type.
        read: gives the values, [*shape].
    """

    name: str
    shape: tuple[int, ...]
    type: str
    read: Callable[[], np.ndarray]


def language_plan(entries: Mapping[str, StoredTensor], config: TextConfig, dtype: str) -> list[Planned]:
    """List the tensors of a language model's file, in the order of its layers."""
    layers, ends = DTYPES[dtype]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.kv_heads}
    planned = []
    for name, entry in entries.items():
        if not name.startswith((LANGUAGE_MODEL, LM_HEAD)):
            continue
        kind = layers if ".layers." in name else ends
        read = _reader(entry, heads.get(name.split(".")[-2]))
        planned.append(Planned(gguf_name(name), entry.shape, _type_of(entry.shape, kind), read))
    return sorted(planned, key=_order)


def vision_plan(entries: Mapping[str, StoredTensor], config: Share4VConfig, dtype: str) -> list[Planned]:
    """List the tensors of an `mmproj` file: without the layers and the norm that the projector does not use.

    The MLP's matrices have the names of llama.cpp's first converter, each other's: versions before May 2025 read no
    others, and later ones recognise them, as this package does, by their shapes.
    """
    kind = "F32" if dtype == "f32" else "F16"
    vision = config.vision_config
    swaps = vision.hidden_size != vision.intermediate_size
    planned = []
    for name, entry in entries.items():
        if name.startswith((LANGUAGE_MODEL, LM_HEAD, f"{VISION_MODEL}post_layernorm")):
            continue
        number = name.removeprefix(f"{VISION_MODEL}encoder.layers.").split(".")[0]
        if number.isdecimal() and name.startswith(VISION_MODEL) and int(number) >= config.hidden_state_index:
            continue
        theirs = swapped_name(gguf_name(name)) if swaps else gguf_name(name)
        planned.append(Planned(theirs, entry.shape, _type_of(entry.shape, kind), _reader(entry)))
        if name.startswith("mm_projector.") and not config.projector_config.bias:  # llama.cpp always adds one
            bias, shape = gguf_name(name.replace("weight", "bias")), entry.shape[:1]
            planned.append(Planned(bias, shape, "F32", partial(np.zeros, shape, np.float32)))
    return sorted(planned, key=_order)


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of one of our weights.

    Example:
        >>> from mindone.models.share4v.checkpoint.gguf.writing import gguf_name
        >>> gguf_name("language_model.model.layers.3.self_attn.o_proj.weight")
        'blk.3.attn_output.weight'
    """
    numbers = [part for part in name.split(".") if part.isdecimal()]
    pattern = ".".join("{n}" if part.isdecimal() else part for part in name.split("."))
    theirs = _OURS_TO_GGUF[pattern]
    return theirs.format(n=numbers[0]) if numbers else theirs


def _order(planned: Planned) -> tuple[int, str]:
    numbers = [int(part) for part in planned.name.split(".") if part.isdecimal()]
    return (numbers[0] if planned.name.startswith(("blk.", "v.blk.")) else -1), planned.name


def _type_of(shape: Sequence[int], wanted: str) -> str:
    """Return the type of a tensor: vectors are float32, and rows that are no multiple of 32 float16."""
    if len(shape) < 2:
        return "F32"
    return "F16" if wanted not in _FLOATS and shape[-1] % _GROUP else wanted


def _reader(entry: StoredTensor, heads: int | None = None) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        values = finite_vector(entry.read(), entry.name)
        entry.release()
        return values if heads is None else adjacent_pairs(values, heads)

    return read


def write_file(path: Path, planned: Sequence[Planned], architecture: str, metadata: Mapping[str, Any]) -> None:
    """Write a file; it has its name only when it is complete.

    Args:
        path: of the file, which must not exist.
        planned: its tensors.
        architecture: general.architecture.
        metadata: the other keys and values, as `typed_metadata` takes them.

    Raises:
        CheckpointError: a value is too large for its type, or not finite.
        OSError: the disk is full or not writable.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quant_shape_to_byte_shape

    part = path.with_name(f".writing-{path.name}")
    writer = GGUFWriter(part, architecture)
    try:
        add_metadata(writer, metadata)
        for tensor in planned:
            kind = GGMLQuantizationType[tensor.type]
            is_float = tensor.type in _FLOATS
            dtype = np.dtype(_FLOATS.get(tensor.type, "uint8"))
            shape = tensor.shape if is_float else quant_shape_to_byte_shape(tensor.shape, kind)
            size = int(np.prod(shape)) * dtype.itemsize
            writer.add_tensor_info(tensor.name, shape, dtype, size, raw_dtype=None if is_float else kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in planned:
            writer.write_tensor_data(_encoded(tensor))
        writer.close()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _encoded(tensor: Planned) -> np.ndarray:
    from gguf import GGMLQuantizationType, quantize

    values = np.asarray(tensor.read(), np.float32)
    if tensor.type in _FLOATS:
        return cast(values, _FLOATS[tensor.type], tensor.name)
    blocks = quantize(np.ascontiguousarray(values), GGMLQuantizationType[tensor.type])
    scales = blocks.reshape(-1, {"Q8_0": 34, "Q4_0": 18}[tensor.type])[:, :2]
    if not np.isfinite(np.ascontiguousarray(scales).view(np.float16)).all():
        raise CheckpointError(f"{tensor.name} has values too large for {tensor.type}: use dtype (--dtype) f32")
    return blocks


def add_metadata(writer: GGUFWriter, metadata: Mapping[str, Any]) -> None:
    """Add keys by the type of their values: int as uint32, float as float32, bool, str, and lists of these."""
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def language_metadata(config: TextConfig) -> dict[str, Any]:
    """Return the sizes of a language model as llama.cpp names them.

    Raises:
        ValueError: llama.cpp's LLaMA has nothing like it.
    """
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type != "linear":
        raise ValueError(f"rope_scaling {scaling.rope_type!r} cannot be written to GGUF: llama.cpp only has 'linear'")
    stated: dict[str, Any] = {
        "llama.context_length": min(config.max_position_embeddings, config.sliding_window or 2**24),
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.key_length": config.head_size,
        "llama.attention.value_length": config.head_size,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.dimension_count": config.head_size,
        "llama.rope.freq_base": float(config.rope_theta),
        "llama.vocab_size": config.vocab_size,
    }
    if scaling is not None:
        stated |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": float(scaling.factor)}
    return stated


def vision_metadata(config: Share4VConfig, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return the sizes of a vision tower and its projector as llama.cpp names them.

    Raises:
        ValueError: llama.cpp has nothing like it.
    """
    vision = config.vision_config
    if config.projector_config.projector_type != "mlp2x_gelu":
        raise ValueError(
            f"projector_type {config.projector_config.projector_type!r} cannot be written to GGUF: expected mlp2x_gelu"
        )
    if config.select_feature != "patch" or config.use_im_start_end:
        raise ValueError(
            "a model that uses the class token's feature, or tokens around images, cannot be written to GGUF: "
            "llama.cpp has neither"
        )
    layers = config.hidden_state_index
    if layers == 0:
        raise ValueError("a vision tower of which no layer is used cannot be written to GGUF: llama.cpp needs one")
    return {
        "general.type": "mmproj",
        "clip.has_text_encoder": False,
        "clip.has_vision_encoder": True,
        "clip.has_llava_projector": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": vision.hidden_act == "gelu",
        "clip.vision.image_size": vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.projection_dim": config.text_config.hidden_size,
        "clip.vision.block_count": layers,
        "clip.vision.feature_layer": [layers],
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": float(vision.layer_norm_eps),
        "clip.vision.image_mean": [float(value) for value in mean],
        "clip.vision.image_std": [float(value) for value in std],
        "clip.vision.image_aspect_ratio": config.image_aspect_ratio,
    }
