"""load_image against ImageMagick and FFmpeg: every mode and bit depth, transparency, orientation and profile."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.png import CHANNELS, DEPTHS, GREY, PALETTE, RGB, chunk, encode_png
from helpers.programs import FFMPEG, IMAGEMAGICK, find_program, imagemagick_pixels, run_program
from PIL import Image, ImageCms

from mindone.models.share4v.processing.image_decoding import decode
from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

WIDTH, HEIGHT = 31, 18  # odd, so that rows of less than 8 bits end within a byte
ORIENTATIONS = ["TopLeft", "TopRight", "BottomRight", "BottomLeft"]
ORIENTATIONS += ["LeftTop", "RightTop", "RightBottom", "LeftBottom"]
OPAQUE, GREYS = ("-alpha", "off"), ("-alpha", "off", "-colorspace", "Gray")
MONO, TRUE = (*GREYS, "-monochrome"), (*OPAQUE, "-type", "TrueColor")
ALPHA, PLANES = ("-type", "TrueColorAlpha"), ("-interlace", "plane")
FULL = ("-quality", "100")


def palette(colors: int) -> tuple[str, ...]:
    return (*OPAQUE, "-colors", str(colors), "-type", "Palette")


# File -> ImageMagick's options; "PREFIX:" at their beginning names the encoder.
FILES: dict[str, Sequence[str]] = {
    **{f"grey{depth}.tif": (*GREYS, "-type", "Grayscale", "-depth", str(depth)) for depth in (2, 4, 8, 16, 32)},
    "grey1.tif": MONO,
    "white-is-zero1.tif": (*MONO, "-define", "quantum:polarity=min-is-white"),
    "white-is-zero8.tif": (*GREYS, "-depth", "8", "-define", "quantum:polarity=min-is-white"),
    "white-is-zero16.tif": (*GREYS, "-depth", "16", "-define", "quantum:polarity=min-is-white"),
    "white-is-zero16-msb.tif": (*GREYS, "-depth", "16", "-define", "quantum:polarity=min-is-white", "-endian", "MSB"),
    "grey16-msb.tif": (*GREYS, "-depth", "16", "-endian", "MSB"),
    "grey16-zip.tif": (*GREYS, "-depth", "16", "-compress", "Zip"),
    "grey-alpha8.tif": ("-colorspace", "Gray", "-type", "GrayscaleAlpha", "-depth", "8"),
    **{f"rgb{depth}.tif": (*TRUE, "-depth", str(depth)) for depth in (8, 16)},
    **{f"rgb{depth}-msb.tif": (*TRUE, "-depth", str(depth), "-endian", "MSB") for depth in (8, 16)},
    **{f"rgba{depth}.tif": (*ALPHA, "-depth", str(depth)) for depth in (8, 16)},
    "premultiplied8.tif": (*ALPHA, "-depth", "8", "-define", "tiff:alpha=associated"),
    "premultiplied16.tif": (*ALPHA, "-depth", "16", "-define", "tiff:alpha=associated"),
    **{f"cmyk{depth}.tif": (*OPAQUE, "-colorspace", "CMYK", "-depth", str(depth)) for depth in (8, 16)},
    **{f"planes{depth}.tif": (*TRUE, "-depth", str(depth), *PLANES) for depth in (8, 16)},
    "planes16-msb.tif": (*TRUE, "-depth", "16", *PLANES, "-endian", "MSB"),
    "planes16-zip.tif": (*TRUE, "-depth", "16", *PLANES, "-compress", "Zip"),
    "planes16-alpha.tif": (*ALPHA, "-depth", "16", *PLANES),
    **{f"palette{colors}.tif": palette(colors) for colors in (2, 4, 16, 256)},
    **{f"{name}.tif": (*OPAQUE, "-depth", "8", "-compress", name) for name in ("LZW", "Zip", "RLE", "LZMA", "Zstd")},
    **{f"{name}.tif": (*MONO, "-compress", name) for name in ("Group4", "Fax")},
    "lzw16.tif": (*OPAQUE, "-depth", "16", "-compress", "LZW"),
    "tiles8.tif": (*OPAQUE, "-depth", "8", "-define", "tiff:tile-geometry=16x16"),
    "tiles16.tif": (*OPAQUE, "-depth", "16", "-define", "tiff:tile-geometry=16x16"),
    "big.tif": ("tiff64:", *OPAQUE, "-depth", "8"),
    "bits-reversed.tif": (*MONO, "-define", "tiff:fill-order=lsb", "-compress", "none"),
    **{f"turned{n}.tif": (*OPAQUE, "-depth", "8", "-orient", name) for n, name in enumerate(ORIENTATIONS, 1)},
    **{f"turned-grey{n}.tif": (*GREYS, "-depth", "16", "-orient", name) for n, name in enumerate(ORIENTATIONS, 1)},
    **{f"turned{n}.tga": (*OPAQUE, "-depth", "8", "-orient", name) for n, name in enumerate(ORIENTATIONS[:4], 1)},
    "rgba.tga": ("-depth", "8"),
    "grey.tga": (*GREYS, "-depth", "8"),
    "rle.tga": (*OPAQUE, "-depth", "8", "-compress", "RLE"),
    "palette.tga": palette(16),
    "rgb.pcx": (*OPAQUE, "-depth", "8"),
    "grey.pcx": (*GREYS, "-depth", "8"),
    "mono.pcx": MONO,
    "palette16.pcx": palette(16),
    "palette200.pcx": palette(200),
    "rgb.bmp": (*OPAQUE, "-depth", "8"),
    "version3.bmp": ("bmp3:", *OPAQUE),
    "version2.bmp": ("bmp2:", *OPAQUE),
    "rgba.bmp": ("-depth", "8"),
    "mono.bmp": MONO,
    "grey.bmp": GREYS,
    "palette16.bmp": palette(16),
    "palette200.bmp": palette(200),
    "rle.bmp": (*palette(200), "-compress", "RLE"),
    "565.bmp": (*OPAQUE, "-define", "bmp:subtype=RGB565"),
    "555.bmp": (*OPAQUE, "-define", "bmp:subtype=RGB555"),
    "opaque.gif": (*OPAQUE, "-colors", "100"),
    "transparent.gif": ("-colors", "100"),
    "interlaced.gif": (*OPAQUE, "-interlace", "line"),
    **{f"rgb{depth}.ppm": (*OPAQUE, "-depth", str(depth)) for depth in (8, 10, 16)},
    **{f"grey{depth}.pgm": (*GREYS, "-depth", str(depth)) for depth in (4, 8, 12, 16)},
    "mono.pbm": MONO,
    "plain.ppm": (*OPAQUE, "-depth", "8", "-compress", "none"),
    "plain.pgm": (*GREYS, "-depth", "16", "-compress", "none"),
    "plain.pbm": (*MONO, "-compress", "none"),
    "rgb.jpg": (*OPAQUE, "-quality", "95"),
    "grey.jpg": GREYS,
    "cmyk.jpg": (*OPAQUE, "-colorspace", "CMYK"),
    "progressive.jpg": (*OPAQUE, *PLANES),
    **{f"sampled{name}.jpg": (*OPAQUE, "-sampling-factor", name) for name in ("4:4:4", "4x1", "1x2", "2x1")},
    "stored-as-rgb.jpg": (*OPAQUE, "-sampling-factor", "4:4:4", "-set", "colorspace", "RGB"),
    "lossless.webp": (*OPAQUE, "-define", "webp:lossless=true"),
    "lossy.webp": (*OPAQUE, "-quality", "90"),
    "lossy-alpha.webp": ("-quality", "90"),
    "lossless-alpha.webp": ("-define", "webp:lossless=true"),
    **{f"rgb{depth}.jp2": (*OPAQUE, "-depth", str(depth), *FULL) for depth in (8, 12, 16)},
    **{f"grey{depth}.jp2": (*GREYS, "-depth", str(depth), *FULL) for depth in (8, 16)},
    "rgba.jp2": ("-depth", "8", *FULL),
    "grey-alpha.jp2": ("-colorspace", "Gray", "-depth", "8", *FULL),
    "codestream.j2k": (*OPAQUE, "-depth", "8", *FULL),
    "rgba.ico": ("-depth", "8"),
    "opaque.ico": OPAQUE,
    "mono.ico": MONO,
}
# Pillow keeps the high byte of 16 bits, others round: a level in a channel, and one more after transparency.
ATOL = 2
# Files of valid variants that Pillow does not decode: an error that says so.
UNSUPPORTED: dict[str, Sequence[str]] = {
    "rgb32.tif": (*TRUE, "-depth", "32"),
    "grey-alpha16.tif": ("-colorspace", "Gray", "-type", "GrayscaleAlpha", "-depth", "16"),
    "palette-alpha.tif": ("-colors", "16", "-type", "PaletteAlpha"),
    "webp.tif": (*OPAQUE, "-depth", "8", "-compress", "WebP"),
    "4444.bmp": ("-define", "bmp:subtype=ARGB4444"),
    "rgba.pcx": ("-depth", "8"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files above, encoded by ImageMagick from one picture with transparency."""
    program = find_program(IMAGEMAGICK, "imagemagick")
    path = tmp_path_factory.mktemp("decoding")
    blocks = np.random.default_rng(5).integers(0, 65536, (5, 8, 4)).astype("<u2")
    samples = blocks.repeat(4, axis=0).repeat(4, axis=1)[:HEIGHT, :WIDTH]
    (path / "picture.rgba").write_bytes(np.ascontiguousarray(samples).tobytes())
    source = ("-size", f"{WIDTH}x{HEIGHT}", "-depth", "16", "-endian", "LSB", f"rgba:{path / 'picture.rgba'}")

    def encode(entry: tuple[str, Sequence[str]]) -> None:
        name, options = entry
        prefix = options[0] if options and options[0].endswith(":") else ""
        run_program(program, *source, *options[bool(prefix) :], f"{prefix}{path / name}")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(encode, {**FILES, **UNSUPPORTED}.items()))
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, np.ndarray]:
    program = find_program(IMAGEMAGICK, "imagemagick")
    prefixes = {"bmp": "bmp:", "tif": "tiff:"}
    with ThreadPoolExecutor(2) as pool:
        names = list(FILES)
        pixels = pool.map(
            lambda name: imagemagick_pixels(program, folder / name, prefixes.get(name.rpartition(".")[2], "")), names
        )
        return dict(zip(names, pixels, strict=True))


