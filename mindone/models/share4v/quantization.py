"""Which part of a model has which type, for every `dtype` that `from_pretrained` takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """Types of the weight matrices; vectors (norms, biases, positions) are float32 always.

    Attributes:
        layers: the language model's layers, nearly all of the weights.
        head: its output layer, whose errors no later layer evens out.
        embedding: its table of tokens, of which one row a token is read.
        vision: the vision tower's layers.
        patches: the vision tower's first layer, a thousandth of the weights.
        projector: image features to embeddings.
        kv_cache: keys and values, where the caller does not say.
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
        """Whether weights are integers with a scale for each group of 32."""
        return self.layers in QUANTIZED


QUANTIZED = ("int8", "int4")
# What the CPU kernels know; MindSpore's cells know the float types.
KERNEL_DTYPES = ("float32", "float16", *QUANTIZED)
# docs/performance.md has the measurements by which the wider types of int8 and int4 were chosen.
PRECISIONS = {
    "float32": Precision("float32", "float32", "float32", "float32", "float32", "float32", "float32"),
    "float16": Precision("float16", "float16", "float16", "float16", "float16", "float16", "float16"),
    "bfloat16": Precision("bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16"),
    "int8": Precision("int8", "int8", "float16", "int8", "float16", "int8", "float16"),
    "int4": Precision("int4", "int8", "float16", "int8", "float16", "int8", "float16"),
}


def precision_of(dtype: str) -> Precision:
    """Return what a model of type `dtype` is made of.

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
    """Return what a model of type `dtype` is made of on the CPU kernels.

    Raises:
        ValueError: the kernels do not know the dtype.
    """
    precision = precision_of(dtype)
    if dtype not in KERNEL_DTYPES:
        raise ValueError(
            f"dtype {dtype!r} is not there on a CPU: expected one of {', '.join(KERNEL_DTYPES)}, as which a checkpoint "
            "of any type can be loaded"
        )
    return precision


def loaded_dtype(asked: str | None, stored: str | None) -> str:
    """Return the type a checkpoint is loaded as: what was asked for, else what is stored, else float32.

    Raises:
        ValueError: the stored weights were rounded to another type already.
    """
    if stored is not None and asked not in (None, stored):
        raise ValueError(
            f"the checkpoint's weights are {stored} already and cannot become {asked}: leave dtype out, or load the "
            "checkpoint that they were converted from"
        )
    return asked or stored or "float32"
