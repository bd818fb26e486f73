"""convert: write a checkpoint of any published format in this project's format, one tensor at a time."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .calibration import embed_ids, find_pictures, picture_sequences, text_ids
from .checkpoint.atomic import STAGING, staged
from .checkpoint.errors import CheckpointError
from .checkpoint.formats import StoredTensor
from .checkpoint.gguf.pair import GGUFPair
from .checkpoint.layout import Checkpoint
from .checkpoint.loading import cast, check_weights, weight_entries
from .checkpoint.packed import finite_reader, groups_of, pack, packer, reader_of, write_packed, write_vectors
from .checkpoint.saving import byte_count, write_shards
from .checkpoint.weights import MM_PROJECTOR, all_plans, expected_shapes
from .configuration import CONFIG_NAME, PREPROCESSOR_NAME, Share4VConfig, read_json
from .configuration_formats import format_of
from .display import printable
from .kernels.blocks import BlockPlan, Shapes
from .kernels.library import library
from .kernels.packing import BlockWriter, block_bytes
from .language.weights import LANGUAGE_MODEL
from .load_options import CheckpointOptions, checked_options, explicit_options
from .processing.gguf_vocabulary import BYTE_LEVEL, template_of_gguf
from .processing.processor import Share4VProcessor
from .quantization import CONVERTED_LAYOUTS, LOADED_LAYOUTS, PRECISIONS, QUANTIZED
from .registry import TOKENIZERS
from .rounding.finished_layers import FinishedLayers, abandoned, fingerprint
from .rounding.gptq_layers import LayerRounder
from .rounding.rotation import RotatedWeights, Rotation

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .load_options import CheckpointArguments

logger = logging.getLogger(__name__)
TOKENIZER_NAME = "tokenizer.model"
# Files that are copied if the source has them, besides the preprocessor's, which may be in the tower's directory.
COMPANIONS = (
    TOKENIZER_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
    "processor_config.json",
)


@explicit_options(CheckpointOptions)
def convert(  # type: ignore[misc]  # vision_tower, an option, may be given by position, as before
    source: str | Path,
    out: str | Path,
    vision_tower: str | Path | None = None,
    dtype: str | None = None,
    *,
    max_shard_size: str | int = "5GB",
    progress: bool | None = None,
    fast: bool = False,
    on_note: Callable[[str], object] | None = None,
    calibrate: str | Path | None = None,
    **options: Unpack[CheckpointArguments],
) -> Path:
    """Write a checkpoint of any published format in this project's format: one directory with everything.

    No model is built, and at most one shard is in memory. The weights are checked against the config first, and `out`
    contains no checkpoint until it is complete. A source without a tokenizer is converted, with a logged warning; int4
    needs it, unless `fast` is set.

    Args:
        source: a directory, the name of a preset, owner/name on a hub, or a GGUF file.
        out: directory to write. It may be missing, empty, or hold an earlier checkpoint in this project's format,
            which is replaced.
        vision_tower: as described at `CheckpointOptions`.
        dtype: "float32", "float16" or "bfloat16"; None keeps the stored dtypes, except that bfloat16 becomes float32.
            "int8" or "int4" packs the weights for the CPU kernels into one file, which is used without a copy. For int4
            the language model is rotated (QuaRot) and its layers are rounded by GPTQ, which calibrates on a text that
            the package ships and takes an hour or two for a 7B on two cores; it resumes after a kill.
        max_shard_size: as in `save_weights`.
        progress: show a progress bar on standard error; None shows it if that is a terminal.
        fast: for int4, skip rotation and GPTQ, and round as loading a float checkpoint as int4 does: minutes instead of
            an hour or two, and more loss of quality.
        on_note: called with each line on how a GGUF file was understood, and on which of its types stay exact. Where
            they do in `dtype`, its integers are kept, and there is neither rotation nor GPTQ.
        calibrate: for int4, a folder of images like those to be captioned, with or without captions in .txt files
            beside them. GPTQ then calibrates on up to 200 of them too, each with the default prompt and its caption.
            A picture is some 600 tokens of a 7B, the text 25,000: the more pictures, the longer it takes.
        options: the other fields of `CheckpointOptions`, which describes them. A weight that an adapter changes is
            written in its stored dtype if `dtype` is None, as every other one.

    Returns:
        `out`.

    Raises:
        BlockingIOError: another process is converting the same checkpoint into `out`.
        FileExistsError: `out` contains something else.
        FileNotFoundError: int4 needs the checkpoint's tokenizer, which is missing.
        CheckpointError: the source is damaged, incomplete or does not fit its config.
        KernelsMissingError: the dtype needs the CPU kernels, and they were not built.
        HubError, FileNotFoundError, ValueError: as in `Checkpoint.open`.

    Example:
        >>> from mindone.models.share4v import convert
        >>> convert("sharegpt4v-tiny", "tiny-float16", dtype="float16").name
        'tiny-float16'
    """
    out = Path(out)
    pictures = _check_arguments(dtype, fast, calibrate)
    quantization = dtype if dtype in QUANTIZED else None
    layout = None if quantization is None else (LOADED_LAYOUTS if fast else CONVERTED_LAYOUTS)[quantization]
    limit = byte_count(max_shard_size)
    _check_target(out)
    own = signature(convert).parameters
    given = checked_options("convert", {**options, "vision_tower": vision_tower}, CheckpointOptions, own)
    checkpoint = Checkpoint.open(source, CheckpointOptions(**given))
    _check_source(checkpoint, out)
    if checkpoint.gguf is not None:
        layout = checkpoint.kept_layout(quantization) or layout
        for line in _notes(checkpoint.gguf, dtype, checkpoint.kept_layout(quantization)):
            (on_note or logger.info)(line)
    _check_tokenizer(checkpoint)
    entries = weight_entries(checkpoint)
    check_weights(entries, _expected(checkpoint, entries), checkpoint)
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    calibration: list[np.ndarray] = []
    if quantization == "int4" and layout == "rotated":
        calibration = _calibration(checkpoint, entries, pictures, not hidden)
    elif pictures:
        raise ValueError(f"{source}: its integers are kept as they are, so leave calibrate (--calibrate) out")
    with closing(_finished_layers(checkpoint, entries, calibration, out)) as finished:
        _report_abandoned(finished)
        shown = printable(str(out), keep="")
        with staged(out) as staging, tqdm(total=len(entries), unit="tensor", desc=shown, disable=hidden) as bar:
            if quantization is None:
                write_shards(_converted(entries, dtype, bar), staging, limit)
            else:
                config = replace(checkpoint.config, quantization=quantization, quantization_layout=layout)
                plans = all_plans(config, quantization)
                write_packed(plans, entries, staging, _packer(checkpoint, plans, entries, calibration, finished), bar)
            _config_of_result(checkpoint, dtype or _written_dtype(entries), layout).save_pretrained(staging)
            _copy_companions(checkpoint, staging)
        finished.remove()
    return out


def _config_of_result(checkpoint: Checkpoint, dtype: str, layout: str | None) -> Share4VConfig:
    """Return the config to write; the result contains its vision tower, so it must not name another place."""
    quantization = dtype if dtype in QUANTIZED else None
    changes: dict[str, Any] = {
        "vision_tower": None,
        "torch_dtype": None if quantization else dtype,
        "quantization": quantization,
        "quantization_layout": layout,
    }
    return replace(checkpoint.config, **changes)


def _check_arguments(dtype: str | None, fast: bool, calibrate: str | Path | None) -> list[Path]:
    """Check what can be checked before a checkpoint is opened or downloaded; return the images to calibrate on."""
    if dtype is not None and dtype not in PRECISIONS:
        raise ValueError(f"dtype {dtype!r} is not supported: use one of {', '.join(PRECISIONS)}, or leave it out")
    if fast and dtype != "int4":
        raise ValueError(f"fast is for dtype 'int4' only, got dtype {dtype!r}: leave fast out")
    if calibrate is not None and (fast or dtype != "int4"):
        raise ValueError("calibrate (--calibrate) is for int4, without fast (--fast): leave it out")
    if dtype in QUANTIZED:
        library()  # raises if there are no kernels, before anything is read
    return [] if calibrate is None else find_pictures(calibrate)


def _calibration(
    checkpoint: Checkpoint, entries: Mapping[str, StoredTensor], pictures: Sequence[Path], progress: bool
) -> list[np.ndarray]:
    """Return the sequences that GPTQ calibrates on, float32 [T, H] each: the packaged text, and images."""
    sequences = embed_ids(entries, text_ids(checkpoint))
    return sequences + picture_sequences(checkpoint, entries, pictures, progress) if pictures else sequences


def _packer(
    checkpoint: Checkpoint,
    plans: Sequence[BlockPlan],
    entries: Mapping[str, StoredTensor],
    calibration: list[np.ndarray],
    finished: FinishedLayers,
) -> Callable[[BlockPlan], np.ndarray]:
    """Return what packs the blocks: the language model's layers with GPTQ if there are sequences to calibrate on."""
    text, read = checkpoint.config.text_config, reader_of(entries)
    if not calibration:
        return packer(plans, text, read, groups_of(entries))
    weights = RotatedWeights(finite_reader(read), text, Rotation.random(text.hidden_size))
    rounder = LayerRounder(text, weights.layer, weights.rotation)
    finished.begin(calibration)
    calibration.clear()  # on disk now; pictures can take gigabytes

    def packed(plan: BlockPlan) -> np.ndarray:
        if not plan.name.startswith(f"{LANGUAGE_MODEL}layers."):
            return pack(plan, weights.reader(plan))
        layer = plan.spec.cache_layer
        if layer < finished.count:
            block = finished.block(layer)
            if block.size == block_bytes(plan.spec):
                return block
            raise CheckpointError(
                f"{finished.directory}: layer {layer} is damaged: delete this directory, and convert again"
            )
        writer = BlockWriter(plan.spec)
        write_vectors(writer, plan, weights.layer)
        try:
            block = rounder.block(plan, writer, finished.sequences())
        except OverflowError as error:
            raise CheckpointError(
                f"{plan.name}: {error}: check that the file is not damaged, or use another dtype (--dtype)"
            ) from error
        finished.add(layer, block)
        return block

    return packed


