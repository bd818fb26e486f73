"""load_image: all source types and image modes, and the error for each kind of failure."""

from __future__ import annotations

import base64
import io
import threading
import warnings
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from helpers.png import chunk
from PIL import Image, ImageFile

from mindone.models.share4v.processing import image_loading
from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(source: object) -> np.ndarray:
    loaded = load_image(source)
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


PNG = encoded(Image.fromarray(RGB))


class Handler(BaseHTTPRequestHandler):
    """Serves the PNG at /ok; the other paths fail in the way that their names say."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/ok")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path == "/missing":
            self.send_error(404, "Not Found")
            return
        body = b"<html>sorry</html>" if path == "/page" else PNG
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if path == "/cut" else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def test_all_source_types_load_the_same_image(tmp_path: Path, server: str) -> None:
    path = tmp_path / "a photo ü %41.png"
    path.write_bytes(PNG)
    data_uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
    sources = [str(path), path, path.as_uri(), PNG, bytearray(PNG), memoryview(PNG)]
    sources += [data_uri, data_uri.upper()[:5] + data_uri[5:], "data:image/png," + quote(PNG)]
    sources += [f"{server}/ok", f"{server}/ok?size=1", f"{server}/moved", "HTTP" + server[4:] + "/ok"]
    sources += [RGB, RGB.transpose(2, 0, 1), RGB / 255, (RGB / 255).astype(np.float16), RGB.astype(np.int64)]
    sources += [RGB.astype(np.uint16) * 257, np.asfortranarray(RGB), RGB[::-1][::-1]]
    sources += [Image.fromarray(RGB), Image.open(io.BytesIO(PNG))]
    for source in sources:
        np.testing.assert_array_equal(pixels(source), RGB, err_msg=str(source)[:60])


def test_result_does_not_share_memory_with_the_source() -> None:
    own = Image.fromarray(RGB)
    load_image(own).putpixel((0, 0), (1, 2, 3))
    assert own.getpixel((0, 0)) == tuple(RGB[0, 0])


# EXIF 2.3: orientation -> the NumPy operation that makes the stored image upright.
TURNS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(RGB), file_format, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(encoded(Image.fromarray(RGB), file_format))).convert("RGB"))
    expected = TURNS[orientation](stored)
    np.testing.assert_array_equal(pixels(data), expected)
    np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(data))), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored() -> None:
    data = encoded(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(pixels(data), RGB)


def test_greyscale_and_bilevel_images() -> None:
    grey = RGB[:, :, 0]
    three = np.repeat(grey[:, :, None], 3, axis=2)
    for source in (grey, grey[:, :, None], grey[None], Image.fromarray(grey), encoded(Image.fromarray(grey), "JPEG")):
        close = isinstance(source, bytes)  # JPEG is lossy
        np.testing.assert_allclose(pixels(source), three, atol=40 if close else 0)
    mask = grey > 127
    np.testing.assert_array_equal(pixels(mask)[:, :, 0], mask * 255)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(mask)))[:, :, 1], mask * 255)


def test_palette_with_and_without_transparency() -> None:
    indices = (np.arange(12).reshape(3, 4) % 3).astype(np.uint8)
    picture = Image.frombytes("P", (4, 3), indices.tobytes())
    colours = np.array([[250, 0, 0], [0, 240, 0], [0, 0, 230]], np.uint8)
    picture.putpalette(colours.tobytes())
    np.testing.assert_array_equal(pixels(encoded(picture)), colours[indices])
    see_through = colours.copy()
    see_through[1] = 255
    np.testing.assert_array_equal(pixels(encoded(picture, transparency=1)), see_through[indices])
    np.testing.assert_array_equal(pixels(encoded(picture, "GIF", transparency=1)), see_through[indices])


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def test_transparency_is_composited_over_white() -> None:
    alpha = RNG.integers(0, 256, RGB.shape[:2], dtype=np.uint8)
    alpha[:3], alpha[3:6] = 0, 255
    rgba = np.dstack([RGB, alpha])
    for source in (rgba, rgba.transpose(2, 0, 1), rgba / 255, Image.fromarray(rgba), encoded(Image.fromarray(rgba))):
        np.testing.assert_allclose(pixels(source), over_white(RGB, alpha), atol=1)
    grey = Image.merge("LA", [Image.fromarray(RGB[:, :, 0]), Image.fromarray(alpha)])
    np.testing.assert_allclose(pixels(encoded(grey))[:, :, 2], over_white(RGB, alpha)[:, :, 0], atol=1)
    premultiplied = Image.fromarray(rgba).convert("RGBa")
    np.testing.assert_allclose(pixels(premultiplied), over_white(RGB, alpha), atol=2)


def test_png_transparent_colour_is_composited_over_white() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 0] = (10, 20, 30)
    loaded = pixels(encoded(Image.fromarray(picture), transparency=(10, 20, 30)))
    assert loaded[0, 0].tolist() == [255, 255, 255]
    assert loaded[1, 1].tolist() == [0, 0, 0]
    grey = pixels(encoded(Image.fromarray(picture[:, :, 0]), transparency=10))
    assert grey[0, 0].tolist() == [255, 255, 255]


def test_cmyk() -> None:
    cmyk = np.zeros((8, 8, 4), np.uint8)
    cmyk[:4, :, 1:3] = 255  # magenta and yellow: red
    cmyk[4:, :, 3] = 255  # black
    picture = Image.frombytes("CMYK", (8, 8), cmyk.tobytes())
    for source in (picture, encoded(picture, "TIFF"), encoded(picture, "JPEG", quality=100)):
        loaded = pixels(source)
        np.testing.assert_allclose(loaded[:3], np.broadcast_to([255, 0, 0], (3, 8, 3)), atol=12)
        np.testing.assert_allclose(loaded[5:], 0, atol=12)


def test_16_bit_greyscale_is_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 512).astype(np.uint16).reshape(16, 32)
    expected = np.rint(deep / 257).astype(np.uint8)
    sources = [deep, Image.fromarray(deep), encoded(Image.fromarray(deep)), encoded(Image.fromarray(deep), "TIFF")]
    sources += [Image.fromarray(deep.astype(np.int32)), Image.fromarray(deep.astype(">u2"))]
    for source in sources:
        np.testing.assert_array_equal(pixels(source)[:, :, 0], expected)
    dark = (deep // 300).astype(np.uint16)  # at most 218 of 65535: must stay nearly black
    assert pixels(encoded(Image.fromarray(dark))).max() == 1


def test_modes_without_a_stated_range() -> None:
    eight = RGB[:, :, 0]
    np.testing.assert_array_equal(pixels(Image.fromarray(eight).convert("I"))[:, :, 0], eight)
    np.testing.assert_array_equal(pixels(Image.fromarray(eight).convert("F"))[:, :, 0], eight)
    unit = Image.fromarray((eight / 255).astype(np.float32))
    np.testing.assert_array_equal(pixels(unit)[:, :, 0], eight)
    stretched = pixels(Image.fromarray(np.array([[-1e6, 0, 1e6]], np.float32)))[0, :, 0]
    assert stretched.tolist() in ([0, 127, 255], [0, 128, 255])
    with pytest.raises(ImageLoadError, match="finite"):
        load_image(Image.fromarray(np.array([[np.nan, 1]], np.float32)))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_is_used(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(pixels(data), np.broadcast_to([255, 0, 0], (8, 8, 3)).astype(np.uint8))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_truncated_files(file_format: str, share: float, tmp_path: Path) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, file_format)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageLoadError, match=r"cut\.img: the image is truncated|cut\.img: not an image format"):
        load_image(path)
    with pytest.raises(ImageLoadError, match=f"^{int(len(data) * share)} bytes"):
        load_image(path.read_bytes())


def test_damaged_files_load_or_raise_image_load_error() -> None:
    data = bytearray(encoded(Image.fromarray(RGB), "PNG"))
    for position in range(0, len(data), 7):
        damaged = data.copy()
        damaged[position] ^= 0x55
        try:
            assert load_image(bytes(damaged)).mode == "RGB"
        except ImageLoadError as error:
            assert "bytes" in str(error)


def test_errors_name_the_source_and_the_next_step(tmp_path: Path, server: str) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    long_uri = "data:image/png;base64," + "A" * 5000 + "?"
    cases = [
        (str(tmp_path / "absent.png"), r"absent\.png: there is no such file"),
        (tmp_path, "it is a directory; give the path of an image in it, or caption the whole directory"),
        ("", "empty string"),
        ("a\0b", "no such file"),
        ("x" * 5000, "cannot be read"),
        (text, r"notes\.txt: not an image format"),
        (empty, r"empty\.png: the file is empty"),
        (b"", "0 bytes: the file is empty"),
        (b"plain text", "10 bytes .*not an image format"),
        (long_uri, r"data:image.*\(5\d\d\d characters\): the base64 of the data URI is invalid"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,aGVsbG8=", "not an image format"),
        ("file://elsewhere/x.png", "elsewhere"),
        ("file://[bad/x.png", "must name a local file"),
        (f"{server}/missing", "/missing: the server answered 404"),
        (f"{server}/page", "/page: not an image format"),
        (f"{server}/cut", "/cut: the (download failed|image is truncated)"),
        ("http://127.0.0.1:1/x.png", "the download failed"),
        ("http://", "the download failed"),
        ("http://[bad/x.png", "the download failed"),
        (None, "a NoneType is not an image"),
        (3, "a int is not an image"),
        ([PNG], "a list is not an image"),
    ]
    for source, message in cases:
        with pytest.raises(ImageLoadError, match=message) as caught:
            load_image(source)
        assert len(str(caught.value)) < 600


def test_missing_file_is_also_a_file_not_found_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.png: there is no such file"):
        load_image("absent.png")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4, 3)), "list of images"),
        (np.zeros((5,)), "expected HxW"),
        (np.zeros((0, 4, 3)), "no dimension 0"),
        (np.zeros((5, 6, 2)), "expected HxW"),
        (np.full((2, 2), 255.0), "values from 255.0 to 255.0, expected 0 to 1"),
        (np.full((2, 2), -0.1), "expected 0 to 1"),
        (np.full((2, 2), np.nan), "expected 0 to 1"),
        (np.full((2, 2), 300), "expected 0 to 255"),
        (np.full((2, 2), 1j), "dtype"),
        (np.full((2, 2), "a"), "dtype"),
    ],
)
def test_arrays_that_are_not_images(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageLoadError, match=message):
        load_image(array)


def test_ambiguous_array_is_channels_last() -> None:
    array = RNG.integers(0, 256, (3, 9, 4), dtype=np.uint8)
    assert load_image(array).size == (9, 3)
    assert load_image(RNG.integers(0, 256, (3, 9, 5), dtype=np.uint8)).size == (5, 9)


@pytest.mark.filterwarnings("error")
def test_what_pillow_opens_is_accepted_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns above MAX_IMAGE_PIXELS, and refuses above twice as many."""
    for limit in (13 * 17 - 1, (13 * 17 + 1) // 2):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        np.testing.assert_array_equal(pixels(PNG), RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    message = "17 x 13 pixels are more than the limit of 200; resize the image, or if you trust .* to 221"
    with pytest.raises(ImageLoadError, match=message):
        load_image(PNG)
    assert load_image(PNG, max_image_pixels=221).size == (17, 13)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(PNG).size == (17, 13)


@pytest.mark.parametrize("limit", [220, 1])
def test_an_explicit_limit_is_exact(limit: int) -> None:
    with pytest.raises(ImageLoadError, match=f"more than the limit of {limit};"):
        load_image(PNG, max_image_pixels=limit)
    for wrong in (0, -1, 1.5, "1"):
        with pytest.raises(ValueError, match="max_image_pixels must be an integer of at least 1"):
            load_image(PNG, max_image_pixels=wrong)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_photo_of_108_megapixels(file_format: str) -> None:
    """12000 x 9000, as phones take them; one bit or one channel per pixel, to be quick."""
    image = Image.new("1" if file_format == "PNG" else "L", (12000, 9000), 1)
    assert load_image(encoded(image, file_format)).size == (12000, 9000)


def with_chunk(kind: bytes, data: bytes, checksum_error: int = 0) -> bytes:
    place = PNG.index(b"IDAT") - 4
    return PNG[:place] + chunk(kind, data, checksum_error) + PNG[place:]


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000),
        with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)),
        with_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        with_chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x" * 3_000_000)),
        with_chunk(b"iCCP", b"profile\0\0no zlib"),
        PNG[:-12] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)) + PNG[-12:],
        b"".join([PNG[:33], *[chunk(b"tEXt", b"a\0" + b"x" * 900_000)] * 80, PNG[33:]]),
        *(with_chunk(kind, b"12345678", 1) for kind in (b"gAMA", b"tIME", b"pHYs", b"tRNS", b"eXIf", b"prVt", b"iTXt")),
        with_chunk(b"acTL", b"bad"),
    ],
    ids=lambda data: f"{len(data)}",
)
def test_png_metadata_that_browsers_ignore_does_no_harm(data: bytes) -> None:
    np.testing.assert_array_equal(pixels(data), RGB)


