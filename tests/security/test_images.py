"""Hostile images: whatever way one comes in, no program starts, and decoding ends within limits of time and memory."""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (registers JPEG XL in Pillow)
import pytest
from helpers.limits import run_limited
from PIL import Image, ImageFile, features

from mindone.models.share4v.processing import image_limits
from mindone.models.share4v.processing.image_formats import FORMATS
from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

pillow_heif.register_heif_opener()
LOAD = """
from pathlib import Path
from mindone.models.share4v.processing.image_loading import load_image
report(lambda path: load_image(Path(path)).size, sys.argv[1])
"""
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
newpath 0 0 10 10 rectfill
%%EOF
"""


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rejected(path: Path, megabytes: int = 600) -> str:
    kind, message = run_limited(LOAD, str(path), seconds=30, megabytes=megabytes)
    assert kind == "ImageLoadError" and path.name in message, f"{kind}: {message}"
    return message


def test_an_eps_named_jpg_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    for program in ("gs", "gswin64c", "gswin32c"):
        (tmp_path / program).write_text(f"#!/bin/sh\ntouch {started}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    uri = "data:image/jpeg;base64," + base64.b64encode(EPS).decode()
    for source in (path, str(path), path.as_uri(), EPS, bytearray(EPS), uri):
        with pytest.raises(ImageLoadError, match="not an image format that is decoded here"):
            load_image(source)
    opened = Image.open(path)  # lazily: its pixels are not read yet
    with pytest.raises(ImageLoadError, match=r"format EPS is not decoded here.*pass image.convert"):
        load_image(opened)
    assert not started.exists()
    with pytest.raises(OSError):
        opened.load()
    assert started.exists()  # the trap works


@pytest.mark.parametrize("form", ["XPM", "QOI"])
def test_a_format_that_pillow_decodes_in_python_is_not_decoded(tmp_path: Path, form: str) -> None:
    path = tmp_path / "photo.jpg"
    if form == "XPM":
        path.write_bytes(b'/* XPM */\nstatic char *a[] = {\n"9000 9000 2 1",\n"a c #000000",\n' + b'"' + b"a" * 2**25)
    else:
        path.write_bytes(b"qoif" + struct.pack(">IIBB", 9000, 9000, 3, 0) + b"\xfe\1\2\3" * 2**23)
    assert "not an image format that is decoded here" in rejected(path)


def test_the_formats_are_an_explicit_list() -> None:
    assert not {"EPS", "XPM", "QOI", "PSD", "BLP", "WMF", "FITS", "IPTC", "HDF5", "SPIDER"} & {*FORMATS}
    Image.init()
    for name in FORMATS:
        assert name in Image.ID or name in ("AVIF", "HEIF", "JXL")


@pytest.mark.parametrize(
    "form", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO", "PCX", "TGA"]
)
def test_the_usual_formats_are_told_by_content(tmp_path: Path, form: str) -> None:
    path = tmp_path / "picture.xyz"
    path.write_bytes(encoded(Image.new("RGB", (16, 16), "red"), form))
    image = load_image(path)
    assert image.size == (16, 16) and np.allclose(image.getpixel((8, 8)), (255, 0, 0), atol=3)


def test_avif_is_read_where_pillow_has_it() -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    assert load_image(encoded(Image.new("RGB", (16, 16), "red"), "AVIF")).size == (16, 16)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_file_of_endless_small_parts_ends_with_the_limit_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Millions of empty chunks, each of which costs Pillow a few microseconds."""
    monkeypatch.setattr(image_limits, "MAX_CPU_SECONDS", 0.2)
    head = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    with pytest.raises(ImageLoadError, match="too costly to decode: decoding took more than 0 s of CPU time"):
        load_image(head + png_chunk(b"prVt", b"") * 1_000_000)


def test_a_plain_text_ppm_of_many_pixels_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "MAX_CPU_SECONDS", 0.2)
    with pytest.raises(ImageLoadError, match="CPU time"):
        load_image(b"P3 4000 4000 255\n" + b"1 " * 8_000_000)


