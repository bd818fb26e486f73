"""The program of a process that decodes images for another one; `decoder_processes` starts it and has the protocol.

It imports Pillow and NumPy, but neither MindSpore nor the packages above this one, so that it starts in a tenth of a
second: this package is its only one, under another name.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .image_decoding import ImageLoadError, decode
from .image_formats import PREFIX_BYTES, is_isolated
from .image_limits import cpu_seconds

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

HEADER = struct.Struct("<QQ")  # numbers of bytes of the JSON object and of the data behind it
_STRIP_PIXELS = 2**22  # sent at a time
_PARENT_SECONDS = 5.0  # between two looks at whether the parent still exists
_CLOSED = 0
_UNLIMITED = -1  # resource.RLIM_INFINITY


def main() -> None:
    """Decode what comes through standard input, a socket, until it is closed or the parent ends."""
    import numpy  # noqa: F401  (part of what the process has at its start)
    from PIL import Image  # noqa: F401

    connection = socket.socket(fileno=os.dup(0))
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    parent = os.getppid()
    limits = _Limits(connection)
    send(connection, {"ready": True})
    while _has_request(connection, parent):
        request, data = receive(connection)
        if request["plugin"] is not None:
            import_module(request["plugin"])
        is_isolated(
            bytes(data[:PREFIX_BYTES])
        )  # imports the plug-ins, whose libraries are no part of what an image needs
        limits.start(request)
        if not _answer(connection, request, data, limits):
            return  # a process that ran out of memory may have lost some for good
        limits.stop()


def send(connection: socket.socket, message: dict[str, Any], data: bytes | memoryview = b"") -> None:
    """Send a JSON object and bytes."""
    text = json.dumps(message).encode()
    connection.sendall(HEADER.pack(len(text), len(data)) + text)
    if data:
        connection.sendall(data)


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """Return a JSON object and the bytes behind it."""
    text_size, size = HEADER.unpack(receive_bytes(connection, HEADER.size))
    message: dict[str, Any] = json.loads(receive_bytes(connection, text_size))
    return message, receive_bytes(connection, size)


def receive_bytes(connection: socket.socket, size: int) -> bytearray:
    """Return the next `size` bytes.

    Raises:
        EOFError: the other side ended before.
    """
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        count = connection.recv_into(view[filled:])
        if count == _CLOSED:
            raise EOFError
        filled += count
    return data


def _has_request(connection: socket.socket, parent: int) -> bool:
    """Wait for a request; return False if none will come.

    The connection stays open if a process that the parent forked has a copy of its end, hence the look at the parent.
    """
    while os.getppid() == parent:
        if select.select([connection], [], [], _PARENT_SECONDS)[0]:
            return bool(connection.recv(1, socket.MSG_PEEK))
    return False


def _answer(connection: socket.socket, request: dict[str, Any], data: bytearray, limits: _Limits) -> bool:
    """Decode one image and send it, or the error; return whether there was enough memory."""
    from PIL import Image, ImageFile

    Image.MAX_IMAGE_PIXELS = request["pillow_pixels"]
    ImageFile.LOAD_TRUNCATED_IMAGES = request["load_truncated"]
    try:
        image = decode(
            io.BytesIO(data), request["name"], request["limit"], seconds=request["seconds"], on_size=limits.allow
        )
    except ImageLoadError as error:
        send(connection, {"error": str(error)})
        return True
    except MemoryError:
        send(connection, {"memory": limits.memory})
        return False
    _send_pixels(connection, image)
    return True


def _send_pixels(connection: socket.socket, image: PILImage) -> None:
    width, height = image.size
    send(connection, {"size": [width, height]})
    if width * height <= _STRIP_PIXELS:
        connection.sendall(image.tobytes())
        return
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        connection.sendall(image.crop((0, top, width, min(top + rows, height))).tobytes())


class _Limits:
    """Time and memory of decoding one image: exceeding the time ends the process (SIGPROF), memory is refused.

    Args:
        connection: to the parent, which is told about limits that depend on the size of the image.

    Attributes:
        memory: bytes that decoding may use.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._request: dict[str, Any] = {}
        self._begin = 0.0
        self._at_start = self.memory = 0

    def start(self, request: dict[str, Any]) -> None:
        """Set the limits of a request that hold until the size of the image is known.

        WebP's decoder reserves two canvases of 4 bytes for a pixel when it is created.
        """
        self._request, self._begin, self._at_start = request, time.process_time(), _address_space()
        self._set(0, request["memory"] + 8 * (request["limit"] or 2**28))

    def allow(self, pixels: int) -> None:
        """Set the limits for an image of this number of pixels."""
        seconds = self._set(pixels, self._request["memory"] + self._request["memory_per_pixel"] * pixels)
        send(self._connection, {"seconds": seconds})

    def stop(self) -> None:
        """End the limits."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        _limit_address_space(_UNLIMITED)

    def _set(self, pixels: int, memory: int) -> float:
        """Set the limits for a number of pixels and return the seconds."""
        seconds, used = cpu_seconds(pixels, self._request["seconds"]), time.process_time() - self._begin
        signal.setitimer(signal.ITIMER_PROF, max(seconds - used, 1e-3))
        self.memory = memory
        _limit_address_space(self._at_start + memory)
        return seconds


def _address_space() -> int:
    """Return the size of this process's address space in bytes; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _limit_address_space(size: int) -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        size = min(size, hard) if size != _UNLIMITED else hard
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))


if __name__ == "__main__":
    sys.exit("this program is started by decoder_processes")
