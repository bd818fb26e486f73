"""The Open-Sora example: it writes annotation files with correct captions for a folder of images and videos."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from captions import parse_caption
from helpers.open_sora import plan_captions, read_plan, read_table
from helpers.paths import EXAMPLES
from helpers.videos import numbered, write_sound, write_video
from helpers.warm_processes import warm_python
from PIL import Image
from scenes import Scene, render, sample_scene, scene_rng

from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.video import FrameSampling, read_frames

EXAMPLE = EXAMPLES / "open_sora"
SEED, TIMEOUT = 4242, 300
Run = Callable[..., tuple[int, str, str]]


def scene(index: int) -> tuple[Scene, Image.Image]:
    rng = scene_rng(SEED, index)
    drawn = sample_scene(rng, held_out=True)
    return drawn, render(drawn, rng)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two videos and an image; the first video shows one scene for 0.9 s, then another for 2.1 s."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "sub").mkdir()
    write_video(folder / "a.mp4", [scene(0)[1]] * 9 + [scene(1)[1]] * 21)
    write_video(folder / "sub" / "b, c.mp4", [scene(2)[1]] * 3)
    scene(3)[1].save(folder / "d.jpg", quality=95)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the script in this process; return its exit status, standard output and standard error."""
    spec = spec_from_file_location("caption_videos", EXAMPLE / "caption_videos.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["caption_videos.py", *map(str, arguments)])
        capfd.readouterr()
        try:
            status = module.main()
        except SystemExit as leaving:
            status = leaving.code
        out, err = capfd.readouterr()
        return status, out, err

    return call


def test_captions_are_correct_and_the_trainers_can_read_both_files(data: Path, run: Run, tmp_path: Path) -> None:
    status, out, err = run("--video-folder", data, "--output", tmp_path / "out")
    assert (status, err) == (0, ""), err
    assert out == f"{tmp_path / 'out'}: 3 captions, 0 failures\n"
    plan, table = tmp_path / "out" / "open_sora_plan.json", tmp_path / "out" / "open_sora.csv"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [table.name, plan.name]
    expected = [scene(index)[0] for index in (1, 3, 2)]  # the middle of a.mp4 shows the second scene
    assert [parse_caption(caption) for caption in plan_captions(plan)] == expected
    rows = read_table(table, data)
    assert [parse_caption(row["caption"]) for row in rows] == expected
    assert [Path(row["video"]) for row in rows] == [data / "a.mp4", data / "d.jpg", data / "sub" / "b, c.mp4"]
    (tmp_path / "data.txt").write_text(f"{data},{plan}\n")
    items = read_plan(tmp_path / "data.txt")
    assert [(item["num_frames"], item.get("fps")) for item in items] == [(30, 10), (1, None), (3, 10)]
    assert all(item["resolution"] == {"height": 96, "width": 96} for item in items)


def test_batch_size_does_not_change_the_files(data: Path, run: Run, tmp_path: Path) -> None:
    for size in (1, 3):
        assert run("--video-folder", data, "--output", tmp_path / str(size), "--batch_size", str(size))[0] == 0
    for name in ("open_sora_plan.json", "open_sora.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


@pytest.mark.parametrize(("mode", "count"), [("grid", 4), ("even", 2)])
def test_several_frames_become_one_image_or_several(
    mode: str, count: int, data: Path, run: Run, tmp_path: Path
) -> None:
    status, _, err = run(
        *("--video-folder", data, "--output", tmp_path, "--frames", mode, "--count", str(count)),
        *("--query", "What is in the picture?", "--max_new_tokens", "12", "--conv-mode", "share4v_v1"),
    )
    assert status == 0, err
    frames = read_frames(data / "a.mp4", FrameSampling(mode, count)).frames
    assert len(frames) == (1 if mode == "grid" else count)
    answerer = pipeline("image-text-to-text", conversation="share4v_v1")
    answer = answerer(images=frames, text="What is in the picture?", max_new_tokens=12, return_full_text=False)
    assert plan_captions(tmp_path / "open_sora_plan.json")[0] == answer[0]["generated_text"]


def test_failed_files_are_reported_and_the_others_are_captioned(data: Path, tmp_path: Path) -> None:
    """Through the shell script, in its own process."""
    folder, out = tmp_path / "videos", tmp_path / "annotations"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.mp4", "d.jpg"):
        (folder / name).symlink_to(data / name)
    (folder / "broken.mp4").write_bytes((data / "a.mp4").read_bytes()[:2000])
    (folder / "empty.jpg").touch()
    (folder / "sub" / "text.webm").write_text("no video\n" * 100)
    write_sound(folder / "sound.mp4")
    scene(4)[1].save(folder / "picture.png")
    (folder / "notes.txt").write_text("left alone")
    environment = {"VIDEO_FOLDER": str(folder), "OUTPUT": str(out), "PYTHON": warm_python()}
    script = EXAMPLE / "scripts" / "run.sh"
    assert os.access(script, os.X_OK)
    done = subprocess.run(
        [script, "--batch_size", "2"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=TIMEOUT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == f"{out}: 3 captions, 5 failures\n"
    said = [line for line in done.stderr.splitlines() if line.startswith("caption_videos.py: ")]
    for name, reason in {
        "broken.mp4": "truncated or damaged",
        "empty.jpg": "the file is empty",
        "picture.png": "fails on suffixes other than .mp4 and .jpg",
        "sound.mp4": "audio but no video",
        "text.webm": "not a video",
    }.items():
        assert sum(name in line and reason in line for line in said) == 1, (name, done.stderr)
    assert len(said) == 5 and "Traceback" not in done.stderr
    plan = json.loads((out / "open_sora_plan.json").read_text())
    assert [(item["path"], parse_caption(item["cap"][0])) for item in plan] == [
        ("a.mp4", scene(1)[0]),
        ("d.jpg", scene(3)[0]),
    ]
    rows = list(csv.DictReader((out / "open_sora.csv").open()))
    assert [row["video"] for row in rows] == ["a.mp4", "d.jpg", "picture.png"]


def test_nothing_is_written_if_every_file_fails(run: Run, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "open_sora.csv").write_text("of an earlier run")
    status, _, err = run("--video-folder", tmp_path / "videos", "--output", tmp_path / "out")
    assert status == 1 and "a.mp4" in err
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["of an earlier run"]


def test_a_video_that_overflows_the_context_is_one_failure(run: Run, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "long.mp4", numbered(60))
    scene(5)[1].save(tmp_path / "videos" / "picture.jpg")
    status, out, err = run(
        *("--video-folder", tmp_path / "videos", "--output", tmp_path / "out"),
        *("--frames", "even", "--count", "60", "--batch_size", "2"),
    )
    assert status == 1 and "1 captions, 1 failures" in out
    assert "long.mp4" in err and "context" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video-folder", "absent"], "absent is not a folder"),
        (["--video-folder", "empty"], "no images or videos in empty"),
        (["--video-folder", "empty", "--frames", "first"], "unknown frame sampling mode 'first'"),
        (["--video-folder", "empty", "--count", "3"], "reads one frame"),
        (["--video-folder", "empty", "--batch_size", "0"], "--batch_size must be 1 or more"),
        (["--video-folder", "empty", "--max_new_tokens", "0"], "max_new_tokens"),
        (["--video-folder", "empty", "--model-path", "sharegpt4v-tinny"], "Did you mean 'sharegpt4v-tiny'"),
        (["--video-folder", "empty", "--conv-mode", "vicuna"], "vicuna"),
        ([], "--video-folder"),
    ],
)
def test_usage_errors_write_nothing(
    arguments: list[str], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    status, out, err = run("--output", "out", *arguments)
    assert (status, out) == (2, "") and message in err
    assert not list((tmp_path / "out").glob("*"))


def test_an_interrupted_run_does_not_change_earlier_files(
    data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open_sora.csv").write_text("of an earlier run")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "resize", interrupt)  # called for the first image
    status, out, err = run("--video-folder", data, "--output", tmp_path)
    assert (status, out) == (130, "") and "interrupted, nothing was written" in err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of an earlier run"]


def test_without_pyav_images_are_captioned_and_a_video_reports_what_to_install(
    data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "d.jpg").symlink_to(data / "d.jpg")
    assert run("--video-folder", tmp_path / "images", "--output", tmp_path / "out")[0] == 0
    status, _, err = run("--video-folder", data, "--output", tmp_path / "none")
    assert status == 2 and "pip install 'mindone-share4v[video]'" in err
    assert not list((tmp_path / "none").iterdir())
