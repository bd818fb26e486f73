"""Video frames: the right ones at the right times in all containers, and errors for files that are not videos."""

from __future__ import annotations

import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.videos import numbered, read_number, turn, write_sound, write_video
from PIL import Image

from mindone.pipelines.image_to_text.video import (
    FrameSampling,
    Video,
    VideoLoadError,
    VideoNotFoundError,
    VideoReaderMissingError,
    is_video,
    read_frames,
)

COUNT = 60
# File -> encoder, its options. With B-frames and without, with an index and without.
KINDS = {
    "h264.mp4": ("libx264", {}),
    "open-gop.mp4": ("libx264", {"x264-params": "open-gop=1:bframes=3"}),
    "h265.mp4": ("libx265", {"x265-params": "log-level=none"}),
    "h264.mkv": ("libx264", {}),
    "vp8.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9.webm": ("libvpx-vp9", {}),
    "mpeg4.mov": ("mpeg4", {"bf": "2"}),
    "mpeg4.avi": ("mpeg4", {}),
    "h264.avi": ("libx264", {}),
    "h264.ts": ("libx264", {}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
    "h264.flv": ("libx264", {}),
    "wmv2.wmv": ("wmv2", {}),
}
UNEVEN = (0, 40, 80, 120, 2000, 2040, 2080, 3000, 3040, 9000)  # milliseconds; the last value is the end


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video of each format: 60 frames that show their index."""
    folder = tmp_path_factory.mktemp("videos")
    for name, (codec, options) in KINDS.items():
        write_video(folder / name, numbered(COUNT), 25, codec=codec, options=options)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames at 10 fps, with the index at the front of the file, as for streaming."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_video(path, numbered(30), 10, muxer={"movflags": "faststart"})


def numbers(video: Video) -> list[int]:
    return [read_number(frame) for frame in video.frames]


@pytest.mark.parametrize("name", KINDS)
def test_frames_equal_decoding_from_the_start(name: str, videos: Path) -> None:
    with av.open(str(videos / name)) as container:
        expected = [frame.to_image() for frame in container.decode(video=0)]
    video = read_frames(videos / name, FrameSampling("even", COUNT))
    assert len(expected) == COUNT == video.num_frames
    assert numbers(video) == list(range(COUNT))
    assert [frame.tobytes() for frame in video.frames] == [frame.tobytes() for frame in expected]
    for count in (1, 7):  # with gaps between the frames
        picked = read_frames(videos / name, FrameSampling("even", count))
        places = [read_number(frame) for frame in picked.frames]
        assert places == [COUNT * (2 * part + 1) // (2 * count) for part in range(count)]
        assert [frame.tobytes() for frame in picked.frames] == [expected[place].tobytes() for place in places]


@pytest.mark.parametrize("name", KINDS)
def test_metadata_equals_opencv(name: str, videos: Path) -> None:
    """OpenCV is the reader of mindone's Open-Sora trainer."""
    from mindone.data.video_reader import VideoReader

    video = read_frames(videos / name)
    assert (video.num_frames, video.width, video.height) == (COUNT, 96, 64)
    assert video.fps == 25 and video.duration == pytest.approx(COUNT / 25, abs=1e-3)
    assert video.timestamps == [pytest.approx(30 / 25, abs=1e-3)]
    with VideoReader(str(videos / name)) as reader:
        assert (*reader.shape, reader.fps) == (video.width, video.height, video.fps)
        if not name.endswith((".mpg", ".ts", ".flv", ".wmv")):  # OpenCV guesses if the container has no frame count
            assert len(reader) == video.num_frames


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("count", range(1, 12))
def test_variable_frame_rate_is_sampled_by_time(suffix: str, count: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"uneven.{suffix}", numbered(len(UNEVEN) - 1), times=UNEVEN)
    video = read_frames(path, FrameSampling("even", count))
    shown = []
    for part in range(count):
        moment = Fraction(UNEVEN[-1] * (2 * part + 1), 2 * count)
        shown.append(max(place for place, begin in enumerate(UNEVEN[:-1]) if begin <= moment))
    assert numbers(video) == sorted(set(shown))
    assert video.timestamps == [UNEVEN[place] / 1000 for place in sorted(set(shown))]
    assert video.num_frames == 9 and video.duration == 9 and video.fps == pytest.approx(1)


def test_default_is_the_middle_frame(clip: Path) -> None:
    one = read_frames(clip)
    assert numbers(one) == [15] and len(one.frames) == 1
    assert one.frames[0].mode == "RGB"
    assert read_frames(clip, FrameSampling("even", 1)) == one == read_frames(clip.read_bytes())


def test_grid_is_one_image_in_reading_order(clip: Path) -> None:
    video = read_frames(clip, FrameSampling("grid", 5))
    (grid,) = video.frames
    assert (video.width, video.height) == (96, 64) and len(video.timestamps) == 5
    assert grid.size == (96, 42)  # three columns and two rows of cells with a third of the width and height
    cells = [grid.crop((x, y, x + 32, y + 21)) for y in (0, 21) for x in (0, 32, 64)]
    assert [read_number(cell) for cell in cells] == [3, 9, 15, 21, 27, 0]
    assert cells[5].getextrema() == ((0, 0),) * 3


def test_grid_of_one_frame_is_that_frame(clip: Path) -> None:
    assert read_frames(clip, FrameSampling("grid", 1)).frames == read_frames(clip).frames


@pytest.mark.parametrize("mode", ["middle", "even", "grid"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_video_of_one_frame(mode: str, suffix: str, tmp_path: Path) -> None:
    video = read_frames(write_video(tmp_path / f"one.{suffix}", numbered(1)), FrameSampling(mode))
    assert (video.num_frames, video.timestamps, len(video.frames)) == (1, [0.0], 1)
    assert video.fps == 10 and video.duration == pytest.approx(0.1)


def test_frames_are_not_repeated(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mp4", numbered(3))
    assert numbers(read_frames(path, FrameSampling("even", 8))) == [0, 1, 2]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(degrees: int, tmp_path: Path) -> None:
    import cv2

    path = write_video(tmp_path / "phone.mp4", [picture.resize((96, 64)) for picture in numbered(3)[1:]])
    plain = read_frames(path).frames[0]
    video = read_frames(turn(path, degrees))
    assert video.frames[0].size == (video.width, video.height) == ((64, 96) if degrees != 180 else (96, 64))
    assert video.frames[0].tobytes() == plain.rotate(-degrees, expand=True).tobytes()
    reader = cv2.VideoCapture(str(path), apiPreference=cv2.CAP_FFMPEG)
    reader.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    for _ in range(2):
        found, pixels = reader.read()
        assert found
    ours, theirs = np.asarray(video.frames[0], float), pixels[:, :, ::-1].astype(float)
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 3  # two different conversions from YUV to RGB


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "vp9.webm", "mpeg4.mov", "mpeg4.avi", "h264.avi"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7])
def test_truncated_file_is_an_error(name: str, part: float, videos: Path, tmp_path: Path) -> None:
    data = (videos / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * part)])
    with pytest.raises(VideoLoadError, match=f"{name}.*truncated or damaged"):
        read_frames(tmp_path / name)


