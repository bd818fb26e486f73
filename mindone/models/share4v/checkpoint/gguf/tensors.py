"""The tensors of a pair of GGUF files as entries of a checkpoint: names, order of rows, and integers that can stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import prod

import numpy as np

from ...configuration import Share4VConfig
from ...kernels.packing import RoundedGroups
from ...vision.weights import VISION_MODEL
from ..formats.gguf import GGUFFile, GGUFTensor
from ..formats.tensor import StoredTensor

# Types whose values are an integer times a scale of 32 weights -> the matrices of the kernels that hold these
# integers and scales unchanged (kernels/packing.py).
KEPT_IN = {"Q4_0": ("int4", "int8"), "Q5_0": ("int8",), "Q8_0": ("int8",), "IQ4_NL": ("int8",)}
# Types that are read as they are stored; every other type is read as float32, which holds its values exactly.
_STORED = {"F16": "float16", "BF16": "bfloat16"}


def language_tensors(file: GGUFFile, config: Share4VConfig) -> Iterator[StoredTensor]:
    """Yield the language model's tensors, the rows of queries and keys in the order that rotary embedding has here."""
    text = config.text_config
    heads = {"attn_q": text.num_attention_heads, "attn_k": text.kv_heads}
    for tensor in file.tensors.values():
        part = tensor.name.split(".")[-2] if tensor.name.startswith("blk.") else ""
        yield _stored(tensor, heads.get(part))


def vision_tensors(file: GGUFFile, config: Share4VConfig) -> Iterator[StoredTensor]:
    """Yield the tensors of an `mmproj` file; a norm behind the layers, which the projector does not use, is made up."""
    swapped = is_swapped(file, config)
    for tensor in file.tensors.values():
        yield _stored(replace(tensor, name=swapped_name(tensor.name)) if swapped else tensor)
    hidden = config.vision_config.hidden_size
    for kind, value in (("weight", 1.0), ("bias", 0.0)):
        if f"v.post_ln.{kind}" not in file.tensors:
            make = partial(np.full, (hidden,), value, np.float32)
            name = f"{VISION_MODEL}post_layernorm.{kind}"
            yield StoredTensor(name, (hidden,), "float32", file.path, make, np.empty(0, np.uint8))


def is_swapped(file: GGUFFile, config: Share4VConfig) -> bool:
    """Return whether the MLP's matrices have each other's names, as in files of llama.cpp's first converter."""
    down = file.tensors.get("v.blk.0.ffn_down.weight")
    vision = config.vision_config
    return down is not None and down.shape == (vision.intermediate_size, vision.hidden_size) != down.shape[::-1]


def swapped_name(name: str) -> str:
    """Return the name of a layer's MLP matrix or bias in the other generation of files; other names stay.

    Example:
        >>> from mindone.models.share4v.checkpoint.gguf.tensors import swapped_name
        >>> swapped_name("v.blk.0.ffn_up.weight")
        'v.blk.0.ffn_down.weight'
    """
    pairs = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    return ".".join(pairs.get(part, part) for part in name.split("."))


def _stored(tensor: GGUFTensor, heads: int | None = None) -> StoredTensor:
    """Return the entry of a tensor; `heads` is the number of heads whose rows are in llama.cpp's order, or None."""
    order: Callable[[np.ndarray], np.ndarray] = partial(paired_halves, heads=heads) if heads else _unchanged
    dtype = _STORED.get(tensor.type.name, "float32")
    read = partial(_read, tensor, order)
    codes = tensor.type.codes if len(tensor.shape) == 2 else None
    kept = {} if codes is None else dict.fromkeys(KEPT_IN[tensor.type.name], partial(_groups, tensor, codes, order))
    return StoredTensor(tensor.name, tensor.shape, dtype, tensor.file, read, tensor.blocks, kept)


def _read(tensor: GGUFTensor, order: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    if tensor.type.name == "F16":
        return order(np.ascontiguousarray(tensor.blocks).view("<f2").reshape(tensor.shape))
    return order(tensor.decoded())


def _groups(
    tensor: GGUFTensor,
    codes_of: Callable[[np.ndarray], np.ndarray],
    order: Callable[[np.ndarray], np.ndarray],
) -> RoundedGroups | None:
    codes, rows = codes_of(tensor.blocks), tensor.shape[0]
    scales = np.ascontiguousarray(tensor.blocks[:, :2]).view("<f2")
    if not np.isfinite(scales).all() or codes.min(initial=0) < -127:
        return None
    return RoundedGroups(order(codes.reshape(rows, -1)), order(scales.reshape(rows, -1)))


def _unchanged(rows: np.ndarray) -> np.ndarray:
    return rows


def paired_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of the rows of queries or keys: dimensions that are rotated together are adjacent there.

    Args:
        rows: [R, ...], of all heads.
        heads: how many.
    """
    split = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def adjacent_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Put the rows of queries or keys into llama.cpp's order: the reverse of `paired_halves`."""
    split = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def main_type(file: GGUFFile) -> str:
    """Return the type of most of the weights in a language model's layers."""
    counts: Counter[str] = Counter()
    for tensor in file.tensors.values():
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            counts[tensor.type.name] += prod(tensor.shape)
    return counts.most_common(1)[0][0] if counts else "F32"


def types_in(file: GGUFFile) -> dict[str, tuple[int, int]]:
    """Return how many matrices and weights each type has, the type with most weights first."""
    counts: dict[str, tuple[int, int]] = {}
    for tensor in file.tensors.values():
        if len(tensor.shape) > 1:
            matrices, weights = counts.get(tensor.type.name, (0, 0))
            counts[tensor.type.name] = matrices + 1, weights + prod(tensor.shape)
    return dict(sorted(counts.items(), key=lambda item: -item[1][1]))
