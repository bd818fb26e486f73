"""Decoding images in processes of their own, which are ended when an image exceeds its limits of time and memory.

A decoder in C that gets its file at once cannot be interrupted, and a fault in it ends the process. So the formats that
are decoded in this way (`Format.is_isolated`) are decoded elsewhere: the file goes to a process through a socket, and
the pixels come back. A process takes a tenth of a second to start, is used again for the next image, and ends with the
one that started it. There are at most as many as CPUs.

Messages in both directions are a header of two lengths, a JSON object and data (`decoder_worker.send`). A request has
the file. The answers are the "seconds" that the image may take, once its size is known, and then its "size" followed by
the pixels, or an "error", or the "memory" that was not enough. The socket has a deadline, so that no answer is an error
as well.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any, BinaryIO

from . import image_limits
from .decoder_worker import receive, receive_bytes, send
from .image_decoding import ImageLoadError, too_costly
from .image_formats import PREFIX_BYTES, application_plugin
from .image_limits import LimitError, cpu_seconds, time_exceeded

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_START_SECONDS = 60.0
# The deadline of an answer, by the clock: a busy machine may give the process a fraction of a CPU.
_CLOCK_PER_CPU_SECOND = 6.0
_CLOCK_ALLOWANCE = 20.0  # seconds
_END_SECONDS = 30.0  # from the end of the connection to that of the process, which may be writing a core dump
_PROGRAM = """
import sys, types
sys.path[:] = sys.argv[2:]
package = types.ModuleType("share4v_images")
package.__path__ = [sys.argv[1]]
sys.modules["share4v_images"] = package
from share4v_images.decoder_worker import main
main()
"""


def decode_elsewhere(file: BinaryIO, name: str, limit: int | None) -> PILImage:
    """Decode an image file in another process; arguments, result and errors are those of `image_decoding.decode`.

    Raises:
        ImageLoadError: it cannot be decoded, exceeds a limit, or its decoder crashed.
        MemoryError: there is not enough memory here for the pixels.
    """
    from PIL import Image, ImageFile

    try:
        if file.seek(0, os.SEEK_END) > image_limits.MAX_IMAGE_BYTES:
            raise image_limits.too_many_bytes(file.tell())
        file.seek(0)
        data = file.read()
        plugin = application_plugin(data[:PREFIX_BYTES])
        request = {
            "name": name,
            "limit": limit,
            "seconds": image_limits.MAX_CPU_SECONDS,
            "memory": image_limits.MEMORY_BYTES,
            "memory_per_pixel": image_limits.MEMORY_BYTES_PER_PIXEL,
            "plugin": None if plugin is None else plugin[1],
            "pillow_pixels": Image.MAX_IMAGE_PIXELS,
            "load_truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
        }
        return _processes().decode(request, data)
    except LimitError as error:
        raise ImageLoadError(too_costly(name, error)) from error
    except _InputError as error:
        raise ImageLoadError(str(error)) from error
    except DecoderError as error:
        raise ImageLoadError(f"{name}: {error}") from error


class DecoderError(Exception):
    """The process that decodes could not be started or crashed; the message says what to do."""


class _Processes:
    """The processes that decode images for this one."""

    def __init__(self) -> None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._slots = BoundedSemaphore(count)
        self._idle: list[_Process] = []
        self._lock = Lock()

    def decode(self, request: dict[str, Any], data: bytes) -> PILImage:
        """Decode one image in the next process that is idle."""
        with self._slots:
            process = self._take()
            try:
                image = process.decode(request, data)
            except _InputError:
                self._return(process)
                raise
            except BaseException:  # also Ctrl-C: nobody will read its answer
                process.end()
                raise
            self._return(process)
            return image

    def close(self) -> None:
        """End all processes that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def _take(self) -> _Process:
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return _Process()
            if process.is_running:
                return process
            process.end()

    def _return(self, process: _Process) -> None:
        with self._lock:
            self._idle.append(process)


