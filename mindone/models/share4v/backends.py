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
from .kernels.numa_placement import weight_nodes
from .language.llama import LlamaForCausalLM
from .load_options import LoadOptions
from .nn.device_operators import device_operators
from .nn.fused import Arithmetic
from .nn.layers import DTYPES
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
            neither the dtype on this device nor a choice of `kv_cache_dtype`.
        KernelsMissingError: the kernels are needed, and they were not built.
        ImportError: a component's package is not installed.
    """
    precision = precision_of(dtype)
    is_cpu = ms.get_context("device_target") == "CPU"
    needs_kernels = is_cpu and (precision.is_quantized or dtype not in device_operators().dtypes)
    if not is_cpu:
        Arithmetic.of(dtype)  # raises if the device does not compute in it
    auto = "kernels" if is_cpu and (needs_kernels or kernels_available()) else "mindspore"
    tower, language = _registered_name(vision_backend, auto, 0), _registered_name(language_backend, auto, 1)
    components = Components(VISION_TOWERS.resolve(tower), LANGUAGE_MODELS.resolve(language))
    if not runs_on_kernels(components.language_model):
        is_missing = needs_kernels and not rounds_cells(components.language_model)
        asked = {"kv_cache_dtype": kv_cache_dtype, "dtype": dtype if is_missing else None}
        for name, value in asked.items():
            if value is not None:
                raise ValueError(
                    f"{name} {value!r} needs the CPU kernels, but the language model is {language!r}: load the "
                    f"checkpoint with Share4V.from_pretrained and leave language_backend out, or leave {name} out"
                )
    elif kv_cache_dtype is not None and kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ValueError(f"kv_cache_dtype {kv_cache_dtype!r} is not supported: use one of {', '.join(KV_CACHE_DTYPES)}")
    return components


def rounds_cells(language_model: Any) -> bool:
    """Return whether a class of language models has integer weights as cells: our LLaMA, where the device has them."""
    is_ours = isinstance(language_model, type) and issubclass(language_model, LlamaForCausalLM)
    return is_ours and device_operators().weight_quant_batch_matmul is not None


def check_stored_integers(config: Share4VConfig, language_model: Any) -> None:
    """Check that a language model of this class can be filled from a checkpoint, which may hold integers.

    Raises:
        ValueError: the checkpoint holds integers that are laid out for the CPU kernels, and the model is not on them.
    """
    if config.quantization is not None and not runs_on_kernels(language_model):
        raise ValueError(
            f"the checkpoint's weights were converted to {config.quantization} for the CPU kernels, and nothing else "
            f"can use them: load the checkpoint that they were converted from, with dtype={config.quantization!r}"
        )


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
    return build_projector(config, cell_dtype(dtype, config))


def make_vision(config: Share4VConfig, chosen: Components, dtype: str) -> tuple[Any, Any]:
    """Build the vision tower and the projector; None for both if the model is for texts only."""
    if not config.has_vision:
        return None, None
    packed = runs_on_kernels(chosen.vision_tower)
    tower = chosen.vision_tower(config, dtype if packed else cell_dtype(dtype, config))
    return tower, make_projector(config, dtype, packed)


def cell_dtype(dtype: str, config: Share4VConfig) -> str:
    """Return the dtype of a vision tower or projector of cells in a model of `dtype`, or one that cells have here."""
    operators = device_operators()
    if dtype in DTYPES and dtype in operators.dtypes:
        return dtype
    return config.computes_in if operators.computes_in_weight_dtype else "float32"


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
        ValueError: `numa` is unknown, does not suit the CPUs of this process, or needs the kernels.
    """
    chosen = choose_components(
        options.dtype or "float32", options.language_backend, options.vision_backend, options.kv_cache_dtype
    )
    weight_nodes(options.numa)
    if options.numa is not None and not runs_on_kernels(chosen.language_model):
        raise ValueError(
            f"numa {options.numa!r} places the weights of the CPU kernels, and the language model does not run on "
            "them: leave numa out, or leave language_backend out"
        )
