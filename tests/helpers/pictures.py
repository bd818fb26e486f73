"""Folders of rendered scenes and broken files, for tests that caption data sets."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

from PIL import Image

from helpers.paths import TINY_SCRIPTS


def scene(number: int, size: int = 64) -> Image.Image:
    """Return a rendered scene, which depends only on the number and the size."""
    if str(TINY_SCRIPTS) not in sys.path:
        sys.path.insert(0, str(TINY_SCRIPTS))
    from scenes import render, sample_scene, scene_rng

    rng = scene_rng(7, number)
    return render(sample_scene(rng), rng, size)


def captioned_scene(number: int) -> tuple[Image.Image, str]:
    """Return a scene that sharegpt4v-tiny was not trained on, and a correct caption of it."""
    if str(TINY_SCRIPTS) not in sys.path:
        sys.path.insert(0, str(TINY_SCRIPTS))
    from captions import caption
    from scenes import render, sample_scene, scene_rng

    rng = scene_rng(1000, number)
    drawn = sample_scene(rng, held_out=True)
    return render(drawn, rng), caption(drawn, rng)


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    """Return an image as an encoded file."""
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def _bomb() -> bytes:
    """Return a PNG whose header claims 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def broken_files() -> dict[str, bytes]:
    """Return twenty files with names of images that are not valid images: name -> content."""
    png, jpeg, gif = (encoded(scene(0), name) for name in ("PNG", "JPEG", "GIF"))
    webp, bmp, tiff = (encoded(scene(0), name) for name in ("WEBP", "BMP", "TIFF"))
    return {
        "empty.png": b"",
        "one-byte.jpg": b"\xff",
        "zeros.png": bytes(4096),
        "text.jpg": b"this is no picture\n" * 40,
        "html.png": b"<!DOCTYPE html><html><body>404 not found</body></html>",
        "json.jpg": b'{"error": "expired"}',
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
        "half.png": png[: len(png) // 2],
        "half.jpg": jpeg[: len(jpeg) // 3],
        "header-only.png": png[:8],
        "header-only.jpg": jpeg[:20],
        "flipped.png": png[:60] + bytes(byte ^ 0xFF for byte in png[60:]),
        "magic-gone.png": b"\0\0\0\0" + png[4:],
        "half.gif": gif[:20],
        "half.webp": webp[: len(webp) // 3],
        "half.bmp": bmp[:40],
        "half.tiff": tiff[: len(tiff) // 3],
        "bomb.png": _bomb(),
        "zip.jpg": b"PK\x03\x04" + bytes(200),
        "elf.webp": b"\x7fELF" + bytes(300),
    }


def write_folder(folder: Path, count: int, broken: bool = True, duplicates: int = 0) -> None:
    """Write `count` scenes into subfolders, the broken files, and copies of the first `duplicates` scenes."""
    for number in range(count):
        place = folder / f"part{number % 3}" / f"scene{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(scene(number)))
    for number in range(duplicates):
        (folder / "part1" / f"copy{number:04d}.png").write_bytes(encoded(scene(number)))
    if broken:
        for name, data in broken_files().items():
            (folder / f"part{len(name) % 3}" / f"bad-{name}").write_bytes(data)


def write_near_copies(folder: Path) -> None:
    """Write scenes of `write_folder` again in other files, three that are listed before it and three after it."""
    for number, name in enumerate(("again",) * 3 + ("small",) * 3):
        path = folder / name / f"{name}{number:04d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(scene(number), "BMP"))


def shared_by_copies(records: list[dict[str, object]]) -> dict[str, str]:
    """Return, of records with captions of near-equal images, the name of that image by the key."""
    mark = "caption of a near-equal image: "
    notes = {str(record["key"]): str(note) for record in records for note in record["notes"]}  # type: ignore[attr-defined]
    return {key: Path(note).name for key, note in notes.items() if note.startswith(mark)}
