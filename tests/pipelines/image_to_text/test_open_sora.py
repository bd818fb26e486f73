"""Annotation files: the trainers read them correctly, and they are written completely or not at all."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from helpers.open_sora import fetch, plan_captions, read_plan, read_table
from helpers.videos import numbered, read_number, write_video
from PIL import Image

from mindone.pipelines.image_to_text.media import Media, find_media, read_media
from mindone.pipelines.image_to_text.open_sora import (
    Annotation,
    AnnotationError,
    Write,
    open_sora_plan_writer,
    open_sora_writer,
)
from mindone.pipelines.image_to_text.video import FrameSampling, VideoLoadError

CAPTIONS = (
    "A ball rolls.",
    'A sign says "Stop, now", in red.',
    "Two lines:\nthe second; it's here.",
    "=SUM(1;2)\tand a tab, \\ and \\n",
    "一只猫坐在窗台上。 ☺ \U0001f600",
    "-",
)
Open = Callable[[Path], AbstractContextManager[Write]]


def table(file: Path) -> AbstractContextManager[Write]:
    return open_sora_writer(file, file.parent / "videos")


WRITERS: dict[str, Open] = {"a.json": open_sora_plan_writer, "a.csv": table}


@pytest.fixture(params=WRITERS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Open]:
    """The file of each format, in a folder that does not exist yet, and its writer."""
    return tmp_path / "out" / request.param, WRITERS[request.param]


def clip(**changes: object) -> Annotation:
    return Annotation(**{"path": "a/b.mp4", "captions": ["x"], "width": 8, "height": 4, "fps": 24.0, **changes})


def write_all(folder: Path, annotations: list[Annotation]) -> tuple[Path, Path]:
    plan, rows = folder / "plan.json", folder / "rows.csv"
    with open_sora_plan_writer(plan) as to_plan, open_sora_writer(rows, folder / "videos") as to_rows:
        for annotation in annotations:
            to_plan(annotation)
            to_rows(annotation)
    return plan, rows


def test_trainers_read_the_annotations(tmp_path: Path) -> None:
    """From videos to the pixels and captions that both loaders return."""
    videos = tmp_path / "videos"
    (videos / "sub").mkdir(parents=True)
    write_video(videos / "clip.mp4", numbered(49), 25)
    write_video(videos / "sub" / "uneven, short.mp4", numbered(4, (64, 96)), times=(0, 40, 80, 500, 1000))
    numbered(3)[2].save(videos / "photo.jpg", quality=95)
    annotations = []
    for path in find_media(videos):
        media = read_media(path)
        place = path.relative_to(videos).as_posix()
        annotations.append(Annotation(place, [f"{place}."], media.width, media.height, media.num_frames, media.fps))
    plan, rows = write_all(tmp_path, annotations)
    (tmp_path / "data.txt").write_text(f"{videos},{plan}\n")

    items = read_plan(tmp_path / "data.txt")
    assert [item["path"] for item in items] == [str(videos / one.path) for one in annotations]
    assert all(Path(item["path"]).is_file() for item in items)
    assert [item["num_frames"] for item in items] == [49, 1, 4]
    assert [item["resolution"] for item in items] == [
        {"height": height, "width": width} for width, height in ((96, 64), (96, 64), (64, 96))
    ]
    assert len(items[0]["sample_frame_index"]) == pytest.approx(49 * 24 / 25, abs=1)
    assert plan_captions(plan) == [f"{one.path}." for one in annotations]

    read = read_table(rows, videos)
    assert [row["text_emb"] for row in read] == [
        "embeddings/clip.npz", "embeddings/photo.npz", "embeddings/sub/uneven, short.npz",
    ]  # fmt: skip
    long, short = fetch(read[0], 49), fetch(read[2], 4)  # its reader cannot read images
    assert (long["caption"], short["caption"]) == ("clip.mp4.", "sub/uneven, short.mp4.")
    assert [read_number(Image.fromarray(frame)) for frame in long["video"]] == list(range(49))
    assert short["video"].shape == (4, 96, 64, 3)
    assert long["fps"] == float(read[0]["fps"]) == 25


def test_columns_of_mindone_preparation(tmp_path: Path) -> None:
    """mindone's tools/t2v_curation reads numbers where it expects them, and empty fields for missing values."""
    photo = Annotation("p.png", ["A photo."], 40, 30)
    with open_sora_writer(tmp_path / "rows.csv", tmp_path / "videos") as write:
        write(clip(num_frames=7, fps=12.5))
        write(photo)
    first, second = csv.DictReader((tmp_path / "rows.csv").open())
    assert first["path"] == str(tmp_path / "videos" / "a" / "b.mp4") and first["text"] == first["caption"] == "x"
    numbers = ("num_frames", "fps", "height", "width", "aspect_ratio", "resolution")
    assert [float(first[name]) for name in numbers] == [7, 12.5, 4, 8, 0.5, 32]
    assert [second[name] for name in numbers] == ["1", "", "30", "40", "0.75", "1200"]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_are_read_back_unchanged(caption: str, tmp_path: Path) -> None:
    plan, rows = write_all(tmp_path, [clip(captions=[caption]), clip(captions=["the next"])])
    assert plan_captions(plan) == [caption, "the next"]
    assert [row["caption"] for row in read_table(rows, tmp_path)] == [caption, "the next"]
    assert plan.read_bytes().isascii()


def test_several_captions_are_a_list_or_rows(tmp_path: Path) -> None:
    plan, rows = write_all(tmp_path, [clip(captions=list(CAPTIONS))])
    assert [item["cap"] for item in json.loads(plan.read_text())] == [list(CAPTIONS)]
    assert [row["caption"] for row in read_table(rows, tmp_path)] == list(CAPTIONS)


