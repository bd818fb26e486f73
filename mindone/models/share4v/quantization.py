"""The types of each part of a model, for every `dtype` that `from_pretrained` accepts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """Types of the weight matrices; vectors (norms, biases, positions) are always float32.

    Attributes:
        layers: the language model's layers, nearly all of the weights.
        head: its output layer, whose rounding errors no later layer averages out.
        embedding: its table of token embeddings, of which one row is read per token.
        vision: the vision tower's layers.
        patches: the vision tower's first layer, a thousandth of the weights.
        projector: image features to embeddings.
        kv_cache: cached keys and values, unless the caller chooses.
    """

    layers: str
    head: str
    embedding: str
    vision: str
    patches: str
    projector: str
    kv_cache: str

    @property
    def is_quantized(self) -> bool:
        """Whether weights are integers with one scale per group of 32."""
        return self.layers in QUANTIZED


QUANTIZED = ("int8", "int4")
# Types that the CPU kernels support; MindSpore's cells support the float types.
KERNEL_DTYPES = ("float32", "float16", *QUANTIZED)
# docs/performance.md has the measurements behind the wider types in int8 and int4.
PRECISIONS = {
    "float32": Precision("float32", "float32", "float32", "float32", "float32", "float32", "float32"),
    "float16": Precision("float16", "float16", "float16", "float16", "float16", "float16", "float16"),
    "bfloat16": Precision("bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16"),
    "int8": Precision("int8", "int8", "float16", "int8", "float16", "int8", "float16"),
    "int4": Precision("int4", "int8", "float16", "int8", "float16", "int8", "float16"),
}


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


def kernel_precision_of(dtype: str) -> Precision:
    """Return the types of the parts of a model with this dtype on the CPU kernels.

    Raises:
        ValueError: the kernels do not support the dtype.
    """
    precision = precision_of(dtype)
    if dtype not in KERNEL_DTYPES:
        raise ValueError(
            f"dtype {dtype!r} is not supported on a CPU: use one of {', '.join(KERNEL_DTYPES)} (any checkpoint can be "
            "loaded as any of them)"
        )
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
