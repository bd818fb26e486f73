"""Programs of the distribution that tests compare with, as independent decoders: ImageMagick and FFmpeg."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

REQUIRED = "SHARE4V_TEST_PROGRAMS"  # .ci/run sets it to "required"
# Debian's name comes first: `convert` may also be GraphicsMagick.
IMAGEMAGICK = ("magick", "convert-im6.q16", "convert")
FFMPEG = ("ffmpeg",)


def find_program(names: tuple[str, ...], package: str) -> str:
    """Return the path of the first program that is installed; otherwise skip the test, or fail it in CI."""
    for name in names:
        if path := shutil.which(name):
            return path
    message = f"{names[0]} is not installed: apt-get install -y {package}"
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(message)
    pytest.skip(message)


def run_program(*arguments: str | Path) -> bytes:
    """Run a program and return what it prints.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([str(one) for one in arguments], capture_output=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{Path(arguments[0]).name}: {done.stderr.decode(errors='replace')[:300]}")
    return done.stdout


def imagemagick_pixels(program: str, path: Path, prefix: str = "") -> np.ndarray:
    """Decode the first picture of a file with ImageMagick: upright, over white, sRGB, [H, W, 3] uint8."""
    options = ("-auto-orient", "-colorspace", "sRGB", "-depth", "8", "-background", "white", "-alpha", "remove")
    data = run_program(program, f"{prefix}{path}[0]", *options, "ppm:-")
    head, width, height, depth, _ = data.split(maxsplit=4) if data[:2] == b"P6" else (b"", 0, 0, b"", b"")
    assert (head, depth) == (b"P6", b"255"), data[:40]
    size = 3 * int(width) * int(height)
    return np.frombuffer(data[-size:], np.uint8).reshape(int(height), int(width), 3)
