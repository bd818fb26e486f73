"""The types of each part of a model, for every `dtype` that `from_pretrained` accepts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """Types of the weight matrices; vectors (norms, biases, positions) are always float32.

    The integer types are layouts of the kernels: "int8" and "int4" have one scale per 32 weights, "int8-256" and
    "int4-256" one per 256 (kernels/packing.py).

    Attributes:
        layers: the language model's layers, nearly all of the weights.
        head: its output layer, whose rounding errors no later layer averages out.
        embedding: its table of token embeddings, of which one row is read per token.
        vision: the vision tower's layers.
        patches: the vision tower's first layer, a thousandth of the weights.
        projector: image features to embeddings.
        kv_cache: cached keys and values on the kernels, unless the caller chooses.
        is_rotated: whether the language model's weights are rotated (rounding/rotation.py), so that 256 of its inputs
            share a scale, not 32.
        is_weighted: whether each weight of its layers counts as much as the mean square of its input when it is
            rounded.
    """

    layers: str
    head: str
    embedding: str
    vision: str
    patches: str
    projector: str
    kv_cache: str
    is_rotated: bool = False
    is_weighted: bool = False

    @property
    def input_group(self) -> int:
        """How many inputs of the language model's matrices share a scale."""
        return 256 if self.is_rotated else 32

    @property
    def is_quantized(self) -> bool:
        """Whether weights are integers."""
        return self.layers.startswith("int")


QUANTIZED = ("int8", "int4")
# Types that the CPU kernels support; MindSpore's cells support the float types, on a CPU without bfloat16.
KERNEL_DTYPES = ("float32", "float16", "bfloat16", *QUANTIZED)
# docs/performance.md has the measurements behind the wider types in int8 and int4.
PRECISIONS = {
    "float32": Precision("float32", "float32", "float32", "float32", "float32", "float32", "float32"),
    "float16": Precision("float16", "float16", "float16", "float16", "float16", "float16", "float16"),
    # float16 keeps three more bits of keys and values than bfloat16, and they are far below its largest number.
    "bfloat16": Precision("bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "float16"),
}
# How a checkpoint's integers are laid out -> their types; config.json names the layout.
#   groups     what `share4v convert` wrote before layouts had names
#   weighted   int4: what loading a float checkpoint makes
#   rotated    int8; int4: what `share4v convert` writes, since rotated int4 needs GPTQ
LAYOUTS: dict[str, dict[str, Precision]] = {
    "int8": {
        "groups": Precision("int8", "int8", "float16", "int8", "float16", "int8", "float16"),
        "rotated": Precision("int8-256", "int8-256", "float16", "int8", "float16", "int8", "float16", is_rotated=True),
    },
    "int4": {
        "groups": Precision("int4", "int8", "float16", "int8", "float16", "int8", "float16"),
        "weighted": Precision("int4-256", "int8", "float16", "int8", "float16", "int8", "float16", is_weighted=True),
        "rotated": Precision("int4-256", "int8-256", "float16", "int8", "float16", "int8", "float16", is_rotated=True),
    },
}
OLDEST_LAYOUT = "groups"
# The layout that loading a float checkpoint makes, and the one that conversion writes.
LOADED_LAYOUTS = {"int8": "rotated", "int4": "weighted"}
CONVERTED_LAYOUTS = {"int8": "rotated", "int4": "rotated"}
PRECISIONS |= {dtype: LAYOUTS[dtype][layout] for dtype, layout in LOADED_LAYOUTS.items()}


def precision_of(dtype: str) -> Precision:
    """Return the types of the parts of a model with this dtype.

    Raises:
        ValueError: the dtype is not one of PRECISIONS.

    Example:
        >>> from mindone.models.share4v.quantization import precision_of
        >>> precision_of("int4").head
        'int8'
    """
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype {dtype!r} is not supported: expected one of {', '.join(PRECISIONS)}")
    return PRECISIONS[dtype]


def kernel_precision_of(dtype: str, layout: str | None = None) -> Precision:
    """Return the types of the parts of a model with this dtype on the CPU kernels.

    Args:
        dtype: one of KERNEL_DTYPES.
        layout: that of a quantized checkpoint, one of LAYOUTS[dtype]; None: what a float checkpoint is loaded as.

    Raises:
        ValueError: the dtype is not one of PRECISIONS.
    """
    precision = precision_of(dtype)
    if layout is not None and dtype in LAYOUTS:
        return LAYOUTS[dtype][layout]
    return precision


def loaded_dtype(requested: str | None, stored: str | None) -> str:
    """Return the dtype to load a checkpoint with: the requested one, else the stored one, else float32.

    Raises:
        ValueError: the stored weights were already rounded to another type.
    """
    if stored is not None and requested not in (None, stored):
        raise ValueError(
            f"the checkpoint's weights are already {stored} and cannot become {requested}: leave dtype out, or load "
            "the checkpoint that they were converted from"
        )
    return requested or stored or "float32"