class _InputError(Exception):
    """The process found a fault in the image, and can decode the next one; the message is that of an ImageLoadError."""


class _Process:
    """One process, which decodes one image at a time.

    Raises:
        DecoderError: it does not start.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        paths = [path for path in sys.path if Path(path).is_absolute()]
        command = [sys.executable, "-IS", "-c", _PROGRAM, str(Path(__file__).parent), *paths]
        # One thread for OpenBLAS, which is not used, and few arenas: both count as memory on machines with many CPUs.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        try:
            # In a session of its own, because Ctrl-C is for the process that decides what happens to its images.
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._socket.close()
            raise DecoderError(_not_started(str(error))) from error
        finally:
            theirs.close()
        self._await_start()

    @property
    def is_running(self) -> bool:
        """Whether the process exists."""
        return self._process.poll() is None

    def decode(self, request: dict[str, Any], data: bytes) -> PILImage:
        """Send a request and return the decoded image."""
        usual: float = request["seconds"]
        seconds, began = cpu_seconds(0, usual), time.monotonic()
        try:
            self._set_deadline(began, seconds)
            send(self._socket, request, data)
            while True:
                answer, _ = receive(self._socket)
                if "seconds" not in answer:
                    break
                seconds = answer["seconds"]
                self._set_deadline(began, seconds)
            return self._result(answer, request)
        except TimeoutError as error:
            raise LimitError(f"decoding took more than {_clock_seconds(seconds):.0f} s") from error
        except (EOFError, OSError) as error:
            raise self._death(seconds) from error

    def end(self) -> None:
        """End the process, whatever it does, and release what belongs to it."""
        self._socket.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _await_start(self) -> None:
        self._socket.settimeout(_START_SECONDS)
        try:
            receive(self._socket)
        except (OSError, EOFError) as error:
            self._process.kill()
            _, output = self._process.communicate()
            lines = output.decode("utf-8", "replace").strip().splitlines()
            self._socket.close()
            raise DecoderError(_not_started(lines[-1] if lines else str(error) or "it ended")) from error
        except BaseException:
            self.end()
            raise
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _set_deadline(self, began: float, seconds: float) -> None:
        """Let the socket wait until the time for this many CPU seconds is over."""
        self._socket.settimeout(max(began + _clock_seconds(seconds) - time.monotonic(), 0.1))

    def _result(self, answer: dict[str, Any], request: dict[str, Any]) -> PILImage:
        from PIL import Image

        if "error" in answer:
            raise _InputError(answer["error"])
        if "memory" in answer:
            raise LimitError(f"decoding needs more than {answer['memory'] / 2**30:.1f} GiB of memory")
        width, height = answer["size"]
        pixels = receive_bytes(self._socket, width * height * 3)
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)

    def _death(self, seconds: float) -> Exception:
        """Return the error for a process that ended without an answer."""
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            status = 0
        if -status == getattr(signal, "SIGPROF", None):
            return time_exceeded(seconds)
        reason = f"status {status}"
        with contextlib.suppress(ValueError):
            reason = signal.Signals(-status).name
        return DecoderError(
            f"its decoder ended without a result ({reason}): the file is damaged, or memory is short; save the image "
            "again as a JPEG or PNG, or leave it out"
        )


_by_process_id: dict[int, _Processes] = {}  # by that of the process which uses them: a forked one needs its own


def _processes() -> _Processes:
    found = _by_process_id.get(os.getpid())
    if found is None:
        found = _by_process_id.setdefault(os.getpid(), _Processes())
        atexit.register(_close, os.getpid())
    return found


def _close(process_id: int) -> None:
    if process_id == os.getpid():
        _by_process_id[process_id].close()


def _clock_seconds(seconds: float) -> float:
    return _CLOCK_ALLOWANCE + _CLOCK_PER_CPU_SECOND * seconds


def _not_started(reason: str) -> str:
    return (
        f"the process that decodes this format could not be started ({reason}); check that {sys.executable} can be run "
        "and that the limit of processes allows it, or convert the image to JPEG or PNG"
    )