@pytest.mark.parametrize("name", FILES)
def test_pixels_equal_imagemagick(name: str, folder: Path, expected: dict[str, np.ndarray]) -> None:
    ours = np.asarray(load_image(folder / name)).astype(int)
    if name in ("grey2.tif", "grey4.tif"):
        assert len(np.unique(ours)) <= 2 ** int(name[4])
    np.testing.assert_allclose(ours, expected[name], atol=ATOL)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_variant_that_pillow_does_not_decode_is_not_called_damaged(name: str, folder: Path) -> None:
    with pytest.raises(ImageLoadError, match=r"does not decode this variant of its format .*save it again as a PNG"):
        load_image(folder / name)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("color_type,depth", [(kind, depth) for kind, depths in DEPTHS.items() for depth in depths])
def test_png_pixels_equal_imagemagick(
    color_type: int, depth: int, transparent: bool, interlaced: bool, tmp_path: Path
) -> None:
    if transparent and color_type not in (GREY, RGB, PALETTE):
        return  # it has an alpha channel instead
    rng = np.random.default_rng(depth + color_type)
    samples = rng.integers(0, 2**depth, (HEIGHT, WIDTH, CHANNELS[color_type]))
    chosen = samples[4, 4] = np.maximum(samples[4, 4], 1)
    samples[5:9, 3:20] = chosen
    if depth == 16:
        samples[9, 3:20] = chosen ^ 1  # differs in the low byte only: not transparent
    colors = rng.integers(0, 256, (2**depth, 3)).astype(np.uint8)
    before = chunk(b"PLTE", colors.tobytes()) if color_type == PALETTE else b""
    if transparent and color_type == PALETTE:
        before += chunk(b"tRNS", rng.integers(0, 256, 2**depth).astype(np.uint8).tobytes())
    elif transparent:
        before += chunk(b"tRNS", chosen.astype(">u2").tobytes())
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(samples, depth, color_type, before, interlaced))
    program = find_program(IMAGEMAGICK, "imagemagick")
    np.testing.assert_allclose(
        np.asarray(load_image(path)).astype(int), imagemagick_pixels(program, path), atol=ATOL if depth == 16 else 0
    )