def test_a_jpeg_of_a_thousand_scans(tmp_path: Path) -> None:
    """libjpeg visits every block of the picture once for each scan: a small file takes minutes."""
    data = encoded(Image.new("L", (9000, 9000)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:last] + data[last:-2] * 1000 + data[-2:])
    assert "too costly to decode: it has more than 26 progressive scans" in rejected(path)
    path.write_bytes(data)
    assert run_limited(LOAD, str(path), megabytes=900) == ("value", "(9000, 9000)")


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_millions_of_strips(tmp_path: Path, big: bool) -> None:
    count = 3_000_000
    tags = {256: 9000, 257: 9000, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    entry = "<HHQQ" if big else "<HHLL"
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHL", b"II", 42, 8)
    start = len(head) + 8 + (len(tags) + 2) * struct.calcsize(entry) + 8
    entries = {**{tag: (3, 1, value) for tag, value in tags.items()}, 273: (4, count, start), 279: (4, count, start)}
    body = struct.pack("<Q" if big else "<H", len(entries))
    body += b"".join(struct.pack(entry, tag, *entries[tag]) for tag in sorted(entries))
    path = tmp_path / "a.tiff"
    path.write_bytes((head + body).ljust(start, b"\0") + bytes(4 * count))
    assert "3,000,000 strips or tiles, more than the limit of 524,288" in rejected(path, megabytes=300)


def test_a_tiff_whose_tags_share_their_data(tmp_path: Path) -> None:
    """30,000 tags that name the same megabytes: Pillow keeps a copy for each."""
    size, count = 2**22, 30_000
    entries = b"".join(struct.pack("<HHLL", 1000 + number, 7, size, 0) for number in range(count))
    path = tmp_path / "a.tiff"
    path.write_bytes(struct.pack("<2sHLH", b"II", 42, 8, count) + entries + bytes(size))
    assert "it has 30,000 tags, more than the limit of 4,096" in rejected(path, megabytes=300)


def test_a_file_cannot_be_read_again_and_again() -> None:
    file = image_limits.LimitedFile(io.BytesIO(bytes(2**24)))
    with pytest.raises(image_limits.LimitError, match="its parts overlap"):
        for _ in range(10):
            file.seek(0)
            file.read()


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    data = encoded(Image.new("RGB", (8, 8)), "PNG")
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(2**40)  # sparse: takes no space
    assert "more than the limit of 536,870,912" in rejected(path)
    monkeypatch.setattr(image_limits, "MAX_IMAGE_BYTES", len(data) - 1)
    with pytest.raises(ImageLoadError, match=f"the file has {len(data)} bytes"):
        load_image(data)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "GIF"])
