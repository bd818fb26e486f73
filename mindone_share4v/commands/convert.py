"""`share4v convert`: write a checkpoint of any published format as one safetensors directory."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..arguments.convert import DTYPES, GGUF_DTYPES, GGUF_SUFFIX
from ..printing import one_line, print_text
from ..signals import raise_interrupt, signal_handler
from .common import usage_error
from .exit_status import DONE


def run(arguments: Namespace) -> int:
    """Convert the checkpoint, print where it was written and its size, and return the exit status."""
    from tqdm import tqdm

    from mindone.models.share4v import convert

    is_gguf = Path(arguments.out).suffix == GGUF_SUFFIX
    wrong = _wrong_combination(arguments, is_gguf)
    if wrong is not None:
        return usage_error(arguments, ValueError(wrong))
    if is_gguf:
        return _export(arguments)
    try:
        with signal_handler(raise_interrupt):  # so that `convert` removes an unfinished directory
            written = convert(
                arguments.source,
                arguments.out,
                vision_tower=arguments.vision_tower,
                dtype=arguments.dtype,
                cache_dir=arguments.cache_dir,
                local_files_only=arguments.local_files_only,
                revision=arguments.revision,
                subfolder=arguments.subfolder,
                fast=arguments.fast,
                adapter=arguments.adapter,
                on_note=lambda line: print_text(one_line(line)),
                calibrate=arguments.calibrate,
            )
    except (ValueError, OSError) as error:
        return usage_error(arguments, error)
    size = sum(path.stat().st_size for path in Path(written).glob("*.safetensors"))
    print_text(one_line(f"{written}: {tqdm.format_sizeof(size, 'B')}"))
    return DONE


def _wrong_combination(arguments: Namespace, is_gguf: bool) -> str | None:
    """Return why flags cannot be combined, or None if they can."""
    if is_gguf and arguments.mmproj is None:
        return "--mmproj FILE is missing: GGUF needs a second file, for the vision tower and the projector"
    if not is_gguf and arguments.mmproj is not None:
        return f"--mmproj is for GGUF only: give --out a name that ends in {GGUF_SUFFIX}, or leave --mmproj out"
    for flag, value in (("--fast", arguments.fast), ("--calibrate", arguments.calibrate)):
        if is_gguf and value:
            return f"{flag} has no effect on GGUF files: leave it out"
    allowed = GGUF_DTYPES if is_gguf else DTYPES
    if arguments.dtype is not None and arguments.dtype not in allowed:
        what = "GGUF files" if is_gguf else "a directory of safetensors"
        return f"--dtype {arguments.dtype} is not a type of {what}: use one of {', '.join(allowed)}"
    return None


def _export(arguments: Namespace) -> int:
    """Write GGUF files, print their names and sizes, and return the exit status."""
    from tqdm import tqdm

    from mindone.models.share4v import export_gguf

    try:
        with signal_handler(raise_interrupt):
            written = export_gguf(
                arguments.source,
                arguments.out,
                arguments.mmproj,
                vision_tower=arguments.vision_tower,
                dtype=arguments.dtype or "f16",
                cache_dir=arguments.cache_dir,
                local_files_only=arguments.local_files_only,
                revision=arguments.revision,
                subfolder=arguments.subfolder,
                adapter=arguments.adapter,
            )
    except (ValueError, OSError, ImportError) as error:
        return usage_error(arguments, error)
    for path in written:
        print_text(one_line(f"{path}: {tqdm.format_sizeof(path.stat().st_size, 'B')}"))
    return DONE
