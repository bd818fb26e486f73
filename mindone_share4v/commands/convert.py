"""`share4v convert`: a checkpoint of any published form, written in this project's."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from .common import DONE, usage_error


def run(arguments: Namespace) -> int:
    """Convert, say where the result is, and return the exit status."""
    from tqdm import tqdm

    from mindone.models.share4v.checkpoint import convert

    try:
        written = convert(
            arguments.source,
            arguments.out,
            vision_tower=arguments.vision_tower,
            dtype=arguments.dtype,
            cache_dir=arguments.cache_dir,
            local_files_only=arguments.local_files_only,
        )
    except (ValueError, OSError) as error:
        return usage_error(error)
    size = sum(path.stat().st_size for path in Path(written).glob("*.safetensors"))
    print(f"{written}: {tqdm.format_sizeof(size, 'B')}")
    return DONE