@pytest.mark.parametrize("kind,before", [(b"tEXt", b""), (b"zTXt", b"\0"), (b"iTXt", b"\0\0\0\0")])
def test_an_orientation_in_the_text_of_a_png_is_applied(kind: bytes, before: bytes) -> None:
    if kind == b"iTXt":
        text = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
        data = with_chunk(kind, b"XML:com.adobe.xmp\0" + before + text)
    else:  # as ImageMagick writes it
        exif = Image.Exif()
        exif[0x0112] = 6
        stored = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
        text = b"\nexif\n%8d\n%s\n" % (len(stored), stored.hex().encode())
        data = with_chunk(kind, b"Raw profile type exif\0" + before + (zlib.compress(text) if before else text))
    np.testing.assert_array_equal(pixels(data), np.rot90(RGB, -1))


def test_a_wrong_checksum_of_a_critical_chunk_is_damage() -> None:
    place = PNG.index(b"IHDR") + 17
    with pytest.raises(ImageLoadError, match="truncated or damaged"):
        load_image(PNG[:place] + b"\0\0\0\0" + PNG[place + 4 :])


@pytest.mark.parametrize(
    "head,message",
    [
        (b"8BPS\0\1", "a Photoshop document.*convert it to PNG"),
        (b"%PDF-1.7", "a PDF document"),
        (b"<svg width=1>", "SVG"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", "a web page.*download the image itself"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "MP4"),
        (b"PF\n2 2\n-1\n", "floating-point"),
    ],
)
def test_formats_that_are_not_decoded_are_named(head: bytes, message: str) -> None:
    with pytest.raises(ImageLoadError, match=f"not an image format that is decoded here.*{message}"):
        load_image(head + bytes(100))


def test_download_size_is_limited(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_loading, "MAX_DOWNLOAD_BYTES", 100)
    with pytest.raises(ImageLoadError, match="larger than the limit of 100 bytes"):
        load_image(f"{server}/ok")


def test_no_global_state_changes() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    load_image(PNG)
    with pytest.raises(ImageLoadError):
        load_image(PNG[:100])
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))


def test_only_a_relative_path_is_looked_for_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageLoadError) as relative:
        load_image("absent.png")
    with pytest.raises(ImageLoadError) as absolute:
        load_image(tmp_path / "absent.png")
    assert f"(looked in {tmp_path})" in str(relative.value) and "looked in" not in str(absolute.value)