def _finished_layers(
    checkpoint: Checkpoint, entries: Mapping[str, StoredTensor], calibration: Sequence[np.ndarray], out: Path
) -> FinishedLayers:
    """Return where a conversion with GPTQ stores its finished layers, inside `out`.

    The name depends on the source and the calibration data, so that only the same conversion resumes from it.
    """
    merged = [(file, adapter.weight) for adapter in checkpoint.adapters for file in adapter.files]
    files = [(file, 1.0) for file in sorted({tensor.file for tensor in entries.values()})] + merged
    stated = [(str(file), weight, file.stat().st_size, file.stat().st_mtime_ns) for file, weight in files]
    return FinishedLayers(out / f"{STAGING}int4-{fingerprint(checkpoint.config.to_dict(), stated, *calibration)}")


def _report_abandoned(finished: FinishedLayers) -> None:
    """Log a warning for what interrupted conversions left in the same place: hours of work, or gigabytes of waste."""
    for path, count, size in abandoned(finished.directory):
        logger.warning(
            "%s has %d layer%s (%sB) of an interrupted conversion to int4 with another source, adapter, calibration or "
            "version: the command that began it continues it, with the version that began it; delete the directory if "
            "you do not need it",
            path,
            count,
            "" if count == 1 else "s",
            tqdm.format_sizeof(size),
        )


