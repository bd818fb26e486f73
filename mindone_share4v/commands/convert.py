"""`share4v convert`: write a checkpoint of any published format as one safetensors directory."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..printing import one_line, print_text
from ..signals import raise_interrupt, signal_handler
from .common import usage_error
from .exit_status import DONE


def run(arguments: Namespace) -> int:
    """Convert the checkpoint, print where it was written and its size, and return the exit status."""
    from tqdm import tqdm

    from mindone.models.share4v import convert

    try:
        with signal_handler(raise_interrupt):  # so that `convert` removes an unfinished directory
            written = convert(
                arguments.source,
                arguments.out,
                vision_tower=arguments.vision_tower,
                dtype=arguments.dtype,
                cache_dir=arguments.cache_dir,
                local_files_only=arguments.local_files_only,
                fast=arguments.fast,
                adapter=arguments.adapter,
            )
    except (ValueError, OSError) as error:
        return usage_error(arguments, error)
    size = sum(path.stat().st_size for path in Path(written).glob("*.safetensors"))
    print_text(one_line(f"{written}: {tqdm.format_sizeof(size, 'B')}"))
    return DONE
