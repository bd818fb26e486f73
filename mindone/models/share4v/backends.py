"""Which class builds each part of a model: what a caller named, or the fastest one that runs here."""

from __future__ import annotations

from typing import Any

import mindspore as ms

from .configuration import Share4VConfig
from .kernels.component import runs_on_kernels
from .kernels.library import kernels_available, library
from .nn.layers import DTYPES, weight_dtype
from .projector.mlp import build_projector
from .projector.weights import projector_plans
from .quantization import precision_of
from .registry import LANGUAGE_MODELS, PROJECTORS, VISION_TOWERS

# What the backend "native" means: this package's own implementation, as cells that can be trained and run on every
# device, or on the CPU kernels, for inference alone.
CELLS = {"vision_tower": "clip", "language_model": "llama"}
KERNELS = {"vision_tower": "packed-clip", "language_model": "packed-llama"}


def native_backends(dtype: str) -> dict[str, str]:
    """Return what "native" stands for when a checkpoint of type `dtype` is loaded.

    Raises:
        ValueError: the dtype is not known, or the device does not compute in it.
        KernelsMissingError: the dtype needs the kernels, and they were not built.
    """
    quantized = precision_of(dtype).is_quantized
    if not quantized:
        weight_dtype(dtype)  # raises where the device does not compute in it
    if ms.get_context("device_target") != "CPU":
        if quantized:
            raise ValueError(f"dtype {dtype!r} runs on a CPU alone: use 'bfloat16', 'float16' or 'float32' here")
        return CELLS
    if quantized:
        library()  # raises with what to do
    return KERNELS if kernels_available() else CELLS


def resolve_backends(
    language_backend: str, vision_backend: str, native: dict[str, str], dtype: str, kv_cache_dtype: str | None
) -> tuple[Any, Any]:
    """Return the classes of the vision tower and of the language model.

    Raises:
        ValueError: a name is not known, and the message names the known ones; or the language model does not know the
            types that are asked for.
    """
    vision = native["vision_tower"] if vision_backend == "native" else vision_backend
    language = native["language_model"] if language_backend == "native" else language_backend
    classes = VISION_TOWERS.resolve(vision), LANGUAGE_MODELS.resolve(language)
    if not runs_on_kernels(classes[1]):
        asked = {"kv_cache_dtype": kv_cache_dtype, "dtype": dtype if precision_of(dtype).is_quantized else None}
        for name, value in asked.items():
            if value is not None:
                raise ValueError(
                    f"{name} {value!r} needs the CPU kernels; the language model is {language!r}: load the checkpoint "
                    f"with Share4V.from_pretrained and leave language_backend out, or leave {name} out"
                )
    return classes


def make_projector(config: Share4VConfig, dtype: str, packed: bool) -> Any:
    """Build the projector: on the kernels where its tower is and where they know it, else as cells."""
    if packed and projector_plans(config, dtype) is not None:
        return PROJECTORS.resolve("packed")(config, dtype)
    return build_projector(config, cell_dtype(dtype))


def cell_dtype(dtype: str) -> str:
    """Return the type that a cell beside packed components has: cells know no integers."""
    return dtype if dtype in DTYPES else "float32"
