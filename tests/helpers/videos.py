"""Videos made for tests: rendered scenes, or frames that say their own number, at any moments."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

MILLISECONDS = Fraction(1, 1000)
BITS = 6  # of a frame's number, drawn as columns: white is 1
# The display matrix of ISO/IEC 14496-12, 6.2.2, for a turn clockwise or a reflection: a, b, u, c, d, v, x, y, w.
MATRICES = {
    "left-right": (-1, 0, 0, 0, 1, 0, 0, 0, 1),
    "top-bottom": (1, 0, 0, 0, -1, 0, 0, 0, 1),
    "transposed": (0, 1, 0, 1, 0, 0, 0, 0, 1),
    "transverse": (0, -1, 0, -1, 0, 0, 0, 0, 1),
    90: (0, 1, 0, -1, 0, 0, 0, 0, 1),
    180: (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    270: (0, -1, 0, 1, 0, 0, 0, 0, 1),
}


def write_video(
    path: Path,
    frames: Sequence[Image.Image],
    rate: Fraction | int = 10,
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Encode pictures of one size.

    Args:
        rate: frames a second.
        times: when each frame appears, in milliseconds, and when the last one vanishes; in place of `rate`.
        codec: FFmpeg's name of the encoder; the suffix of `path` says the container.
        options: the encoder's.
        muxer: the container's options.
    """
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "12", **(options or {})})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        if times is not None:
            stream.time_base = stream.codec_context.time_base = MILLISECONDS
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_image(picture)
            if times is not None:
                frame.pts, frame.time_base = times[number], MILLISECONDS
            container.mux(_lasting(stream.encode(frame), times))
        container.mux(_lasting(stream.encode(), times))
    return path


def _lasting(packets: list[av.Packet], times: Sequence[int] | None) -> list[av.Packet]:
    """Say of each packet how long it is shown, which encoders do not keep."""
    for packet in packets if times is not None else ():
        packet.duration = next(time for time in times if time > packet.pts) - packet.pts
    return packets


def numbered(count: int, size: tuple[int, int] = (96, 64)) -> list[Image.Image]:
    """Return pictures that each show their own number, from 0 on."""
    return [_number(number, size) for number in range(count)]


def _number(number: int, size: tuple[int, int]) -> Image.Image:
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            pixels[:, bit * width // BITS : (bit + 1) * width // BITS] = 255
    return Image.fromarray(pixels)


def read_number(picture: Image.Image) -> int:
    """Return the number that a picture of `numbered` shows."""
    grey = np.asarray(picture.convert("L"))
    columns = np.array_split(grey, BITS, axis=1)
    return sum(1 << bit for bit, column in enumerate(columns) if np.median(column) > 127)


def write_sound(path: Path, cover: Image.Image | None = None) -> Path:
    """Write an .mp4 that has sound and no moving pictures; a cover is a stream of one picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        if cover is not None:
            pictures = container.add_stream("mjpeg", rate=1)
            (pictures.width, pictures.height), pictures.pix_fmt = cover.size, "yuvj420p"
            pictures.disposition = Disposition.attached_pic
            container.mux([*pictures.encode(av.VideoFrame.from_image(cover)), *pictures.encode()])
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for number in range(20):
            frame.pts = number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path, how: int | str) -> Path:
    """Write into an .mp4 that its frames are to be shown turned clockwise, as a phone does, or mirrored."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    version = data[header]
    matrix = header + (40 if version == 0 else 52)
    values = [value << (30 if place % 3 == 2 else 16) for place, value in enumerate(MATRICES[how])]
    data[matrix : matrix + 36] = struct.pack(">9i", *values)
    path.write_bytes(data)
    return path
