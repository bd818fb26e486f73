"""--max-image-pixels: the flag, its errors, and the advice that names it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image
from mindone.pipelines.image_to_text.dataset.keywords import build_options
from mindone_share4v.cli import build_parser
from mindone_share4v.commands.common import check_max_pixels, with_flags


@pytest.mark.parametrize("command", ["caption", "chat", "caption-dataset"])
def test_every_command_that_reads_images_has_the_flag(command: str) -> None:
    assert build_parser().parse_args([command, "a.png"]).max_image_pixels is None
    arguments = build_parser().parse_args([command, "a.png", "--max-image-pixels", "300000000"])
    assert arguments.max_image_pixels == 300_000_000


def test_the_advice_can_be_followed_from_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (20, 10)).save(path)
    with pytest.raises(ImageLoadError) as raised:
        load_image(path, max_image_pixels=100)
    message = with_flags(Namespace(max_image_pixels=100), str(raised.value))
    assert message.endswith("resize the image, or if you trust the file, set --max-image-pixels to 200")


def test_a_wrong_number_is_reported_before_the_model_is_loaded() -> None:
    with pytest.raises(ValueError, match="max_image_pixels must be an integer of at least 1, got 0"):
        check_max_pixels(Namespace(max_image_pixels=0))
    with pytest.raises(ValueError, match="max_image_pixels must be an integer of at least 1, got 0"):
        build_options({"max_image_pixels": 0})
    assert build_options({"max_image_pixels": 5}).settings.max_image_pixels == 5
