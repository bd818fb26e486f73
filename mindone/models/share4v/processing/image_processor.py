"""ImageProcessor: turns an image into CLIP's pixel_values; depending on the checkpoint, pads it to a square first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration import PREPROCESSOR_NAME, Share4VConfig, has_file, read_json
from ..configuration_formats import read_crop_size, read_size
from ..configuration_schema import Integer, Real, shown
from .files import find_directory
from .image_loading import ImageLoadError, ImageSource, describe, load_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3  # Pillow's number of the filter, as in preprocessor_config.json
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_BLOCK_PIXELS = 2**24  # maximum number of pixels that are resized at once
_EDGE = Integer(1, 8192)
_CHANNEL = Real(-1e6, 1e6)  # a mean, a standard deviation or a factor of a colour channel
_MAX_PIXELS = 2**30  # maximum number of pixels that resizing one image may process


@dataclass(frozen=True)
class ImageProcessor:
    """Pad, resize, crop, rescale and normalize, with the steps and parameters of transformers' CLIPImageProcessor.

    Attributes:
        size: length of the shorter edge after resizing, in pixels; or (height, width), which does not keep the aspect
            ratio.
        crop_size: edge S of the centred square crop, in pixels; a crop larger than the image is filled with black.
        image_mean, image_std: mean and standard deviation of the red, green and blue channels, after rescaling.
        rescale_factor: factor for the 8-bit values.
        resample: Pillow's number of the resize filter; 3 is bicubic.
        image_aspect_ratio: "pad" pads the image to a square with the mean colour before resizing, as in stage 2 of
            ShareGPT4V's training; "square" crops it instead, as in stage 1.

    Raises:
        ValueError: a field has an invalid value.

    Example:
        >>> import numpy as np
        >>> from mindone.models.share4v.processing.image_processor import ImageProcessor
        >>> ImageProcessor(size=28, crop_size=28)(np.zeros((20, 50, 3), np.uint8)).shape
        (3, 28, 28)
    """

    size: int | tuple[int, int] = 336
    crop_size: int = 336
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    rescale_factor: float = 1 / 255
    resample: int = BICUBIC
    image_aspect_ratio: str = "pad"

    def __post_init__(self) -> None:
        edges = self.size if isinstance(self.size, tuple) else (self.size,)
        counts = (*edges, self.crop_size)
        if len(edges) > 2 or any(_EDGE.error(edge) is not None for edge in counts):
            shown_edges = " and ".join(map(shown, (*edges, self.crop_size)))
            raise ValueError(f"size and crop_size must be positive integers of at most {_EDGE.high}, got {shown_edges}")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            is_triple = isinstance(values, tuple) and len(values) == 3
            if not is_triple or any(_CHANNEL.error(value) is not None for value in values):
                raise ValueError(f"{name} must be three numbers of at most a million, got {shown(values)}")
        if 0 in self.image_std:
            raise ValueError("image_mean and image_std must have three numbers each, and no std of 0; got a std of 0")
        error = _CHANNEL.error(self.rescale_factor)
        if error is not None:
            raise ValueError(f"rescale_factor {error}")
        if type(self.resample) is not int or self.resample not in range(6):
            raise ValueError(
                f"resample {shown(self.resample)} is not a filter of Pillow: expected 0 to 5 (3 is bicubic)"
            )
        if self.image_aspect_ratio not in ("pad", "square"):
            raise ValueError(
                f"image_aspect_ratio {self.image_aspect_ratio!r} is not supported: expected 'pad' or 'square'"
            )

    @property
    def background(self) -> tuple[int, int, int]:
        """Colour of the padding, 0 to 255: the mean colour, which is (122, 116, 104) for CLIP."""
        red, green, blue = (int(value * 255) for value in self.image_mean)
        return red, green, blue

    def __call__(self, image: ImageSource, max_image_pixels: int | None = None) -> np.ndarray:
        """Turn one image (anything that `load_image` accepts) into pixel_values [3, S, S], float32, S = crop_size.

        Args:
            image: of any size.
            max_image_pixels: as in `load_image`.

        Raises:
            ImageLoadError: the image cannot be loaded, or is so elongated that resizing it would take too much memory.
        """
        pixels = np.asarray(load_image(image, max_image_pixels))  # [H, W, 3] uint8
        height, width = pixels.shape[:2]
        edge_y, edge_x = (max(height, width),) * 2 if self.image_aspect_ratio == "pad" else (height, width)
        target_y, target_x = self._resized_shape(edge_y, edge_x)
        if height * max(edge_x, target_x) + edge_y * target_x + target_y * self.crop_size > _MAX_PIXELS:
            raise ImageLoadError(
                f"{describe(image)}: an image of {width} x {height} pixels would be padded to {edge_x} x {edge_y} and "
                f"resized to {target_x} x {target_y}, which is too large; crop the image or cut it into pieces"
            )
        # Pillow resizes rows first, then columns. Running the two passes separately gives bit-identical results, and
        # neither the padded square nor the cropped-off part is ever in memory as a whole.
        pixels = self._resize_rows(pixels, edge_x, target_x)  # [H, S, 3]
        pixels = self._resize_rows(pixels.transpose(1, 0, 2), edge_y, target_y)  # [S, S, 3], columns first
        return self._normalize(pixels.transpose(2, 1, 0))  # [3, S, S]

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after resizing; the longer edge is rounded down, as in transformers."""
        if isinstance(self.size, tuple):
            return self.size
        if width <= height:
            return int(self.size * height / width), self.size
        return self.size, int(self.size * width / height)

    def _resize_rows(self, pixels: np.ndarray, padded: int, resized: int) -> np.ndarray:
        """Pad each row to `padded` pixels, resize it to `resized`, and crop the middle: [A, B, 3] -> [A, S, 3]."""
        from PIL import Image

        rows, length = pixels.shape[:2]
        before = (padded - length) // 2
        result = np.zeros((rows, self.crop_size, 3), np.uint8)
        width = min(self.crop_size, resized)
        start = max(0, (resized - self.crop_size) // 2)
        black = -(-max(0, self.crop_size - resized) // 2)  # the crop is larger than the image
        step = max(1, _BLOCK_PIXELS // max(padded, resized))
        for top in range(0, rows, step):
            block = pixels[top : top + step]
            if padded != length:
                canvas = np.empty((len(block), padded, 3), np.uint8)
                canvas[:] = self.background
                canvas[:, before : before + length] = block
                block = canvas
            image = Image.fromarray(np.ascontiguousarray(block))
            image = image.resize((resized, len(block)), Image.Resampling(self.resample))
            result[top : top + step, black : black + width] = np.asarray(image)[:, start : start + width]
        return result

    def _normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Normalize [3, S, S] uint8 to float32. A channel has only 256 values, so each is computed once."""
        values = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        mean = np.array(self.image_mean, np.float32)[:, None]
        std = np.array(self.image_std, np.float32)[:, None]
        table = (values - mean) / std  # [3, 256]
        result = np.empty(pixels.shape, np.float32)
        for channel in range(3):
            result[channel] = table[channel][pixels[channel]]
        return result

    @classmethod
    def from_config(cls, config: Share4VConfig) -> ImageProcessor:
        """Use the vision tower's image size, and CLIP's mean and standard deviation."""
        edge = config.vision_config.image_size
        return cls(size=edge, crop_size=edge, image_aspect_ratio=config.image_aspect_ratio)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], config: Share4VConfig) -> ImageProcessor:
        """Use the mean and the standard deviation in the metadata of an `mmproj` file, and the tower's image size.

        Raises:
            ValueError: they are not three numbers each.
        """
        default = cls.from_config(config)
        found: dict[str, Any] = {}
        for name in ("image_mean", "image_std"):
            stated = metadata.get(f"clip.vision.{name}")
            if isinstance(stated, np.ndarray):
                # The file has float32; of CLIP's own values the exact decimals are known.
                is_default = np.array_equal(stated, np.array(getattr(default, name), np.float32))
                found[name] = getattr(default, name) if is_default else tuple(map(float, stated.tolist()))
        return replace(default, **found)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        config: Share4VConfig | None = None,
        vision_directory: str | Path | None = None,
        **options: Any,
    ) -> ImageProcessor:
        """Read preprocessor_config.json from a checkpoint or else `vision_directory`; without the file, use `config`.

        A checkpoint stores its `image_aspect_ratio` in config.json (the original format) or, as `do_pad`, in
        preprocessor_config.json (LLaVA's image processor).

        Args:
            name_or_path: a directory, a known name such as "sharegpt4v-tiny", or owner/name on a hub.
            config: of the model.
            vision_directory: directory of a separate vision tower.
            options: the fields of `CheckpointOptions`.

        Raises:
            FileNotFoundError: there is neither such a file nor a config.
            ValueError: the file turns off a step of CLIP's preprocessing, or its size differs from the vision tower's.
        """
        directory = find_directory(name_or_path, options)
        paths = [Path(folder) / PREPROCESSOR_NAME for folder in (directory, vision_directory) if folder is not None]
        path = next((path for path in paths if has_file(path)), None)
        if path is None:
            if config is None:
                raise FileNotFoundError(f"no {PREPROCESSOR_NAME} in {directory}: add the file, or pass config")
            return cls.from_config(config)
        fields_read = read_json(path)
        default = "square" if config is None else config.image_aspect_ratio
        try:
            processor = cls(**_read_fields(fields_read, default))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        if config is not None and processor.crop_size != config.vision_config.image_size:
            raise ValueError(
                f"{path} has a crop_size of {processor.crop_size} pixels, but the vision tower's image_size is "
                f"{config.vision_config.image_size}; correct one of the two"
            )
        return processor

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `directory`/preprocessor_config.json, which transformers' LlavaImageProcessor can also read."""
        size = self.size
        stated: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        stated["size"] = {"height": size[0], "width": size[1]} if isinstance(size, tuple) else {"shortest_edge": size}
        stated["crop_size"] = {"height": self.crop_size, "width": self.crop_size}
        stated.update({"do_convert_rgb": True, **dict.fromkeys(_STEPS, True)})
        # The original's files name CLIPImageProcessor, which cannot pad and would crop.
        stated.update(do_pad=self.image_aspect_ratio == "pad", image_processor_type="LlavaImageProcessor")
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / PREPROCESSOR_NAME).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")


def _read_fields(stated: Mapping[str, Any], aspect_ratio: str) -> dict[str, Any]:
    """Read the fields of a preprocessor_config.json; missing ones have CLIP's defaults (size 224)."""
    missing = [step for step in _STEPS if stated.get(step, True) is not True]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} is turned off, but ShareGPT4V's vision tower needs all steps of CLIP's preprocessing"
        )
    if "do_pad" in stated:  # LLaVA's image processor
        aspect_ratio = "pad" if stated["do_pad"] else "square"
    found: dict[str, Any] = {
        "size": read_size(stated.get("size") or 224),
        "crop_size": read_crop_size(stated),
        "image_aspect_ratio": stated.get("image_aspect_ratio") or aspect_ratio,
    }
    for name in ("image_mean", "image_std"):
        if stated.get(name) is not None:
            values = stated[name]
            is_list = isinstance(values, list) and all(_CHANNEL.error(value) is None for value in values)
            found[name] = tuple(float(value) for value in values) if is_list else values
    for name in ("rescale_factor", "resample"):
        if stated.get(name) is not None:
            found[name] = stated[name]
    return found
