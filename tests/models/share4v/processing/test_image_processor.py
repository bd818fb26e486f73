"""ImageProcessor, compared with transformers' CLIPImageProcessor after the original's padding."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor

from mindone.models.share4v.configuration import Share4VConfig, VisionConfig
from mindone.models.share4v.processing import image_processor
from mindone.models.share4v.processing.image_loading import ImageLoadError
from mindone.models.share4v.processing.image_processor import CLIP_MEAN, CLIP_STD, ImageProcessor

RNG = np.random.default_rng(3)
SIZES = [
    (336, 336),
    (337, 336),
    (336, 335),
    (640, 480),
    (480, 641),
    (1, 1),
    (2, 3),
    (5, 5),
    (100, 7),
    (7, 100),
    (1, 900),
]
SIZES += [(900, 1), (3, 2000), (2000, 3), (335, 999), (1001, 37), (61, 59), (672, 672), (1344, 8)]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def square(image: Image.Image) -> Image.Image:
    """Pad like the original: centred, with integer division, in the colour (122, 116, 104)."""
    edge = max(image.size)
    canvas = Image.new("RGB", (edge, edge), (122, 116, 104))
    canvas.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return canvas


def reference(image: Image.Image, **options: object) -> np.ndarray:
    size = options.pop("size", 336)
    crop = options.pop("crop_size", 336)
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": crop, "width": crop}, **options)
    # transformers would guess the axes of an image that is one pixel wide, so they are given.
    return processor(image, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]


@pytest.mark.parametrize("size", SIZES)
def test_padded_images_equal_clip_after_the_same_padding(size: tuple[int, int]) -> None:
    image = noise(*size)
    got = ImageProcessor()(image)
    assert got.dtype == np.float32
    assert got.shape == (3, 336, 336)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, reference(square(image)))


@pytest.mark.parametrize("size", SIZES)
def test_cropped_images_equal_clip(size: tuple[int, int]) -> None:
    image = noise(*size)
    edge = 336 if max(size) < 100 * min(size) else 28  # transformers keeps the whole resized image in memory
    processor = ImageProcessor(edge, edge, image_aspect_ratio="square")
    np.testing.assert_array_equal(processor(image), reference(image, size=edge, crop_size=edge))


def test_other_sizes_filters_and_statistics_equal_clip() -> None:
    image = noise(90, 61)
    for size, crop, resample in [(28, 28, 3), (40, 28, 2), (41, 28, 3), (28, 41, 3), (28, 40, 1), (224, 224, 0)]:
        options = {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.2, 0.3, 0.4), "rescale_factor": 1 / 127.5}
        processor = ImageProcessor(size, crop, resample=resample, image_aspect_ratio="square", **options)
        expected = reference(image, size=size, crop_size=crop, resample=resample, **options)
        np.testing.assert_array_equal(processor(image), expected)


def test_size_of_height_and_width_ignores_the_aspect_ratio() -> None:
    image = noise(90, 61)
    clip = CLIPImageProcessor(size={"height": 30, "width": 40}, crop_size={"height": 28, "width": 28})
    expected = clip(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(ImageProcessor((30, 40), 28, image_aspect_ratio="square")(image), expected)


@pytest.mark.parametrize("size", [(500, 300), (31, 700), (700, 31)])
@pytest.mark.parametrize("aspect_ratio", ["pad", "square"])
def test_block_size_does_not_change_the_result(
    size: tuple[int, int], aspect_ratio: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, processor = noise(*size), ImageProcessor(image_aspect_ratio=aspect_ratio)
    whole = processor(image)
    monkeypatch.setattr(image_processor, "_BLOCK_PIXELS", 5000)
    np.testing.assert_array_equal(processor(image), whole)


def test_padding_has_the_mean_colour() -> None:
    processor = ImageProcessor()
    assert processor.background == (122, 116, 104)
    got = processor(noise(400, 100))
    colour = (np.array([122, 116, 104]) / 255 - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(got[:, :100], np.broadcast_to(colour[:, None, None], (3, 100, 336)), atol=1e-6)


def test_elongated_images_are_processed_in_blocks_or_refused() -> None:
    strip = np.full((2, 30_000, 3), 200, np.uint8)  # padded to a square, it has 900 million pixels
    got = ImageProcessor()(strip)
    assert math.isclose(float(got[0, 168, 5]), float(got[0, 168, 330]), abs_tol=1e-6)
    with pytest.raises(ImageLoadError, match=r"1 x 95000 pixels would be padded to 95000 x 95000 and resized.*cut it"):
        ImageProcessor()(np.zeros((95_000, 1), np.uint8))


def test_saved_config_is_read_by_transformers_and_this_package(tmp_path: Path) -> None:
    processor = ImageProcessor(30, 28, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4), image_aspect_ratio="pad")
    processor.save_pretrained(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path) == processor
    image = square(noise(50, 50))
    clip = CLIPImageProcessor.from_pretrained(tmp_path)
    np.testing.assert_array_equal(clip(image, return_tensors="np")["pixel_values"][0], processor(image))
    wide, llava = noise(70, 40), AutoImageProcessor.from_pretrained(tmp_path)
    np.testing.assert_array_equal(llava(wide, return_tensors="np")["pixel_values"][0], processor(wide))
    stretched = replace(processor, size=(30, 31))
    stretched.save_pretrained(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path) == stretched


def test_config_of_transformers_is_read(tmp_path: Path) -> None:
    CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}).save_pretrained(tmp_path)
    config = Share4VConfig(vision_config=VisionConfig(image_size=336, patch_size=14), image_aspect_ratio="pad")
    assert ImageProcessor.from_pretrained(tmp_path, config) == ImageProcessor()
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor(image_aspect_ratio="square")


def write(directory: Path, **stated: object) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "preprocessor_config.json").write_text(json.dumps(stated))


def test_older_configs_and_llava_padding(tmp_path: Path) -> None:
    write(tmp_path, size=336, crop_size=336, feature_extractor_type="CLIPFeatureExtractor", do_pad=True)
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor()
    write(tmp_path)  # no fields: CLIP's defaults
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor(224, 224, image_aspect_ratio="square")


def test_config_is_read_from_checkpoint_then_tower_then_defaults(tmp_path: Path) -> None:
    config = Share4VConfig(vision_config=VisionConfig(image_size=28, patch_size=14), image_aspect_ratio="pad")
    main, tower = tmp_path / "main", tmp_path / "tower"
    main.mkdir()
    defaults = ImageProcessor(28, 28)
    assert ImageProcessor.from_config(config) == defaults
    assert ImageProcessor.from_pretrained(main, config, tower) == defaults
    write(tower, size=29, crop_size=28)
    assert ImageProcessor.from_pretrained(main, config, tower) == replace(defaults, size=29)
    write(main, size=30, crop_size=28)
    assert ImageProcessor.from_pretrained(main, config, tower) == replace(defaults, size=30)


def test_invalid_configs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json"):
        ImageProcessor.from_pretrained(tmp_path)
    for stated, message in [
        ({"do_normalize": False}, "do_normalize is turned off"),
        ({"crop_size": {"height": 3, "width": 4}}, "3 x 4 is not a square"),
        ({"size": {"longest_edge": 4}}, "longest_edge"),
        ({"size": -1}, "positive integers"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"image_std": [0.5, 0, 1]}, "no std of 0"),
        ({"resample": 9}, "resample 9"),
        ({"image_aspect_ratio": "anyres"}, "anyres"),
    ]:
        write(tmp_path, **stated)
        with pytest.raises(ValueError, match=message) as caught:
            ImageProcessor.from_pretrained(tmp_path)
        assert "preprocessor_config.json" in str(caught.value)
    write(tmp_path, size=30, crop_size=30)
    config = Share4VConfig(vision_config=VisionConfig(image_size=28, patch_size=14))
    with pytest.raises(ValueError, match="crop_size of 30 pixels, but the vision tower's image_size is 28"):
        ImageProcessor.from_pretrained(tmp_path, config)