def test_a_small_file_of_many_pixels_is_rejected_before_it_is_decoded(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(encoded(Image.new("1" if form != "GIF" else "L", (60000, 3000)), form))
    assert "60000 x 3000 pixels are more than the limit of 178,956,970" in rejected(path, megabytes=300)


@pytest.mark.parametrize("mode", ["I;16", "LA", "PA"])
def test_conversion_of_a_large_image_needs_no_copies_of_many_times_its_size(tmp_path: Path, mode: str) -> None:
    """5000 x 5000: 50 to 100 MB as decoded, 75 to 100 MB as RGB; in float64 alone it would be 200 MB, several times."""
    path = tmp_path / "a.png"
    image = Image.new(mode if mode != "PA" else "P", (5000, 5000))
    path.write_bytes(encoded(image, "PNG", **({"transparency": 0} if mode == "PA" else {})))
    assert run_limited(LOAD, str(path), megabytes=380) == ("value", "(5000, 5000)")


@pytest.mark.parametrize("mode", ["I;16", "F", "LA", "RGBA", "RGBa"])
def test_conversion_in_strips_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    from mindone.models.share4v.processing import color_modes

    noise = np.random.default_rng(3).integers(0, 256, (31, 17, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA")
    if mode in ("I;16", "F"):
        image = Image.fromarray(noise[..., 0].astype(np.uint16 if mode == "I;16" else np.float32) * 200)
    elif mode != "RGBA":
        image = image.convert(mode)
    expected = np.asarray(load_image(image))
    monkeypatch.setattr(color_modes, "_STRIP_PIXELS", 40)
    np.testing.assert_array_equal(np.asarray(load_image(image)), expected)


# Large pictures of one color, a few kilobytes each: (width, options of the encoder). HEIF's encoder is slow.
COSTLY = {
    "WEBP": (4000, {"lossless": True, "method": 0}),
    "TIFF": (6000, {"compression": "tiff_deflate"}),
    "JPEG2000": (2000, {}),
    "AVIF": (3000, {"speed": 10}),
    "HEIF": (2000, {}),
    "JXL": (2000, {"effort": 1}),
}


def test_every_isolated_format_is_attacked() -> None:
    assert {*COSTLY} == {name for name, row in FORMATS.items() if row.is_isolated}


@pytest.mark.parametrize("form", COSTLY)
def test_a_decoder_that_cannot_be_interrupted_is_ended_at_the_limit_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    side, options = COSTLY[form]
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (side, side), "red"), form, **options))
    assert path.stat().st_size < 200_000
    with monkeypatch.context() as patched:
        patched.setattr(image_limits, "MAX_CPU_SECONDS", 0.01)
        with pytest.raises(ImageLoadError) as raised:
            load_image(path)
    assert str(raised.value) == (
        f"{path}: too costly to decode: decoding took more than 0 s of CPU time; "
        "save the image again as a JPEG or PNG, or leave it out"
    )
    # The timer has ended the process, or the process has noticed by itself and takes the next image.
    small = encoded(Image.new("RGB", (16, 16), "red"), form)
    assert load_image(small).size == (16, 16)


def tiff_of_one_tile(side: int) -> bytes:
    """A picture of 100 x 100 pixels in a compressed tile of side x side, which libtiff unpacks completely."""
    tags = {256: 100, 257: 100, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: 9}
    data = zlib.compress(b"")
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return (
        struct.pack("<2sHL", b"II", 42, 24) + data.ljust(16, b"\0") + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def test_a_tiff_of_one_giant_tile_does_not_get_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_of_one_tile(40_000))
    assert "memory" in rejected(path, megabytes=300)


@pytest.mark.parametrize("form", ["WEBP", "TIFF", "JPEG2000", "AVIF"])
def test_a_decoder_that_needs_more_memory_than_the_limit(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Memory is refused, which most decoders report as such; some C libraries only say that they failed."""
    side, options = COSTLY[form]
    data = encoded(Image.new("RGB", (side, side), "red"), form, **options)
    load_image(encoded(Image.new("RGB", (16, 16)), form))
    with monkeypatch.context() as patched:
        patched.setattr(image_limits, "MEMORY_BYTES", 2**20)
        patched.setattr(image_limits, "MEMORY_BYTES_PER_PIXEL", 0)
        with pytest.raises(ImageLoadError, match=r"memory|truncated or damaged"):
            load_image(data, max_image_pixels=side * side)
    assert load_image(data).size == (side, side)


def test_an_icon_that_contains_a_larger_picture_than_it_states() -> None:
    inner = encoded(Image.new("RGB", (300, 300)), "PNG")
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageLoadError, match="300 x 300 pixels are more than the limit of 50,000"):
            load_image(icon, max_image_pixels=50_000)


def test_the_limits_hold_in_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(image_limits, "MAX_CPU_SECONDS", 0.1)
    data = b"P3 4000 4000 255\n" + b"1 " * 4_000_000
    good = encoded(Image.new("RGB", (8, 8)), "PNG")
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(load_image, one) for one in (data, good, data, good)]
        assert [future.exception() is None for future in futures] == [False, True, False, True]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
