"""Frames as a player shows them, against FFmpeg: pixel aspect ratio, rotation and mirroring."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers.programs import FFMPEG, find_program, run_program
from helpers.videos import MATRICES, turn, write_video
from PIL import Image

from mindone.pipelines.image_to_text.video import FrameSampling, VideoLoadError, read_frames
from mindone.pipelines.image_to_text.video.display import shown_size

# FFmpeg rotates by itself; this makes pixels square.
SQUARE = "scale='if(gt(sar,1),round(iw*sar),iw)':'if(gt(sar,1),ih,round(ih/sar))':flags=bicubic,setsar=1"
RATIOS = ["16/11", "8/9", "4/3", "1/2"]
ENCODERS = {"mp4": "libx264", "mkv": "libx264", "mov": "mpeg4", "ts": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two equal frames, different in every corner and without sharp edges."""
    y, x = np.mgrid[:64, :96]
    picture = Image.fromarray(np.stack([x * 2, y * 3, np.full_like(x, 90)], axis=2).astype(np.uint8))
    return write_video(tmp_path_factory.mktemp("display") / "clip.mp4", [picture, picture], options={"crf": "5"})


def shown_by_ffmpeg(path: Path, size: tuple[int, int]) -> np.ndarray:
    options = ("-frames:v", "1", "-vf", SQUARE, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    data = run_program(find_program(FFMPEG, "ffmpeg"), "-v", "error", "-i", path, *options)
    return np.frombuffer(data, np.uint8).reshape(size[1], size[0], 3).astype(int)


def check(path: Path) -> tuple[int, int]:
    """Check every mode's frames and sizes against FFmpeg, and return the size."""
    video = read_frames(path)
    size = video.frames[0].size
    assert (video.width, video.height) == size
    theirs = shown_by_ffmpeg(path, size)
    assert np.abs(np.asarray(video.frames[0]).astype(int) - theirs).mean() < 3  # two conversions from YUV, two filters
    grid = read_frames(path, FrameSampling("grid", 4))
    assert (grid.width, grid.height) == size
    return size


@pytest.mark.parametrize("how", MATRICES)
def test_rotation_and_mirroring(how: int | str, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    path.write_bytes(clip.read_bytes())
    size = check(turn(path, how))
    assert size == ((64, 96) if how in (90, 270, "transposed", "transverse") else (96, 64))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("how", [None, 90, "left-right", "transposed"])
def test_pixel_aspect_ratio_with_rotation(ratio: str, how: int | str | None, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    ffmpeg = find_program(FFMPEG, "ffmpeg")
    run_program(ffmpeg, "-v", "error", "-i", clip, "-vf", f"setsar={ratio}", "-c:v", "libx264", "-crf", "5", path)
    size = check(path if how is None else turn(path, how))
    stored = shown_size(96, 64, Fraction(ratio))
    assert size == (stored[::-1] if how in (90, "transposed") else stored)


@pytest.mark.parametrize("suffix", ENCODERS)
def test_pixel_aspect_ratio_in_every_container(suffix: str, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    ffmpeg = find_program(FFMPEG, "ffmpeg")
    encoder = ("-c:v", ENCODERS[suffix], "-b:v", "2M")
    run_program(ffmpeg, "-v", "error", "-i", clip, "-vf", "setsar=16/11", *encoder, path)
    assert check(path) == (140, 64)


def test_dvd_in_widescreen(clip: Path, tmp_path: Path) -> None:
    """MPEG-2 states the aspect ratio of the screen, and FFmpeg computes that of a pixel."""
    path = tmp_path / "dvd.mpg"
    ffmpeg = find_program(FFMPEG, "ffmpeg")
    run_program(
        ffmpeg,
        "-v",
        "error",
        "-i",
        clip,
        "-vf",
        "scale=720:576",
        "-r",
        "25",
        "-target",
        "pal-dvd",
        "-aspect",
        "16:9",
        "-an",
        path,
    )
    assert check(path) == (1024, 576)


def test_a_hostile_pixel_aspect_ratio_is_an_error_not_a_huge_frame(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    ffmpeg = find_program(FFMPEG, "ffmpeg")
    run_program(ffmpeg, "-v", "error", "-i", clip, "-vf", "setsar=60000/1", "-c:v", "mpeg4", path)
    try:
        size = read_frames(path).frames[0].size
    except VideoLoadError as error:
        assert "exceed the limit of 178,956,970 pixels; resize the video" in str(error)
    else:
        assert size[0] * size[1] <= 178_956_970


def test_an_angle_between_is_ignored(clip: Path, tmp_path: Path) -> None:
    path = turn_file(clip, tmp_path / "clip.mp4", (46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30))  # 45 degrees
    np.testing.assert_array_equal(np.asarray(read_frames(path).frames[0]), np.asarray(read_frames(clip).frames[0]))


def turn_file(source: Path, target: Path, matrix: tuple[int, ...]) -> Path:
    """Write a copy with a display matrix in the file's own fixed-point numbers."""
    target.write_bytes(source.read_bytes())
    data = bytearray(turn(target, 180).read_bytes())
    flipped = struct.pack(">9i", -1 << 16, 0, 0, 0, -1 << 16, 0, 0, 0, 1 << 30)
    assert data.count(flipped) == 1
    target.write_bytes(data.replace(flipped, struct.pack(">9i", *matrix)))
    return target
