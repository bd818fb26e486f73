"""Any published form to this project's own, tensor by tensor; no model is built."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..configuration import CONFIG_NAME, PREPROCESSOR_NAME, read_json
from ..configuration_formats import form_of
from ..kernels.library import library
from ..quantization import PRECISIONS, QUANTIZED
from .atomic import STAGING, staged
from .formats import StoredTensor
from .layout import CheckpointLayout, locate
from .loading import cast, check_weights, weight_entries
from .packed import write_packed
from .saving import byte_count, write_shards
from .weights import MM_PROJECTOR, all_plans, expected_shapes

# Copied where the source has them; the vision tower's directory is asked for what the checkpoint's own has not.
COMPANIONS = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
    "processor_config.json",
)


def convert(
    source: str | Path,
    out: str | Path,
    vision_tower: str | Path | None = None,
    dtype: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    max_shard_size: str | int = "5GB",
    progress: bool | None = None,
) -> Path:
    """Write a checkpoint of any published form in this project's form: one directory with all that is needed.

    At most one shard is held in memory. The checkpoint is checked against its config first, and becomes visible in
    `out` when it is whole.

    Args:
        source: as `locate` takes it.
        out: the directory to write. It may be missing, empty, or hold an earlier checkpoint of this project's form,
            which is replaced.
        vision_tower: as `locate` takes it.
        dtype: "float32", "float16" or "bfloat16"; None keeps what is stored, except that bfloat16 becomes float32.
            "int8" or "int4" packs the weights for the CPU kernels in one file, which is then used where it lies,
            without a copy.
        cache_dir, local_files_only: as `locate` takes them.
        max_shard_size: as `save_weights` takes it.
        progress: show a bar on standard error; None shows it if that is a terminal.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` holds something else.
        CheckpointError: the source is damaged, incomplete or does not fit its config.
        KernelsMissingError: the dtype needs the CPU kernels, and they were not built.
        HubError, FileNotFoundError, ValueError: as `locate` says.
    """
    out = Path(out)
    if dtype is not None and dtype not in PRECISIONS:
        raise ValueError(f"dtype {dtype!r} cannot be written: expected one of {', '.join(PRECISIONS)}, or none")
    quantization = dtype if dtype in QUANTIZED else None
    if quantization is not None:
        library()  # raises where there are no kernels, before anything is read
    limit = byte_count(max_shard_size)
    _check_free(out)
    layout = locate(source, vision_tower, cache_dir, local_files_only)
    _check_source(layout, out)
    entries = weight_entries(layout)
    check_weights(entries, _expected(layout, entries), layout)
    with staged(out) as staging:
        hidden = not (sys.stderr.isatty() if progress is None else progress)
        with tqdm(total=len(entries), unit="tensor", desc=str(out), disable=hidden) as bar:
            if quantization is not None:
                write_packed(all_plans(layout.config, quantization), entries, staging, bar)
            else:
                write_shards(_converted(entries, dtype, bar), staging, limit)
        written = None if quantization else dtype or _written_dtype(entries)
        # The tower lies inside now, so nothing must be looked for elsewhere.
        changes: dict[str, Any] = {"vision_tower": None, "torch_dtype": written, "quantization": quantization}
        replace(layout.config, **changes).save_pretrained(staging)
        _copy_companions(layout, staging)
    return out


def _check_source(layout: CheckpointLayout, out: Path) -> None:
    """Refuse a source that would be written over, and one whose weights were rounded already."""
    if out.exists() and any(out.samefile(part) for part in (layout.directory, layout.vision_directory) if part):
        raise FileExistsError(f"{out} is the source itself: choose another directory for the result")
    if layout.config.quantization is not None:
        raise ValueError(
            f"{layout.directory} holds weights that were rounded to {layout.config.quantization} already: convert the "
            "checkpoint that they came from"
        )


def _check_free(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file, expected a directory to write to")
    if all(path.name.startswith(STAGING) for path in out.iterdir()):  # a killed run may have left one
        return
    try:
        ours = form_of(read_json(out / CONFIG_NAME)) == "own"
    except (FileNotFoundError, ValueError):
        ours = False
    if not ours:
        raise FileExistsError(
            f"{out} is not empty and holds no checkpoint that was converted before: choose an empty directory"
        )


def _expected(layout: CheckpointLayout, entries: Mapping[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    shapes, knows_projector = expected_shapes(layout.config)
    if not knows_projector:  # another package's: its weights are taken as they are
        shapes |= {name: tensor.shape for name, tensor in entries.items() if name.startswith(MM_PROJECTOR)}
    return shapes


def _converted(
    entries: Mapping[str, StoredTensor], dtype: str | None, bar: tqdm[Any]
) -> Iterator[tuple[str, np.ndarray]]:
    for name in sorted(entries):
        array = entries[name].read()
        yield name, array if dtype is None else cast(array, dtype, name)
        bar.update()


def _written_dtype(entries: Mapping[str, StoredTensor]) -> str:
    """Say the widest dtype that is written when each tensor keeps its own."""
    stored = {tensor.dtype for tensor in entries.values()}
    return "float16" if stored == {"float16"} else "float32"


def _copy_companions(layout: CheckpointLayout, staging: Path) -> None:
    for name in COMPANIONS:
        if (layout.directory / name).is_file():
            shutil.copyfile(layout.directory / name, staging / name)
    for directory in (layout.directory, layout.vision_directory):
        if directory is not None and (directory / PREPROCESSOR_NAME).is_file():
            shutil.copyfile(directory / PREPROCESSOR_NAME, staging / PREPROCESSOR_NAME)
            return