def smooth() -> Image.Image:
    """A picture without edges, which decoders reconstruct differently from halved chroma."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = np.arange(96) * 2, np.arange(64)[:, None] * 3, 120
    return Image.fromarray(pixels)


@pytest.mark.parametrize("suffix", ["avif", "heic", "jpg", "webp", "jxl"])
@pytest.mark.parametrize("orientation", [1, 2, 5, 6, 8])
def test_lossy_files_equal_the_original_and_another_decoder(suffix: str, orientation: int, tmp_path: Path) -> None:
    import pillow_heif
    import pillow_jxl  # noqa: F401  (registers its encoder)

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    if suffix == "heic":
        pillow_heif.from_pillow(smooth()).save(path, exif=exif.tobytes(), quality=95)
    elif suffix == "jxl":  # a recompressed JPEG: the encoder copies the orientation into the header
        smooth().save(tmp_path / "a.jpg", exif=exif, quality=95)
        Image.open(tmp_path / "a.jpg").save(path, lossless_jpeg=True)
    else:
        smooth().save(path, exif=exif, quality=95)
    ours = np.asarray(load_image(path)).astype(int)
    turned = smooth()
    steps = {2: "FLIP_LEFT_RIGHT", 5: "TRANSPOSE", 6: "ROTATE_270", 8: "ROTATE_90"}
    if orientation in steps:
        turned = turned.transpose(Image.Transpose[steps[orientation]])
    assert ours.shape == np.asarray(turned).shape
    assert np.abs(ours - np.asarray(turned)).mean() < 2
    if suffix == "heic":  # this FFmpeg does not read it
        theirs = imagemagick_pixels(find_program(IMAGEMAGICK, "imagemagick"), path)
        assert np.abs(ours - theirs).mean() < 2
    elif orientation == 1:
        program = find_program(FFMPEG, "ffmpeg")
        theirs = run_program(program, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
        assert np.abs(ours - np.frombuffer(theirs, np.uint8).reshape(ours.shape)).mean() < 2


def test_a_color_profile_is_not_applied(tmp_path: Path) -> None:
    """As in the training of the models, and as ImageMagick does; browsers apply profiles."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    program = find_program(IMAGEMAGICK, "imagemagick")
    for suffix in ("png", "jpg", "tif", "webp"):
        path = tmp_path / f"a.{suffix}"
        smooth().save(path, icc_profile=profile)
        np.testing.assert_allclose(np.asarray(load_image(path)).astype(int), imagemagick_pixels(program, path), atol=1)