def test_truncated_file_with_leading_index_is_an_error(clip: Path) -> None:
    data = clip.read_bytes()
    for size in (*range(1, len(data), max(1, len(data) // 40)), len(data) - 1):
        with pytest.raises(VideoLoadError, match="truncated or damaged"):
            read_frames(data[:size])


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def text_file(folder: Path) -> Path:
    return written(folder / "notes.mp4", b"no video at all\n" * 200)


def picture(folder: Path) -> Path:
    path = folder / "picture.mp4"
    Image.new("RGB", (40, 40)).save(path, format="PNG")
    return path


def play_list(folder: Path) -> Path:
    """A playlist, which would make FFmpeg open another file."""
    write_video(folder / "part.ts", numbered(4))
    return written(folder / "list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\npart.ts\n#EXT-X-ENDLIST\n")


def no_stream(folder: Path) -> Path:
    return write_sound(folder / "sound.mp4")


def cover(folder: Path) -> Path:
    return write_sound(folder / "cover.mp4", Image.new("RGB", (32, 32), "red"))


def directory(folder: Path) -> Path:
    (folder / "directory.mp4").mkdir()
    return folder / "directory.mp4"


WRONG = {
    text_file: "not a video",
    picture: "not a video",
    play_list: "not a video",
    no_stream: "audio but no video",
    cover: "audio but no video",
    directory: "not a regular file",
    lambda folder: written(folder / "empty.mp4", b""): "the file is empty",
    lambda folder: written(folder / "noise.mp4", bytes(range(256)) * 64): "not a video",
    lambda folder: folder / "absent.mp4": "there is no such file",
    lambda folder: "": "not a regular file",
    lambda folder: "a\0b.mp4": "cannot be read|no such file",
    lambda folder: b"": "0 bytes: the file is empty",
    lambda folder: 7: "a int is not a video",
}


@pytest.mark.parametrize("make, message", WRONG.items(), ids=lambda item: getattr(item, "__name__", None))
def test_files_that_are_not_videos_are_refused(make: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(VideoLoadError, match=message):
        read_frames(make(tmp_path))


def test_missing_file_is_also_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFoundError) as raised:
        read_frames(tmp_path / "absent.mp4")
    assert isinstance(raised.value, FileNotFoundError) and isinstance(raised.value, ValueError)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_yield_frames_or_video_load_error(name: str, videos: Path) -> None:
    data, generator = (videos / name).read_bytes(), random.Random(name)
    for round_ in range(24):
        damaged = bytearray(data)
        for _ in range(1 + round_ % 12):
            place = generator.randrange(len(damaged))
            damaged[place : place + generator.randrange(1, 40)] = generator.randbytes(generator.randrange(1, 40))
        try:
            video = read_frames(bytes(damaged), FrameSampling("even", 5))
        except VideoLoadError:
            continue
        assert video.frames and all(frame.mode == "RGB" for frame in video.frames)


def test_frames_larger_than_pillow_limit_are_refused(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64 // 2 - 1)
    with pytest.raises(VideoLoadError, match="frames of 96 x 64 pixels exceed the limit of 6,142 pixels"):
        read_frames(clip)


def test_error_without_pyav_says_what_to_install(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoReaderMissingError, match=r"pip install 'mindone-share4v\[video\]'"):
        read_frames(clip)


def test_memory_does_not_grow_with_video_length(tmp_path: Path) -> None:
    """Its 3,000 frames would take 691 MB as images."""
    picture = Image.new("RGB", (320, 240), "red")
    options = {"preset": "ultrafast"}
    short = write_video(tmp_path / "short.mp4", [picture] * 20, options=options)
    long = write_video(tmp_path / "long.mp4", [picture] * 3000, options=options)
    code = (
        "import resource, sys\n"
        "from mindone.pipelines.image_to_text.video import FrameSampling, read_frames\n"
        "sampling, peaks = FrameSampling('even', 8), []\n"
        "for path in sys.argv[1:]:\n"
        "    assert len(read_frames(path, sampling).frames) == 8\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "print(peaks[1] - peaks[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, short, long], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000  # kilobytes


def test_reading_prints_nothing(tmp_path: Path) -> None:
    """FFmpeg's own messages about a damaged file would mix with the output of a command."""
    data = write_video(tmp_path / "a.mp4", numbered(30)).read_bytes()
    half = written(tmp_path / "half.mp4", data[: len(data) // 2])
    code = (
        "import sys\nfrom mindone.pipelines.image_to_text.video import VideoLoadError, read_frames\n"
        "try:\n    read_frames(sys.argv[1])\nexcept VideoLoadError:\n    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, half], capture_output=True, text=True, check=True)
    assert "half.mp4" not in done.stderr and "moov" not in done.stderr and not done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("first",), "unknown frame sampling mode 'first': expected middle, even, grid"),
        (("even", 0), "count is 0"),
        (("grid", 65), "count is 65"),
        (("even", True), "count is True"),
        (("even", 2.0), "count is 2.0"),
        (("middle", 2), "reads one frame, but count is 2"),
    ],
)
def test_invalid_sampling_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameSampling(*arguments)


def test_videos_are_recognized_by_suffix() -> None:
    assert all(is_video(name) for name in (*KINDS, "A.MOV"))
    assert not any(is_video(name) for name in ("a.jpg", "a.gif", "a.txt", "mp4", ".mp4"))
