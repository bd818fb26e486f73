"""From files to a model: every weight under our names, strictly checked before the first is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .bfloat16 import dtype_name, from_bfloat16, to_bfloat16
from .errors import CheckpointError, listing
from .formats import StoredTensor, find_weights, stored_tensors
from .layout import CheckpointLayout
from .packed import Packed, expected_of, fill
from .weights import COMPONENTS, LANGUAGE_MODEL, LM_HEAD, VISION_TOWER, expected_shapes, is_known, our_name

if TYPE_CHECKING:
    from mindspore import Parameter, nn

DTYPES = ("float32", "float16", "bfloat16")


def weight_entries(layout: CheckpointLayout) -> dict[str, StoredTensor]:
    """Return every weight of a checkpoint under our name, not yet read.

    In this project's own form a component that another package registered has names that no table knows; they are
    taken as they are.

    Raises:
        CheckpointError: a name that no table knows, two tensors for one weight, or an output layer that differs from
            the embeddings that the config says it shares.
        FileNotFoundError: there are no weight files.
    """
    tensors = [(tensor, False) for tensor in stored_tensors(find_weights(layout.directory))]
    if layout.vision_directory is not None:
        tensors += [(tensor, True) for tensor in stored_tensors(find_weights(layout.vision_directory))]
    taken = COMPONENTS if layout.form == "own" else ()
    unknown = [
        f"{tensor.name} ({tensor.file.name})"
        for tensor, _ in tensors
        if not (is_known(tensor.name) or tensor.name.startswith(taken))
    ]
    if unknown:
        raise CheckpointError(
            f"{layout.directory} holds {len(unknown)} tensors whose names no known form of ShareGPT4V has: "
            f"{listing(unknown)}"
        )
    entries: dict[str, StoredTensor] = {}
    for tensor, of_tower in tensors:
        name = our_name(tensor.name) if is_known(tensor.name) else tensor.name
        is_vision = name is not None and name.startswith(VISION_TOWER)
        # A separate tower gives the vision weights and nothing else.
        if name is None or (layout.vision_directory is not None and is_vision != of_tower):
            continue
        if name in entries:
            other = entries[name]
            raise CheckpointError(
                f"two tensors are meant to be {name}: {other.name} in {other.file} and {tensor.name} in {tensor.file}"
            )
        entries[name] = tensor
    if layout.config.text_config.tie_word_embeddings:
        _drop_tied_head(entries)
    return entries


def _drop_tied_head(entries: dict[str, StoredTensor]) -> None:
    head = entries.pop(f"{LM_HEAD}weight", None)
    embeddings = entries.get(f"{LANGUAGE_MODEL}embed_tokens.weight")
    if head is None or embeddings is None:
        return
    if head.shape != embeddings.shape or not np.array_equal(head.read(), embeddings.read()):
        raise CheckpointError(
            f"config.json says tie_word_embeddings, but {head.name} in {head.file} differs from {embeddings.name}; "
            "set tie_word_embeddings to false to use both"
        )


def check_weights(
    entries: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], layout: CheckpointLayout
) -> None:
    """Compare a checkpoint's names and shapes with those expected.

    Raises:
        CheckpointError: any is missing, extra or misshapen; the message names them.
    """
    missing = [name for name in expected if name not in entries]
    extra = [f"{name} ({entries[name].name})" for name in entries if name not in expected]
    misshapen = [
        f"{name} is {list(entries[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in entries and entries[name].shape != shape
    ]
    kinds = {"missing": missing, "not in the model": extra, "of another shape": misshapen}
    problems = [f"- {len(names)} {kind}: {listing(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise CheckpointError(
            f"the weights in {layout.directory} do not fit its config:\n" + "\n".join(problems) + "\n"
            "Is config.json the one of these weights, and the vision tower the right one?"
        )


def iterate_weights(layout: CheckpointLayout) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (our name, array) for every weight, one tensor at a time, in the stored dtype.

    bfloat16 comes as float32, which holds it exactly. An array may be a read-only view of the file.

    Raises:
        CheckpointError: as `weight_entries` says.
    """
    for name, tensor in weight_entries(layout).items():
        yield name, tensor.read()


def cast(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Convert a floating-point weight; bfloat16 becomes bfloat16.BFLOAT16.

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
        raise CheckpointError(f"{name} holds values up to {largest:g}, more than {dtype} can: use dtype='float32'")
    return result


def load_weights(
    cell: nn.Cell, layout: CheckpointLayout, dtype: str | None = None, packed: Sequence[Packed] = ()
) -> None:
    """Fill a model's parameters; besides the model only one tensor is held.

    Build the model under `mindspore.nn.utils.no_init_parameters()`, so that its parameters take no memory before
    they are filled.

    Args:
        cell: its parameters are named as this project names weights.
        layout: what `locate` found.
        dtype: "float32", "float16" or "bfloat16"; None keeps each parameter's own.
        packed: the cell's parts that keep their weights in blocks, which are filled too.

    Raises:
        CheckpointError: a weight is missing, extra, misshapen or too large for `dtype`. Nothing was loaded then,
            except in the last case.
        ValueError: `dtype` is something else.

    Example:
        >>> from mindspore.nn.utils import no_init_parameters
        >>> layout = locate("ShareGPT4V-7B")  # doctest: +SKIP
        >>> with no_init_parameters():  # doctest: +SKIP
        ...     model = Share4V(layout.config)
        >>> load_weights(model, layout, "float32")  # doctest: +SKIP
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported here: expected one of {', '.join(DTYPES)}")
    parameters = {parameter.name or key: parameter for key, parameter in cell.parameters_dict().items()}
    entries = weight_entries(layout)
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    shapes, quantized = expected_shapes(layout.config)[0], layout.config.quantization is not None
    for component in packed:
        expected |= expected_of(component, shapes, quantized)
    check_weights(entries, expected, layout)
    for name, parameter in parameters.items():
        _fill(parameter, name, entries[name], dtype)
        entries[name].release()
    for component in packed:
        fill(component, entries, quantized)


def _fill(parameter: Parameter, name: str, tensor: StoredTensor, dtype: str | None) -> None:
    import mindspore as ms

    target: Any = parameter.dtype if dtype is None else getattr(ms, dtype)
    if parameter.dtype != target:
        parameter.set_dtype(target)
    array = cast(tensor.read(), str(target).lower(), name)
    parameter.set_data(ms.Tensor(from_bfloat16(array), target) if target == ms.bfloat16 else ms.Tensor(array))