def test_lab_has_the_white_point_of_the_tiff_specification(tmp_path: Path) -> None:
    """ImageMagick takes D65 for the white point of L*a*b*; the specification says D50."""
    picture = smooth()
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(picture, to_lab).save(tmp_path / "a.tif")
    difference = np.asarray(load_image(tmp_path / "a.tif")).astype(int) - np.asarray(picture)
    assert np.abs(difference).mean() < 2  # with D65 about 7


def test_a_fourth_tiff_sample_of_unspecified_meaning_is_ignored(tmp_path: Path) -> None:
    """ImageMagick takes it for transparency; the specification calls that ExtraSamples 2."""
    rgbx = Image.new("RGBX", (8, 8), (10, 200, 30, 0))
    rgbx.save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif").getpixel((0, 0)) == (10, 200, 30)


def test_unsigned_tiff_of_32_bits_above_half_of_the_range(tmp_path: Path) -> None:
    values = np.array([[0, 2**30, 2**31, 3 * 2**30, 2**32 - 1]], np.uint32)
    tags = {256: 5, 257: 1, 258: 32, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 20, 339: 1}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<L", 28) + values.astype("<u4").tobytes() + directory)
    assert np.asarray(load_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 64, 128, 192, 255]


def test_jpeg_xl_and_heif_without_their_plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindone.models.share4v.processing import image_formats

    monkeypatch.setattr(image_formats, "_plugin", lambda name: None if name in ("HEIF", "JXL") else real(name))
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    with pytest.raises(ImageLoadError, match=r"HEIF \(HEIC\).*pip install 'mindone-share4v\[heif\]'"):
        decode(io.BytesIO(heic), "a.heic", None)  # not elsewhere, where nothing is patched
    for data in (b"\xff\x0a" + bytes(40), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40)):
        with pytest.raises(ImageLoadError, match=r"JPEG XL.*pip install pillow-jxl-plugin"):
            load_image(data)


def real(name: str) -> object:
    from importlib import import_module

    from mindone.models.share4v.processing.image_formats import FORMATS

    return getattr(import_module(FORMATS[name].module), FORMATS[name].plugin, None)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (3, 8), (16383, 5)])
@pytest.mark.parametrize("kind", ["lossy", "lossless", "metadata", "animation"])
def test_the_size_in_a_webp_header(mode: str, size: tuple[int, int], kind: str) -> None:
    from mindone.models.share4v.processing.webp_header import webp_size

    options: dict[str, Any] = {"lossless": kind == "lossless", "exif": b"Exif" if kind == "metadata" else b""}
    if kind == "animation":
        options |= {"save_all": True, "append_images": [Image.new(mode, size, "red")], "duration": 5}
    buffer = io.BytesIO()
    Image.new(mode, size, "blue").save(buffer, "WEBP", method=0, **options)
    assert webp_size(buffer.getvalue()[:64]) == size
    for end in range(30):  # a header that is cut
        webp_size(buffer.getvalue()[:end])
    assert load_image(buffer.getvalue()).size == size


@pytest.mark.parametrize("size", [(8, 8), (256, 160), (300, 17), (4000, 3000), (16, 12)])
@pytest.mark.parametrize("container", [False, True])
def test_the_size_in_a_jpeg_xl_header(size: tuple[int, int], container: bool) -> None:
    import pillow_jxl  # noqa: F401

    from mindone.models.share4v.processing.image_limits import LimitedFile
    from mindone.models.share4v.processing.jpeg_xl_header import jpeg_xl_size

    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "maker"
    Image.new("L", size, 3).save(
        buffer, "JXL", use_container=container, effort=1, exif=exif.tobytes() if container else b""
    )
    assert jpeg_xl_size(LimitedFile(io.BytesIO(buffer.getvalue()))) == size
    with pytest.raises(ImageLoadError, match=f"{size[0]} x {size[1]} pixels are more than the limit of 50"):
        load_image(buffer.getvalue(), max_image_pixels=50)
