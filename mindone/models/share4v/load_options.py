"""Options of opening a checkpoint and of loading its model: each is defined, typed and documented here only.

The dataclasses carry the values. The TypedDicts type the same names as keyword arguments of public functions
(`**options: Unpack[LoadArguments]`); `explicit_options` shows them one by one in `help()`. A new option is a field of a
dataclass and a key of its TypedDict, side by side, and on the command line a flag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from inspect import Parameter, signature
from math import isfinite
from pathlib import Path, PurePath
from typing import Any, TypedDict, TypeVar

from .hugging_face import split_arguments

Function = TypeVar("Function", bound=Callable[..., Any])
Options = TypeVar("Options", bound="CheckpointOptions")


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Where the files of a checkpoint come from.

    Attributes:
        vision_tower: directory or name of the vision tower's own checkpoint; by default the one that the checkpoint
            contains, or that its config.json names as mm_vision_tower. Of a GGUF model, its mmproj file, or the name of
            one of its repository's.
        cache_dir: directory for downloads; by default SHARE4V_HOME, else ~/.cache/share4v.
        local_files_only: use only files that are on this machine, and open no connection.
        revision: branch, tag or commit of a repository on the Hugging Face hub; by default its main branch.
        token: access token of the Hugging Face hub; by default HF_TOKEN or the one that `hf auth login` stored.
        subfolder: folder of the repository, or of the directory, that holds the checkpoint.
        adapter: directory of a LoRA adapter as PEFT or LLaVA writes it, or owner/name of its repository on a hub
            (owner/name/folder for a folder of it), or {directory or name: weight} for several. Adapters are merged into
            the weights as these are read, in float32 and before they are rounded to `dtype`.

    Raises:
        TypeError, ValueError: `adapter` is no directory and no mapping of directories to finite numbers.

    Example:
        >>> from mindone.models.share4v.load_options import CheckpointOptions
        >>> CheckpointOptions(local_files_only=True).vision_tower is None
        True
    """

    vision_tower: str | Path | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    subfolder: str = ""
    adapter: str | Path | Mapping[str, float] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", adapter_weights(self.adapter) or None)

    @classmethod
    def pick(cls: type[Options], arguments: Mapping[str, Any]) -> Options:
        """Make the options from those of `arguments` that are options of this class; the others are ignored."""
        return cls(**{name: arguments[name] for name in option_names(cls) if name in arguments})


@dataclass(frozen=True, kw_only=True)
class LoadOptions(CheckpointOptions):
    """Where the files of a checkpoint come from, and how its model is loaded.

    Attributes:
        dtype: type of the weight matrices in memory: "float32" (the default), "float16", "bfloat16", or "int8" or
            "int4", to which each weight is rounded as it is read (on an Ascend, the language model's only). On a CPU,
            "bfloat16" needs the kernels, which round the inputs of products to it too and add in float32. A checkpoint
            that `share4v convert` wrote as int8 or int4 keeps its type, is used from the file without a copy, and needs
            a CPU. Types of MindSpore, NumPy and PyTorch mean their names; "auto" is the default.
        language_backend, vision_backend: which implementation runs the language model and the vision tower. "auto" is
            the fastest for inference on this device ("native" is a synonym), "mindspore" are cells of MindSpore's
            operators, which can be trained and run on every device, and "kernels" are the CPU kernels. The name of a
            registered component is accepted too.
        kv_cache_dtype: type of the cached keys and values on the kernels, "float32", "float16" or "int8"; by default
            float32 for float32 weights, else float16.
        numa: on a machine with several NUMA nodes (sockets), where the weights on the kernels lie: "interleave" spreads
            them over the nodes that this process runs on, "local" puts them on its only node. Either copies them, also
            those of a converted checkpoint. By default the system decides, and a mapped file lies where it was read
            first.

    Example:
        >>> from mindone.models.share4v.load_options import LoadOptions
        >>> LoadOptions(dtype="int4", vision_backend="native").vision_backend
        'auto'
    """

    dtype: str | None = None
    language_backend: str = "auto"
    vision_backend: str = "auto"
    kv_cache_dtype: str | None = None
    numa: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        for name in ("language_backend", "vision_backend"):
            if getattr(self, name) in ("native", None):
                object.__setattr__(self, name, "auto")


