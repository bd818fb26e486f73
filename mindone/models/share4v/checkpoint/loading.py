"""Loading: every weight of a checkpoint under our name, checked before the first is read, into a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bfloat16 import dtype_name, from_bfloat16, to_bfloat16
from ..language.weights import language_plans
from ..rounding.importance import Importance
from ..rounding.reference import STACKED
from .adapters import merged_entries
from .errors import CheckpointError, listing
from .formats import StoredTensor, find_weights, stored_tensors
from .formats.mapped_file import FileVersion
from .layout import Checkpoint
from .packed import Packed, expected_of, fill, finite_reader, reader_of
from .weights import COMPONENTS, LANGUAGE_MODEL, LM_HEAD, VISION_TOWER, expected_shapes, is_known, our_name

if TYPE_CHECKING:
    from mindspore import Parameter, nn

    from ..configuration import Share4VConfig
    from ..nn.integer_linear import IntegerLinear

DTYPES = ("float32", "float16", "bfloat16")
# Part of a layer -> the key of its input in Importance.of, which queries, keys and values share, and gate and up too.
INPUT_OF = {part: number for number, parts in enumerate(STACKED) for part in parts}
RECOMMENDATION = (
    "%s is rounded to int4 as it is loaded, each time; `share4v convert --dtype int4` rounds it once and better, with "
    "GPTQ, and its result loads at once"
)

logger = logging.getLogger(__name__)


def weight_entries(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Return every weight of a checkpoint by our name; the tensors are not read yet.

    `entry.read()` returns a tensor as an array in the stored dtype, except that bfloat16 becomes float32, which
    represents it exactly. The array may be a read-only view of the file. A weight that an adapter changes is merged as
    it is read, into an array of float32.

    In this project's own format, a component that another package registered has names that no table knows; they are
    used as they are.

    Raises:
        CheckpointError: a name is in no table, two tensors have the same name, or the output layer differs from the
            embeddings that it shares according to the config.
        FileNotFoundError: there are no weight files.
    """
    if checkpoint.gguf is not None:
        tensors = [(tensor, False) for tensor in checkpoint.gguf.stored_tensors()]
    else:
        tensors = [(tensor, False) for tensor in stored_tensors(find_weights(checkpoint.directory))]
    if checkpoint.vision_directory is not None:
        tensors += [(tensor, True) for tensor in stored_tensors(find_weights(checkpoint.vision_directory))]
    accepted = COMPONENTS if checkpoint.format == "own" else ()
    unknown = [
        f"{tensor.name} ({tensor.file.name})"
        for tensor, _ in tensors
        if not (is_known(tensor.name) or tensor.name.startswith(accepted))
    ]
    if unknown:
        raise CheckpointError(
            f"{checkpoint.directory} holds {len(unknown)} tensors whose names are in no known format of ShareGPT4V: "
            f"{listing(unknown)}"
        )
    entries: dict[str, StoredTensor] = {}
    for tensor, is_in_tower in tensors:
        name = our_name(tensor.name) if is_known(tensor.name) else tensor.name
        is_vision = name is not None and name.startswith(VISION_TOWER)
        # Of a separate tower only the vision weights are used, and they replace the checkpoint's.
        if name is None or (checkpoint.vision_directory is not None and is_vision != is_in_tower):
            continue
        if name in entries:
            other = entries[name]
            raise CheckpointError(
                f"two tensors have the name {name}: {other.name} in {other.file} and {tensor.name} in {tensor.file}"
            )
        entries[name] = tensor
    if checkpoint.config.text_config.tie_word_embeddings:
        _drop_tied_head(entries)
    return merged_entries(entries, checkpoint.adapters)


def _drop_tied_head(entries: dict[str, StoredTensor]) -> None:
    head = entries.pop(f"{LM_HEAD}weight", None)
    embeddings = entries.get(f"{LANGUAGE_MODEL}embed_tokens.weight")
    if head is None or embeddings is None:
        return
    if head.shape != embeddings.shape or not np.array_equal(head.read(), embeddings.read()):
        raise CheckpointError(
            f"config.json sets tie_word_embeddings, but {head.name} in {head.file} differs from {embeddings.name}; "
            "set tie_word_embeddings to false to use both"
        )


def check_weights(
    entries: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint
) -> None:
    """Compare a checkpoint's names and shapes with those expected.

    Raises:
        CheckpointError: a weight is missing, unexpected or has the wrong shape; the message names it.
    """
    missing = [name for name in expected if name not in entries]
    unexpected = [f"{name} ({entries[name].name})" for name in entries if name not in expected]
    misshapen = [
        f"{name} is {list(entries[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in entries and entries[name].shape != shape
    ]
    kinds = {"missing": missing, "not in the model": unexpected, "of the wrong shape": misshapen}
    problems = [f"- {len(names)} {kind}: {listing(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise CheckpointError(
            f"the weights in {checkpoint.directory} do not fit its config:\n" + "\n".join(problems) + "\n"
            "Check that config.json belongs to these weights, and that this is the right vision tower"
        )


