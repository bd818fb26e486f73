"""export_gguf: write a checkpoint as a pair of GGUF files, for llama.cpp and the programs on top of it."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint.formats.gguf import SUFFIX
from .checkpoint.gguf.writing import (
    DTYPES,
    language_metadata,
    language_plan,
    vision_metadata,
    vision_plan,
    write_file,
)
from .checkpoint.layout import Checkpoint
from .checkpoint.loading import check_weights, weight_entries
from .checkpoint.weights import expected_shapes
from .load_options import CheckpointOptions, checked_options, explicit_options
from .processing.gguf_vocabulary import vocabulary_metadata
from .processing.processor import Share4VProcessor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .load_options import CheckpointArguments


@explicit_options(CheckpointOptions)
def export_gguf(  # type: ignore[misc]  # vision_tower, an option, may be given by position, as before
    source: str | Path,
    out: str | Path,
    mmproj: str | Path,
    vision_tower: str | Path | None = None,
    dtype: str = "f16",
    **options: Unpack[CheckpointArguments],
) -> tuple[Path, Path]:
    """Write a checkpoint of any format as two GGUF files that llama.cpp reads; needs the package `gguf`.

    One tensor is in memory at a time. Both files have their names only when they are complete.

    Args:
        source: a directory, the name of a preset, owner/name on a hub, or a GGUF file.
        out: the language model's file, which must not exist.
        mmproj: the file of the vision tower and the projector, which must not exist. Its matrices are float16, as in
            published files, or float32 with the dtype "f32".
        vision_tower: as described at `CheckpointOptions`.
        dtype: type of the language model's matrices: "f32", "f16", "q8_0", or "q4_0" (with "q8_0" for embeddings and
            output layer). Matrices whose rows are no multiple of 32 values are written as "f16" instead of integers.
        options: the other fields of `CheckpointOptions`, which describes them.

    Returns:
        (out, mmproj).

    Raises:
        ImportError: the package `gguf` is not installed.
        FileExistsError: a file exists.
        ValueError: llama.cpp has nothing like this model; or the dtype or a name is not one of these.
        CheckpointError: the source is damaged, incomplete or does not fit its config, or a value is too large.
        HubError, FileNotFoundError: as in `Checkpoint.open`.

    Example:
        >>> from mindone.models.share4v import export_gguf
        >>> export_gguf("sharegpt4v-tiny", "tiny.gguf", "mmproj-tiny.gguf", dtype="q8_0")[0].name
        'tiny.gguf'
    """
    out, mmproj = Path(out), Path(mmproj)
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of GGUF's that can be written: use one of {', '.join(DTYPES)}")
    for name, path in (("out (--out)", out), ("mmproj (--mmproj)", mmproj)):
        if path.suffix != SUFFIX:
            raise ValueError(f"{name} is {str(path)!r}, expected a file name that ends in {SUFFIX}")
        if path.exists():
            raise FileExistsError(f"{path} exists: give {name} another name, or delete the file")
    if out.absolute() == mmproj.absolute():
        raise ValueError(f"out and mmproj are both {out}: language model and vision tower are two files")
    _require_gguf()
    own = signature(export_gguf).parameters
    given = checked_options("export_gguf", {**options, "vision_tower": vision_tower}, CheckpointOptions, own)
    checkpoint = Checkpoint.open(source, CheckpointOptions(**given))
    config = checkpoint.config
    if not config.has_vision:
        raise ValueError(
            f"{checkpoint.directory} is a language model without a vision tower: there is no mmproj to write"
        )
    if config.quantization is not None:
        raise ValueError(
            f"{checkpoint.directory} holds weights that were already rounded to {config.quantization}: export the "
            "checkpoint that they came from"
        )
    entries = weight_entries(checkpoint)
    check_weights(entries, expected_shapes(config)[0], checkpoint)
    processor = Share4VProcessor.from_checkpoint(checkpoint)
    images = processor.image_processor
    language: dict[str, Any] = {
        **language_metadata(config.text_config),
        **vocabulary_metadata(processor.tokenizer, config.text_config.vocab_size, processor.conversation),
    }
    vision = vision_metadata(config, images.image_mean, images.image_std)
    for path in (out, mmproj):
        path.parent.mkdir(parents=True, exist_ok=True)
    name = str(source) if "/" not in str(source) else Path(source).name
    language["general.name"] = vision["general.name"] = name
    write_file(out, language_plan(entries, config.text_config, dtype), "llama", language)
    try:
        write_file(mmproj, vision_plan(entries, config, dtype), "clip", vision)
    except BaseException:  # an interrupt too
        out.unlink()  # half a pair is of no use
        raise
    return out, mmproj


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError("writing GGUF files needs the package gguf: pip install 'mindone-share4v[gguf]'") from error