class CheckpointArguments(TypedDict, total=False):
    """The fields of CheckpointOptions as keyword arguments."""

    vision_tower: str | Path | None
    cache_dir: str | Path | None
    local_files_only: bool
    revision: str | None
    token: str | bool | None
    subfolder: str
    adapter: str | Path | Mapping[str, float] | None


class LoadArguments(CheckpointArguments, total=False):
    """The fields of LoadOptions as keyword arguments."""

    dtype: str | None
    language_backend: str
    vision_backend: str
    kv_cache_dtype: str | None
    numa: str | None


_SHORT_NAMES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}


def dtype_name(dtype: object) -> str | None:
    """Return the name of a type of MindSpore, NumPy or PyTorch, such as "float16"; None and "auto" become None.

    Example:
        >>> from mindone.models.share4v.load_options import dtype_name
        >>> import numpy as np
        >>> dtype_name(np.float16), dtype_name("torch.bfloat16"), dtype_name("fp16"), dtype_name("auto")
        ('float16', 'bfloat16', 'float16', None)
    """
    if dtype is None or dtype == "auto":
        return None
    if isinstance(dtype, str) and dtype in _SHORT_NAMES:
        return _SHORT_NAMES[dtype]
    if isinstance(dtype, type):  # a scalar type of NumPy
        return dtype.__name__
    name = str(dtype).rpartition(".")[2]
    return name if isinstance(dtype, str) else name.lower()


def adapter_weights(adapter: object) -> dict[str, float]:
    """Return adapters as {directory: weight}, whether one directory or such a mapping is given.

    Raises:
        TypeError, ValueError: it is neither, or a weight is no finite number.

    Example:
        >>> from mindone.models.share4v.load_options import adapter_weights
        >>> adapter_weights("my-lora"), adapter_weights({"a": 1, "b": 0.5})
        ({'my-lora': 1.0}, {'a': 1.0, 'b': 0.5})
    """
    given = {} if adapter is None else {adapter: 1.0} if isinstance(adapter, (str, PurePath)) else adapter
    if not isinstance(given, Mapping) or not all(isinstance(path, (str, PurePath)) for path in given):
        raise TypeError(
            f"adapter is a {type(adapter).__name__}: give the directory of a LoRA adapter, or {{directory: weight}} "
            "for several"
        )
    for path, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not isfinite(weight):
            raise ValueError(f"adapter {str(path)!r} has the weight {weight!r}: expected a finite number, such as 0.5")
        if not str(path):
            raise ValueError("adapter '' is empty: give the directory of a LoRA adapter")
    return {str(path): float(weight) for path, weight in given.items()}


# Hugging Face's names of options that are named differently here.
ALIASES = {"torch_dtype": "dtype", "mindspore_dtype": "dtype"}


def checked_options(
    place: str, arguments: Mapping[str, Any], options: type[CheckpointOptions], others: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the arguments that are options of this class; None means "not set", and the others are checked.

    Args:
        place: the function, as in `hugging_face.ARGUMENTS`.
        arguments: what the caller gave.
        options: CheckpointOptions or LoadOptions.
        others: the function's other arguments, for "did you mean".

    Raises:
        TypeError, ValueError: as `hugging_face.check_arguments`.
    """
    return split_arguments(place, arguments, option_names(options), ALIASES, others)


def option_names(options: type[CheckpointOptions]) -> tuple[str, ...]:
    """Return the names of the fields of CheckpointOptions or of a subclass."""
    return tuple(item.name for item in fields(options))


def explicit_options(options: type[CheckpointOptions]) -> Callable[[Function], Function]:
    """Decorate a function whose last parameter is `**options`, so that `help()` lists the fields of a dataclass.

    Fields that are parameters of the function anyway are not listed twice.
    """
    return with_parameters(map(_parameter, fields(options)))


def with_parameters(parameters: Iterable[Parameter]) -> Callable[[Function], Function]:
    """Decorate a function whose last parameter is `**arguments`, so that `help()` lists these parameters instead."""
    listed = list(parameters)

    def decorate(function: Function) -> Function:
        shown = signature(function)
        own = [item for item in shown.parameters.values() if item.kind is not Parameter.VAR_KEYWORD]
        more = [item for item in listed if item.name not in shown.parameters]
        function.__signature__ = shown.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return function

    return decorate


def _parameter(item: Field[Any]) -> Parameter:
    default = Parameter.empty if item.default is MISSING else item.default
    return Parameter(item.name, Parameter.KEYWORD_ONLY, default=default, annotation=item.type)
