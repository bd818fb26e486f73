"""Images as callers have them: open files, tensors, base64, dicts; and what is not an image."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from PIL import Image

from mindone.models.share4v import Share4VProcessor, load_image
from mindone.models.share4v.processing.image_loading import ImageLoadError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def opened(folder: Path) -> Any:
    (folder / "a.png").write_bytes(png())
    return (folder / "a.png").open("rb")


SOURCES: dict[str, Callable[[Path], Any]] = {
    "BytesIO": lambda folder: io.BytesIO(png()),
    "open file": opened,
    "base64": lambda folder: base64.b64encode(png()).decode(),
    "base64 in lines": lambda folder: base64.encodebytes(png()).decode(),
    "MindSpore": lambda folder: ms.Tensor(PIXELS),
    "MindSpore, channels first": lambda folder: ms.Tensor(PIXELS.transpose(2, 0, 1)),
    "PyTorch": lambda folder: torch.tensor(PIXELS),
    "PyTorch, float, channels first": lambda folder: torch.tensor(PIXELS.transpose(2, 0, 1) / 255),
    "undecoded image of datasets": lambda folder: {"bytes": png(), "path": None},
    "dict": lambda folder: {"image": Image.fromarray(PIXELS)},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(np.asarray(load_image(SOURCES[kind](tmp_path))), PIXELS)


def test_a_file_is_read_from_its_current_position_and_named_in_errors(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        file.read()
        with pytest.raises(ImageLoadError, match=r"a\.png"):
            load_image(file)
    with pytest.raises(ImageLoadError, match="opened as text: open it with mode 'rb'"):
        load_image(io.StringIO("text"))


@pytest.mark.parametrize(
    "wrong", [5, 2.5, True, object(), {"role": "user"}, {1, 2}], ids=lambda wrong: type(wrong).__name__
)
def test_what_is_not_an_image_is_refused_by_name(wrong: Any) -> None:
    processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
    with pytest.raises(ImageLoadError, match=f"a {type(wrong).__name__} .*expected a path, a URL|is not an image"):
        processor(images=wrong, text="What?")
    with pytest.raises(ImageLoadError, match=f"image 1 is a {type(wrong).__name__} "):
        processor(images=["missing.png", wrong], text="What?")


def test_images_of_a_processor_as_a_batch_or_alone() -> None:
    processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
    batch = np.stack([PIXELS, 255 - PIXELS])
    wanted = processor(images=list(batch), text=["a", "b"]).pixel_values
    for given in (batch, ms.Tensor(batch), torch.tensor(batch)):
        np.testing.assert_array_equal(processor(images=given, text=["a", "b"]).pixel_values, wanted)
    np.testing.assert_array_equal(processor(images=PIXELS, text=["a"]).pixel_values, wanted[:1])