def cast(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Convert a floating-point weight; bfloat16 is returned as bfloat16.BFLOAT16.

    Raises:
        CheckpointError: a finite value is too large for `dtype`.
    """
    if dtype_name(array) == dtype:
        return array
    if dtype == "bfloat16":
        result = to_bfloat16(array)
        overflows = not np.array_equal(np.isfinite(array), np.isfinite(from_bfloat16(result)))
    else:
        with np.errstate(over="ignore"):
            result = array.astype(dtype)
        is_narrow = np.finfo(dtype).max < np.finfo(np.float32).max
        overflows = bool(is_narrow) and not np.array_equal(np.isfinite(array), np.isfinite(result))
    if overflows:
        largest = np.abs(array[np.isfinite(array)]).max()
        raise CheckpointError(
            f"{name} has values up to {largest:g}, too large for {dtype}: use dtype (--dtype) float32"
        )
    return result


def load_weights(
    cell: nn.Cell, checkpoint: Checkpoint, dtype: str | None = None, packed: Sequence[Packed] = ()
) -> frozenset[FileVersion]:
    """Fill a model's parameters; apart from the model, only one tensor is in memory at a time.

    Returns the files that packed blocks are mapped from; `FileVersion.check` must be called before they are used.

    Build the model under `mindspore.nn.utils.no_init_parameters()`, so that its parameters take no memory before
    they are filled.

    Args:
        cell: its parameters have this project's names of weights.
        checkpoint: the open checkpoint.
        dtype: "float32", "float16" or "bfloat16"; None keeps the dtype of each parameter.
        packed: the components of the cell whose weights are packed blocks; they are filled too.

    Raises:
        CheckpointError: a weight is missing, unexpected, of the wrong shape or too large for `dtype`. Except in the
            last case, nothing was loaded.
        ValueError: `dtype` is none of these.

    Example:
        >>> from mindspore.nn.utils import no_init_parameters
        >>> checkpoint = Checkpoint.open("ShareGPT4V-7B")  # doctest: +SKIP
        >>> with no_init_parameters():  # doctest: +SKIP
        ...     model = Share4V(checkpoint.config)
        >>> load_weights(model, checkpoint, "float32")  # doctest: +SKIP
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported here: use one of {', '.join(DTYPES)}")
    parameters = {parameter.name or key: parameter for key, parameter in cell.parameters_dict().items()}
    rounded = _integer_layers(cell)
    for layer in rounded.values():  # their integers and scales are made from one weight of the checkpoint
        for parameter in (layer.weight, layer.scale, layer.offset):
            if parameter is not None:
                del parameters[parameter.name]
    entries = weight_entries(checkpoint)
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    expected |= {name: layer.shape for name, layer in rounded.items()}
    shapes, quantized = expected_shapes(checkpoint.config)[0], checkpoint.config.quantization is not None
    for component in packed:
        expected |= expected_of(component, shapes, quantized)
    check_weights(entries, expected, checkpoint)
    fill_parameters(parameters, entries, dtype)
    _round_layers(rounded, entries, checkpoint.config)
    mapped: frozenset[FileVersion] = frozenset()
    matrices = (matrix for part in packed for plan in part.plans for matrix in plan.spec.matrices)
    if not quantized and any(matrix.dtype == "int4-256" for matrix in matrices):
        logger.warning(RECOMMENDATION, checkpoint.directory)
    for component in packed:
        mapped |= fill(component, entries, quantized, checkpoint.config.text_config)
    return mapped


def _integer_layers(cell: nn.Cell) -> dict[str, IntegerLinear]:
    """Return the layers that round their weight, by the weight's name."""
    from ..nn.integer_linear import IntegerLinear

    layers = (part for _, part in cell.cells_and_names() if isinstance(part, IntegerLinear))
    return {layer.weight.name: layer for layer in layers}


def _round_layers(
    layers: Mapping[str, IntegerLinear], entries: Mapping[str, StoredTensor], config: Share4VConfig
) -> None:
    """Fill layers of integers, by their weights' names, in the order of the model.

    Raises:
        CheckpointError: a weight has values that are not finite.
    """

    read = reader_of(entries)
    checked, importance = finite_reader(read), Importance(config.text_config, read)
    weighs = any(layer.is_int4 for layer in layers.values())
    for plan in language_plans(config, "float32") if layers else ():
        prefix = f"{plan.name}."
        found = importance.of(plan) if weighs else {}
        for name in [name for name in layers if name.startswith(prefix)]:
            layer, part = layers[name], name.removeprefix(prefix).removesuffix(".weight")
            narrow = partial(_narrowed, dtype=str(layer.activations).lower())
            layer.put(checked(name), narrow, found.get(INPUT_OF.get(part, -1)))


def _narrowed(array: np.ndarray, dtype: str) -> np.ndarray:
    """Round an array to float16 or bfloat16; as float32."""
    return from_bfloat16(to_bfloat16(array)) if dtype == "bfloat16" else array.astype(dtype).astype(np.float32)


def fill_parameters(
    parameters: Mapping[str, Parameter], entries: Mapping[str, StoredTensor], dtype: str | None = None
) -> None:
    """Fill parameters from checked entries of the same names; `dtype` as in `load_weights`, whose errors apply."""
    for name, parameter in parameters.items():
        _fill(parameter, name, entries[name], dtype)
        entries[name].release()


def _fill(parameter: Parameter, name: str, tensor: StoredTensor, dtype: str | None) -> None:
    import mindspore as ms

    target: Any = parameter.dtype if dtype is None else getattr(ms, dtype)
    if parameter.dtype != target:
        parameter.set_dtype(target)
    array = cast(tensor.read(), str(target).lower(), name)
    parameter.set_data(ms.Tensor(from_bfloat16(array), target) if target == ms.bfloat16 else ms.Tensor(array))
