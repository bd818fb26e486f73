"""Which class builds each component of a model: what the caller named, or the fastest one on this device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms

from .checkpoint import Checkpoint
from .configuration import Share4VConfig
from .kernels.cache_memory import KV_CACHE_DTYPES
from .kernels.component import runs_on_kernels
from .kernels.library import kernels_available, library
from .load_options import LoadOptions
from .nn.layers import DTYPES, weight_dtype
from .projector.mlp import build_projector
from .projector.weights import projector_plans
from .quantization import precision_of
from .registry import LANGUAGE_MODELS, PROJECTORS, VISION_TOWERS

# Backend -> the registered names of its vision tower and language model. Cells of MindSpore's operators can be trained
# and run on every device; the kernels are for inference on a CPU.
BACKENDS = {"mindspore": ("clip", "llama"), "kernels": ("packed-clip", "packed-llama")}
# Names of the backend that is chosen by device and dtype.
AUTO = ("auto", "native")


@dataclass(frozen=True)
class Components:
    """The classes of a model's components.

    Attributes:
        vision_tower, language_model: classes that are made with (config, dtype).
    """

    vision_tower: Any
    language_model: Any


def choose_components(
    dtype: str,
    language_backend: str = "auto",
    vision_backend: str = "auto",
    kv_cache_dtype: str | None = None,
) -> Components:
    """Return the classes of the vision tower and of the language model.

    Args:
        dtype: type of the model's weights, a key of quantization.PRECISIONS.
        language_backend, vision_backend: "auto" (or "native"), "mindspore", "kernels", or the name of a registered
            component.
        kv_cache_dtype: type of the KV cache that the caller asked for, or None.

    Raises:
        ValueError: a name is unknown, the device does not compute in `dtype`, or the chosen language model supports
            neither integer weights nor a choice of `kv_cache_dtype`.
        KernelsMissingError: the kernels are needed, and they were not built.
        ImportError: a component's package is not installed.
    """
    precision = precision_of(dtype)
    is_cpu = ms.get_context("device_target") == "CPU"
    if not precision.is_quantized:
        weight_dtype(dtype)  # raises if the device does not compute in it
    elif not is_cpu:
        raise ValueError(f"dtype {dtype!r} is only supported on a CPU: use 'bfloat16', 'float16' or 'float32' here")
    auto = "kernels" if is_cpu and (precision.is_quantized or kernels_available()) else "mindspore"
    tower, language = _registered_name(vision_backend, auto, 0), _registered_name(language_backend, auto, 1)
    components = Components(VISION_TOWERS.resolve(tower), LANGUAGE_MODELS.resolve(language))
    if not runs_on_kernels(components.language_model):
        asked = {"kv_cache_dtype": kv_cache_dtype, "dtype": dtype if precision.is_quantized else None}
        for name, value in asked.items():
            if value is not None:
                raise ValueError(
                    f"{name} {value!r} needs the CPU kernels, but the language model is {language!r}: load the "
                    f"checkpoint with Share4V.from_pretrained and leave language_backend out, or leave {name} out"
                )
    elif kv_cache_dtype is not None and kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ValueError(f"kv_cache_dtype {kv_cache_dtype!r} is not supported: use one of {', '.join(KV_CACHE_DTYPES)}")
    return components


def _registered_name(backend: str, auto: str, index: int) -> str:
    """Return the registered name of a component: `index` 0 is the vision tower, 1 the language model."""
    chosen = auto if backend in AUTO else backend
    if chosen == "kernels":
        if ms.get_context("device_target") != "CPU":
            raise ValueError("the backend 'kernels' runs on a CPU only: use 'mindspore' or 'auto' on this device")
        library()  # raises with instructions if the kernels were not built
    return BACKENDS[chosen][index] if chosen in BACKENDS else chosen


def make_projector(config: Share4VConfig, dtype: str, packed: bool) -> Any:
    """Build the projector: on the kernels if `packed` and if they support its type, else as cells."""
    if packed and projector_plans(config, dtype) is not None:
        return PROJECTORS.resolve("packed")(config, dtype)
    return build_projector(config, cell_dtype(dtype))


def cell_dtype(dtype: str) -> str:
    """Return the dtype of a cell next to packed components: cells do not support integer weights."""
    return dtype if dtype in DTYPES else "float32"


def open_checkpoint(name_or_path: str | Path, options: LoadOptions) -> Checkpoint:
    """Open a checkpoint to load its model; the options are checked before weights are downloaded.

    Raises:
        As `Share4V.from_pretrained`.
    """
    check_options(options)
    return Checkpoint.open(name_or_path, options)


def check_options(options: LoadOptions) -> None:
    """Check that this device and installation support the options; no file is opened.

    Raises:
        As `choose_components`.
    """
    choose_components(
        options.dtype or "float32", options.language_backend, options.vision_backend, options.kv_cache_dtype
    )
