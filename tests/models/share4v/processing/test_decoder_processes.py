"""Images decoded in a process of their own: the same pixels, in threads and forks; nothing is left running."""

from __future__ import annotations

import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (registers JPEG XL in Pillow)
import pytest
from helpers.limits import run_limited
from PIL import Image

from mindone.models.share4v.processing import decoder_processes, image_limits
from mindone.models.share4v.processing.image_decoding import decode
from mindone.models.share4v.processing.image_formats import FORMATS
from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

pillow_heif.register_heif_opener()
ISOLATED = [name for name, row in FORMATS.items() if row.is_isolated]
# A process that gets ready and then does to itself what is given.
PROGRAM = """
import os, signal, socket, struct, sys, time
connection = socket.socket(fileno=os.dup(0))
connection.sendall(struct.pack("<QQ", 2, 0) + b"{{}}")
connection.recv(16)
{}
"""


def encoded(form: str, mode: str = "RGB", size: tuple[int, int] = (61, 43), **options: object) -> bytes:
    noise = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise, "RGBA").convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def here(data: bytes) -> Image.Image:
    return decode(io.BytesIO(data), "here", None)


def children() -> set[int]:
    """Process ids of this process's decoders."""
    idle = decoder_processes._processes()._idle
    return {process._process.pid for process in idle}


def is_gone(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


@pytest.fixture(autouse=True)
def own_processes() -> object:
    """Each test begins and ends without a process."""
    decoder_processes._processes().close()
    yield
    decoder_processes._processes().close()


def test_the_formats_are_those_that_a_c_library_decodes_at_once() -> None:
    assert ISOLATED == ["WEBP", "TIFF", "JPEG2000", "AVIF", "HEIF", "JXL"]


@pytest.mark.parametrize("form", ISOLATED)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_the_pixels_are_those_of_decoding_here(form: str, mode: str) -> None:
    data = encoded(form, mode)
    image = load_image(data)
    assert (image.mode, image.size) == ("RGB", (61, 43))
    assert image.tobytes() == here(data).tobytes()


@pytest.mark.parametrize("form", ["WEBP", "TIFF", "AVIF"])
def test_the_orientation_is_applied(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(form, exif=exif)
    image = load_image(data)
    assert image.size == (43, 61) and image.tobytes() == here(data).tobytes()


def test_an_image_of_several_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("TIFF", size=(2200, 2000))  # more pixels than are sent at a time
    assert load_image(data).tobytes() == here(data).tobytes()


def test_errors_are_those_of_decoding_here(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    for data, limit in ((encoded("WEBP")[:200], None), (encoded("WEBP"), 60), (b"RIFF\x10\0\0\0WEBPVP8 ", None)):
        path.write_bytes(data)
        with pytest.raises(ImageLoadError) as elsewhere:
            load_image(path, limit)
        with pytest.raises(ImageLoadError) as expected:
            decode(io.BytesIO(data), str(path), limit or image_limits.max_pixels())
        assert str(elsewhere.value) == str(expected.value)
    assert len(children()) == 1  # a bad image does not cost the process


def test_a_process_is_used_again_and_threads_have_one_each() -> None:
    data = {form: encoded(form) for form in ("WEBP", "TIFF", "JPEG2000")}
    expected = {form: here(one).tobytes() for form, one in data.items()}
    load_image(data["WEBP"])
    first = children()
    load_image(data["TIFF"])
    assert len(first) == 1 and children() == first
    with ThreadPoolExecutor(8) as pool:
        jobs = [(form, pool.submit(load_image, one)) for form, one in data.items() for _ in range(8)]
        assert all(job.result().tobytes() == expected[form] for form, job in jobs)
    assert first <= children() and len(children()) <= len(os.sched_getaffinity(0))


def test_jpeg_and_png_start_no_process() -> None:
    for form in ("JPEG", "PNG", "GIF", "BMP", "PPM", "TGA", "PCX", "ICO"):
        load_image(encoded(form))
    with pytest.raises(ImageLoadError, match="not an image format"):
        load_image(b"no picture")
    assert not children()


def test_settings_of_pillow_in_this_process_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageLoadError, match=r"61 x 43 pixels are more than the limit of 2,000"):
        load_image(encoded("WEBP"))
    data = encoded("JPEG2000")[:-300]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageLoadError, match="truncated"):
        load_image(data)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert load_image(data).size == (61, 43)


def test_a_process_that_ended_meanwhile_is_replaced() -> None:
    load_image(encoded("WEBP"))
    (first,) = children()
    os.kill(first, 9)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert load_image(encoded("WEBP")).size == (61, 43)
    assert children() != {first} and is_gone(first)


@pytest.mark.parametrize(
    ("what", "allowance", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 600, r"its decoder ended without a result \(SIGSEGV\): .*JPEG or PNG"),
        ("sys.exit(3)", 600, r"its decoder ended without a result \(status 3\)"),
        (
            "os.close(0); connection.close(); time.sleep(1.5); os.kill(os.getpid(), signal.SIGPROF)",  # a busy machine
            600,
            "too costly to decode: decoding took more than [0-9]+ s of CPU time",
        ),
        ("time.sleep(600)", 0.1, "too costly to decode: decoding took more than 0 s"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", 0.1, "too costly to decode: decoding took more than 0 s"),
    ],
)
def test_a_decoder_that_crashes_or_hangs_fails_its_image_alone(
    monkeypatch: pytest.MonkeyPatch, what: str, allowance: float, message: str
) -> None:
    started = []
    with monkeypatch.context() as patched:
        patched.setattr(decoder_processes, "_PROGRAM", PROGRAM.format(what))
        patched.setattr(decoder_processes, "_CLOCK_ALLOWANCE", allowance)
        patched.setattr(decoder_processes, "_CLOCK_PER_CPU_SECOND", 0.0)
        process = decoder_processes._Process()
        started.append(process._process.pid)
        decoder_processes._processes()._return(process)
        with pytest.raises(ImageLoadError, match=message):
            load_image(encoded("WEBP"))
        assert is_gone(started[0]) and not children()
    assert load_image(encoded("WEBP")).size == (61, 43)


def test_a_process_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_processes, "_PROGRAM", "raise SystemExit('no such library')")
    with pytest.raises(ImageLoadError, match=r"could not be started \(no such library\); check that"):
        load_image(encoded("WEBP"))
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(ImageLoadError, match=r"could not be started \(.*No such file.*check that /nonexistent/python"):
        load_image(encoded("WEBP"))


def test_a_forked_child_has_its_own_processes() -> None:
    load_image(encoded("WEBP"))
    mine = children()
    child = os.fork()
    if child == 0:
        try:
            load_image(encoded("TIFF"))
            os._exit(0 if len(children()) == 1 and not children() & mine else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert load_image(encoded("WEBP")).size == (61, 43) and children() == mine


def test_ctrl_c_does_not_reach_a_decoder() -> None:
    load_image(encoded("WEBP"))
    (process,) = children()
    assert os.getsid(process) != os.getsid(0)


def test_nothing_is_left_running_however_the_program_ends(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(encoded("WEBP"))
    code = """
from mindone.models.share4v.processing import decoder_processes
from mindone.models.share4v.processing.image_loading import load_image
load_image(sys.argv[1])
(process,) = decoder_processes._processes()._idle
report(lambda: process._process.pid)
"""
    kind, text = run_limited(code, str(tmp_path / "a.webp"))  # ends with os._exit, so without handlers
    assert kind == "value", text
    deadline = time.monotonic() + 300
    while not is_gone(int(text)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