def _check_source(checkpoint: Checkpoint, out: Path) -> None:
    """Refuse a source that would be overwritten, and one whose weights are quantized already."""
    parts = [part for part in (checkpoint.directory, checkpoint.vision_directory) if part is not None]
    if out.exists() and any(out.samefile(part) for part in parts):
        raise FileExistsError(f"{out} is the source itself: choose another directory for the result")
    if checkpoint.config.quantization is not None:
        raise ValueError(
            f"{checkpoint.directory} holds weights that were already rounded to {checkpoint.config.quantization}: "
            "convert the checkpoint that they came from"
        )


def _check_tokenizer(checkpoint: Checkpoint) -> None:
    """Log a warning if the result will have no tokenizer, which captioning needs."""
    directory = checkpoint.directory
    has_tokenizer = (directory / TOKENIZER_NAME).is_file() or TOKENIZERS.resolve(BYTE_LEVEL).is_in(directory)
    if checkpoint.gguf is None and not has_tokenizer:
        logger.warning(
            "%s has no %s, so the result will have none either, and cannot caption until you copy one there: the file "
            "of this name from any Vicuna or LLaMA checkpoint",
            directory,
            TOKENIZER_NAME,
        )


def _check_target(out: Path) -> None:
    """Refuse to write into a directory that holds anything but a checkpoint in this project's format."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file: give a directory to write to")
    if all(path.name.startswith(STAGING) for path in out.iterdir()):  # left behind by a process that was killed
        return
    try:
        ours = format_of(read_json(out / CONFIG_NAME)) == "own"
    except (FileNotFoundError, ValueError):
        ours = False
    if not ours:
        raise FileExistsError(
            f"{out} is not empty, and what it holds is not a converted checkpoint: choose an empty directory"
        )


def _expected(checkpoint: Checkpoint, entries: Mapping[str, StoredTensor]) -> Shapes:
    """Return the shape of every weight; a projector that another package registered is accepted as stored."""
    shapes, knows_projector = expected_shapes(checkpoint.config)
    if not knows_projector:
        shapes |= {name: tensor.shape for name, tensor in entries.items() if name.startswith(MM_PROJECTOR)}
    return shapes


def _converted(
    entries: Mapping[str, StoredTensor], dtype: str | None, bar: tqdm[Any]
) -> Iterator[tuple[str, np.ndarray]]:
    for name in sorted(entries):
        tensor = entries[name]
        array = tensor.read()
        # A merged weight is read as float32, also where float16 is stored.
        target = dtype or ("float16" if tensor.dtype == "float16" else None)
        yield name, array if target is None else cast(array, target, name)
        bar.update()


def _written_dtype(entries: Mapping[str, StoredTensor]) -> str:
    """Return the widest dtype that is written if each tensor keeps its own."""
    stored = {tensor.dtype for tensor in entries.values()}
    return "float16" if stored == {"float16"} else "float32"


def _notes(pair: GGUFPair, dtype: str | None, layout: str | None) -> list[str]:
    """Return what the user should know about a conversion of GGUF files."""
    template, why = template_of_gguf(pair.language.metadata)
    return [*pair.notes, f"conversation template: {template}; {why}", *pair.exactness(dtype, layout)]


def _copy_companions(checkpoint: Checkpoint, staging: Path) -> None:
    if checkpoint.gguf is not None:
        Share4VProcessor.from_checkpoint(checkpoint).save_pretrained(staging)
        return
    for name in COMPANIONS:
        if (checkpoint.directory / name).is_file():
            shutil.copyfile(checkpoint.directory / name, staging / name)
    for directory in (checkpoint.directory, checkpoint.vision_directory):
        if directory is not None and (directory / PREPROCESSOR_NAME).is_file():
            shutil.copyfile(directory / PREPROCESSOR_NAME, staging / PREPROCESSOR_NAME)
            return