def test_nul_characters_are_removed(tmp_path: Path) -> None:
    plan, rows = write_all(tmp_path, [clip(captions=["a\0b "])])
    assert plan_captions(plan) == ["ab"] == [row["caption"] for row in read_table(rows, tmp_path)]


def test_trainers_compute_the_right_number_of_frames(tmp_path: Path) -> None:
    """With duration = num_frames / fps, int(fps * duration) is one too small for many videos."""
    generator, annotations, careless = random.Random(5), [], 0
    for _ in range(4000):
        fps = generator.choice((generator.uniform(0.1, 240), 30000 / 1001, 24000 / 1001, 25.0, 1 / 3))
        annotations.append(clip(num_frames=generator.randint(1, 400), fps=fps))
        careless += int(fps * (annotations[-1].num_frames / fps)) != annotations[-1].num_frames
    plan, _ = write_all(tmp_path, annotations)
    (tmp_path / "data.txt").write_text(f"videos,{plan}\n")
    assert [item["num_frames"] for item in read_plan(tmp_path / "data.txt", 1e9)] == [
        one.num_frames for one in annotations
    ]
    assert careless > 100


@pytest.mark.parametrize("path", ["a.png", "a.MP4", "a.jpeg", "a.webm", "a"])
def test_annotations_that_open_sora_plan_cannot_load_are_refused(path: str, tmp_path: Path) -> None:
    with open_sora_plan_writer(tmp_path / "plan.json") as write:
        write(clip(path="1.mp4"))
        with pytest.raises(AnnotationError, match=r"fails on suffixes other than \.mp4 and \.jpg"):
            write(clip(path=path))
        with pytest.raises(AnnotationError, match="skips videos without fps"):
            write(clip(fps=None))
        write(clip(path="2.jpg", fps=None))
    assert [item["path"] for item in json.loads((tmp_path / "plan.json").read_text())] == ["1.mp4", "2.jpg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/a.mp4"}, "not a relative path inside the data folder"),
        ({"path": "../a.mp4"}, "not a relative path inside the data folder"),
        ({"path": ""}, "not a relative path inside the data folder"),
        ({"path": "a\udcff.mp4"}, "not valid UTF-8"),
        ({"captions": []}, "expected one or more texts that are not empty"),
        ({"captions": "a text"}, "expected one or more texts that are not empty"),
        ({"captions": ["a", " \n\0"]}, "expected one or more texts that are not empty"),
        ({"num_frames": 0}, "0 frames of 8 x 4"),
        ({"width": 0}, "1 frames of 0 x 4"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": float("inf")}, "fps is inf"),
    ],
)
def test_invalid_annotations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        clip(**changes)


def test_file_appears_when_it_is_complete(target: tuple[Path, Open]) -> None:
    file, writer = target
    with writer(file) as write:
        write(clip())
        assert not file.exists()
    assert file.is_file() and [path.name for path in file.parent.iterdir()] == [file.name]


def test_file_is_unchanged_after_an_error(target: tuple[Path, Open]) -> None:
    file, writer = target
    with writer(file) as write:
        write(clip())
    before = file.read_bytes()
    with pytest.raises(KeyboardInterrupt), writer(file) as write:
        for _ in range(10_000):
            write(clip(captions=["another"]))
        raise KeyboardInterrupt
    assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [file.name]
    with writer(file) as write:
        write(clip(captions=["another"]))
    assert b"another" in file.read_bytes()


def test_file_without_annotations(target: tuple[Path, Open]) -> None:
    file, writer = target
    with writer(file):
        pass
    rows = json.loads(file.read_text()) if file.suffix == ".json" else list(csv.DictReader(file.open()))
    assert rows == []


def test_annotations_are_written_one_by_one(target: tuple[Path, Open]) -> None:
    """So memory does not grow with the number of annotations."""
    file, writer = target
    with writer(file) as write:
        for number in range(2000):
            write(clip(path=f"{number}.mp4", captions=["word " * 80]))
        (unfinished,) = file.parent.glob(".writing-*/*")
        written = unfinished.stat().st_size
    assert file.stat().st_size - written < 20_000 < 800_000 < written


def test_read_media_reads_images_and_videos(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    write_video(tmp_path / "b.MP4", numbered(20))
    image, video = (read_media(path) for path in find_media(tmp_path))
    assert image == Media(image.frames, 30, 20) and image.frames[0].size == (30, 20)
    assert (video.width, video.height, video.num_frames, video.fps, video.duration) == (96, 64, 20, 10, 2)
    assert [read_number(frame) for frame in read_media(tmp_path / "b.MP4", FrameSampling("even", 2)).frames] == [5, 15]
    (tmp_path / "c.mp4").write_bytes(b"")
    with pytest.raises(VideoLoadError, match=r"c\.mp4"):
        read_media(tmp_path / "c.mp4")


def test_find_media_is_sorted(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.mp4", "a/y.png", "a.txt", ".hidden/x.jpg", ".x.jpg", "c/d/e.webm", "z.jpg.part"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = [path.relative_to(tmp_path).as_posix() for path in find_media(tmp_path)]
    assert found == ["a/y.png", "a/z.mp4", "b.jpg", "c/d/e.webm"]
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        find_media(tmp_path / "b.jpg")


def test_find_media_reports_folders_that_disappear(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/2.jpg", "c/3.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    errors: list[OSError] = []
    found = find_media(tmp_path, errors.append)
    assert next(found).name == "1.jpg"
    (tmp_path / "b" / "2.jpg").unlink()
    (tmp_path / "b").rmdir()
    assert [path.name for path in found] == ["3.jpg"]
    assert [Path(error.filename).name for error in errors] == ["b"]


def test_read_media_keeps_the_pixels_of_an_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_media(tmp_path / "a.png").frames[0]), pixels)
