"""Share4VImageProcessor: transformers' LlavaImageProcessor with the settings of a ShareGPT4V checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlavaImageProcessor

from ...checkpoint import Checkpoint
from ...load_options import CheckpointOptions
from ...processing.processor import Share4VProcessor


class Share4VImageProcessor(LlavaImageProcessor):
    """An image processor with pixel_values that are bit-identical to those of this project's ImageProcessor.

    Args:
        do_pad: pad the image to a square first; by default if image_aspect_ratio is "pad".
        image_aspect_ratio: "pad" or "square", as in this project's preprocessor_config.json.
        stated: the other fields of LlavaImageProcessor.
    """

    def __init__(self, do_pad: bool | None = None, image_aspect_ratio: str = "pad", **stated: Any) -> None:
        super().__init__(do_pad=image_aspect_ratio == "pad" if do_pad is None else do_pad, **stated)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **others: Any) -> Share4VImageProcessor:
        """Read a checkpoint of any format; options and errors are those of `Share4VProcessor.from_pretrained`.

        Args:
            others: its options (see CheckpointOptions), and arguments that the Auto classes and pipelines add, which
                are ignored.
        """
        checkpoint = Checkpoint.open(name_or_path, CheckpointOptions.pick(others), weights=False)
        own = Share4VProcessor.from_checkpoint(checkpoint).image_processor
        size = own.size
        return cls(
            do_pad=own.image_aspect_ratio == "pad",
            size={"height": size[0], "width": size[1]} if isinstance(size, tuple) else {"shortest_edge": size},
            crop_size={"height": own.crop_size, "width": own.crop_size},
            image_mean=list(own.image_mean),
            image_std=list(own.image_std),
            rescale_factor=own.rescale_factor,
            resample=own.resample,
        )
