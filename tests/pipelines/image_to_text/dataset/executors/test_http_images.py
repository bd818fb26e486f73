"""Images as endpoints get them: scaled, upright, opaque, of the type that they are said to be, and without metadata."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mindone.models.share4v.processing.image_loading import load_image
from mindone.pipelines.image_to_text.dataset.executors.http_images import data_uri, encode_task
from mindone.pipelines.image_to_text.dataset.state.records import Item
from mindone.pipelines.image_to_text.dataset.state.tasks import Task

SECRET = b"51.5007N 0.1246W"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sent(frame: Any, size: int = 1024) -> tuple[str, bytes, Image.Image]:
    """Return the stated type, the bytes and the pixels of what is sent."""
    uri, _ = data_uri(frame, size)
    head, _, body = uri.partition(",")
    data = base64.b64decode(body)
    image = Image.open(io.BytesIO(data))
    assert head == f"data:{Image.MIME[image.format or '']};base64"
    assert image.getexif().get(0x0112, 1) == 1 and SECRET not in data
    return head, data, image


def drawing(width: int = 40, height: int = 24) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = SECRET.decode()
    return tags


def test_a_plain_file_keeps_its_pixels_and_loses_its_metadata() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Location", SECRET.decode())
    image = drawing()
    for file in (
        encoded(image, "PNG", pnginfo=texts),
        encoded(image, "JPEG", exif=exif(1), comment=SECRET, quality=80),
        encoded(image.convert("L"), "JPEG", exif=exif(1), progressive=True),
    ):
        assert SECRET in file
        _, data, shown = sent(file)
        assert len(data) < len(file)
        assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(load_image(file)))


def test_what_is_behind_an_image_or_between_its_scans_is_not_sent() -> None:
    """A "motion photo" is a JPEG with a film behind it, which says where it was taken."""
    image = drawing(320, 192)
    plain, progressive = encoded(image, "JPEG", restart_marker_rows=1), encoded(image, "JPEG", progressive=True)
    second_scan = progressive.index(b"\xff\xda", progressive.index(b"\xff\xda") + 2)
    comment = b"\xff\xff\xfe" + (2 + len(SECRET)).to_bytes(2, "big") + SECRET
    film = b"\0\0\0\x18ftypmp42" + SECRET
    assert plain.count(b"\xff\xd0") > 1
    for file in (
        plain + film,
        progressive[:second_scan] + comment + progressive[second_scan:] + film,
        encoded(image, "PNG") + film,
        encoded(image, "PNG") + b"\0\0\0\x10GPSx" + SECRET + bytes(4),
    ):
        _, data, shown = sent(file)
        assert len(data) <= len(file) - len(SECRET)
        assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(load_image(file)))


@pytest.mark.parametrize("follows", [b"\xff\0", b"\xff\xd3", b"\xff\xd9"], ids=["stuffed", "restart", "end"])
def test_a_megabyte_of_fill_bytes_within_a_scan(follows: bytes) -> None:
    """Decoders skip them; a search that begins again at each of them would take an hour."""
    plain = encoded(drawing(320, 192), "JPEG", restart_marker_rows=1, quality=95)
    position = plain.index(follows, plain.index(b"\xff\xda"))
    file = plain[:position] + b"\xff" * 2**20 + plain[position:]
    head, _, shown = sent(file)
    assert head == "data:image/jpeg;base64"
    assert np.array_equal(np.asarray(shown), np.asarray(load_image(plain)))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photograph_that_lies_on_its_side_is_sent_upright(orientation: int) -> None:
    image = drawing().resize((320, 192), Image.Resampling.BICUBIC)
    file = encoded(image, "JPEG", exif=exif(orientation))
    _, _, shown = sent(file)
    expected = load_image(file)
    assert shown.size == expected.size
    assert np.abs(np.asarray(shown, np.int16) - np.asarray(expected, np.int16)).mean() < 2


def test_other_formats_and_transparency_are_converted_without_loss() -> None:
    opaque = drawing()
    transparent = opaque.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(opaque.size))
    for file in (
        encoded(transparent, "PNG"),
        encoded(opaque.convert("P"), "PNG"),
        encoded(opaque.convert("P"), "GIF"),
        encoded(opaque, "BMP"),
        encoded(opaque, "TIFF"),
    ):
        head, _, shown = sent(file)
        assert head == "data:image/png;base64"
        assert np.array_equal(np.asarray(shown), np.asarray(load_image(file)))
    for file in (encoded(opaque, "WEBP"), encoded(opaque.convert("CMYK"), "JPEG")):
        assert sent(file)[0] == "data:image/jpeg;base64"


@pytest.mark.parametrize(
    ("width", "height", "size", "expected"),
    [
        (400, 300, 100, (100, 75)),
        (300, 400, 100, (75, 100)),
        (400, 1, 100, (100, 1)),
        (100, 100, 100, (100, 100)),
        (400, 300, 0, (400, 300)),
    ],
)
def test_images_are_scaled_down_to_the_longer_side(
    width: int, height: int, size: int, expected: tuple[int, int]
) -> None:
    file = encoded(Image.new("RGB", (width, height), (200, 30, 30)), "PNG")
    head, _, shown = sent(file, size)
    assert shown.size == expected
    assert (head == "data:image/jpeg;base64") == (expected != (width, height))
    assert data_uri(file, size)[1] == (width, height)
    assert np.abs(np.asarray(shown.convert("RGB"), np.int16) - [200, 30, 30]).max() <= 3


def test_what_cannot_be_decoded_is_an_error_of_the_input(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(drawing(), "PNG")[:300])
    item = Item(0, "a", "a.png", {"kind": "file", "path": str(path)}, columns={"tag": "x"})
    read, uris = encode_task(Task(item, ("What?",), (None,)), 1024)
    assert "truncated or damaged" in (read.error or "") and read.sha256 and not uris
    assert (read.key, read.prompts, read.columns, read.width) == ("a", ("What?",), {"tag": "x"}, None)
    absent = Item(0, "b", "b.png", {"kind": "file", "path": str(tmp_path / "b.png")})
    missing, uris = encode_task(Task(absent, ("What?",), (None,)), 1024)
    assert missing.error == "there is no such file" and not uris


def test_damaged_metadata_of_an_image_is_no_error() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG", exif=b"Exif\0\0garbage!")
    uri, size = data_uri(file.getvalue(), 1024)
    assert uri.startswith("data:image/png;") and size == (8, 8)
