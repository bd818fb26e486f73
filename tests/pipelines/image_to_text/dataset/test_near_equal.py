"""Near-equal images: copies in another format and size are one group, other scenes are not; `near_equal` in jobs."""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers.echo_executor import EchoExecutor
from helpers.paths import TINY_SCRIPTS
from PIL import Image
from skimage import data as photographs

from mindone.pipelines.image_to_text import caption_dataset
from mindone.pipelines.image_to_text.dataset import near_equal as near_equal_module
from mindone.pipelines.image_to_text.dataset.audit.image_hash import image_hash, near_equal, read_hash
from mindone.pipelines.image_to_text.dataset.audit.near_images import NearImages
from mindone.pipelines.image_to_text.dataset.executors.base import EXECUTORS
from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings
from mindone.pipelines.image_to_text.dataset.readers import list_inputs
from mindone.pipelines.image_to_text.dataset.report.summary import summarize
from mindone.pipelines.image_to_text.dataset.state.records import Record
from mindone.pipelines.image_to_text.dataset.state.tasks import Task

SIZE = 192  # of a scene; README of benchmarks/ has figures for smaller ones, where JPEG's errors are larger


@pytest.fixture(scope="module")
def scenes() -> Iterator[ModuleType]:
    sys.path.insert(0, str(TINY_SCRIPTS))
    try:
        yield importlib.import_module("scenes")
    finally:
        sys.path.remove(str(TINY_SCRIPTS))
        sys.modules.pop("scenes", None)


def jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


def draw(scenes: ModuleType, scene: Any, seed: int) -> Image.Image:
    image: Image.Image = scenes.render(scene, random.Random(seed), SIZE)
    return image


def changed(scenes: ModuleType, scene: Any) -> list[Any]:
    """The scene with one group of another shape, color, size or number, on the same places."""
    first, *others = scene.groups
    changes: list[dict[str, Any]] = [
        {"shape": next(shape for shape in scenes.SHAPES if shape != first.shape)},
        {"colour": next(name for name in scenes.clear_colours(scene.background) if name != first.colour)},
        {"size": "small" if first.size == "large" else "large"},
        {"count": first.count % 4 + 1},
    ]
    return [replace(scene, groups=(replace(first, **change), *others)) for change in changes]


def clear_scenes(scenes: ModuleType, count: int) -> list[Any]:
    """Different scenes whose first group has another brightness than the background, and is large."""
    found: list[Any] = []
    for number in range(10_000):
        scene = scenes.sample_scene(scenes.scene_rng(5, number))
        first = scene.groups[0]
        if scene.background in ("white", "beige") and first.colour in ("red", "blue", "purple", "green"):
            found.append(replace(scene, groups=(replace(first, size="large"), *scene.groups[1:])))
        if len(found) == count:
            return found
    raise AssertionError("too few scenes")


def test_copies_are_one_group_and_a_scene_with_one_other_shape_is_another(scenes: ModuleType) -> None:
    near, expected = NearImages(), []
    for seed, scene in enumerate(clear_scenes(scenes, 40)):
        image = draw(scenes, scene, seed)
        versions = [draw(scenes, other, seed) for other in changed(scenes, scene)]
        copies = [("copy", image), ("copy", jpeg(image)), ("copy", half(image))]
        for name, variant in (*copies, *((str(number), version) for number, version in enumerate(versions))):
            near.add(image_hash(variant), f"{seed}{name}")
            expected.append(f"{seed} {name}")
    firsts = near.firsts().tolist()
    near.close()
    first_of: dict[str, int] = {}
    for index, name in enumerate(expected):
        first_of.setdefault(name, index)
    assert firsts == [first_of[name] for name in expected]


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_copies_of_photographs(name: str) -> None:
    image = Image.fromarray(getattr(photographs, name)())
    own = read_hash(image_hash(image))
    for copy in (jpeg(image), half(image), image.resize((300, 300)), jpeg(half(image))):
        assert near_equal(own, read_hash(image_hash(copy)))
    assert not near_equal(own, read_hash(image_hash(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))))
    assert not near_equal(own, read_hash(image_hash(image.crop((0, 0, image.width * 9 // 10, image.height)))))


def test_groups_equal_those_of_all_pairs() -> None:
    """Random hashes, a part of which are copies with noise of one; several batches."""
    rng = np.random.default_rng(0)
    values = rng.integers(4, 60, (700, 600)).astype(np.int8)
    for row in range(300, 700):
        values[row] = values[rng.integers(row)] + rng.integers(-1, 2, 600)
    near = NearImages()
    for row, hashed in enumerate(values):
        bits = np.unpackbits(hashed.astype(np.uint8)[:, None], axis=1)[:, -6:]
        near.add(base64.b64encode(np.packbits(bits).tobytes()).decode(), str(row))
    found = near.firsts()
    near.close()
    expected = np.arange(len(values))
    for row in range(len(values)):
        close = np.flatnonzero(np.abs(values[:row] - values[row]).max(axis=1) <= 2) if row else []
        for other in close:
            expected[expected == expected[row]] = min(expected[row], expected[other])
            expected[expected == expected[other]] = expected[row]
    assert found.tolist() == expected.tolist()


def test_a_wrong_hash_is_an_error() -> None:
    for text in ("AAAA", "*"):
        with pytest.raises(ValueError, match="hash of an image"):
            read_hash(text)


class Worker(EchoExecutor):
    """Caption and hash are of the image; ends the process after `records` records, if that is set."""

    records: int | None = None
    asked: ClassVar[Counter[str]] = Counter()

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        done = 0
        pending: list[Task] = []
        for task in tasks:
            pending.append(task)
            if len(pending) == 3:  # finished in another order
                for one in reversed(pending):
                    if done == Worker.records:
                        os.kill(os.getpid(), signal.SIGKILL)
                    done += 1
                    yield self.record(one)
                pending.clear()
        yield from map(self.record, pending)

    def record(self, task: Task) -> Record:
        Worker.asked[task.item.key] += 1
        record = next(super().run([task]))
        if record.error is not None:
            return record
        try:
            hashed = image_hash(Image.open(task.item.path or "").convert("RGB"))
        except OSError as error:
            return replace(record, captions=(), tokens=(), error=type(error).__name__)
        return replace(record, captions=(f"picture of {task.item.key}",), image_hash=hashed, seconds=0.5)


@pytest.fixture
def photos(tmp_path: Path, scenes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four scenes: a PNG, a JPEG and a small copy of each, and other files between them."""
    monkeypatch.setitem(EXECUTORS, "local", f"{__name__}:Worker")
    monkeypatch.setattr(Worker, "asked", Counter())
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, scene in enumerate(clear_scenes(scenes, 4)):
        image = draw(scenes, scene, number)
        image.save(folder / f"a{number}.png")
        image.save(folder / f"b{number}.jpg", quality=60)
        half(image).save(folder / f"c{number}.png")
        draw(scenes, changed(scenes, scene)[0], number).save(folder / f"d{number}.png")
    (folder / "broken.png").write_bytes((folder / "a0.png").read_bytes()[:50])
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_once_captions_the_first_of_a_group(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    summary = caption_dataset(photos, out=out, near_equal="once")
    assert (summary.inputs, summary.captioned, summary.failed) == (17, 16, 1)
    assert summary.tokens == 8 * 3  # those of copies were not generated
    assert sorted(Worker.asked) == [*(f"a{n}" for n in range(4)), "broken", *(f"d{n}" for n in range(4))]
    journal = {row["key"]: row for row in rows(tmp_path / "out.jsonl.share4v" / "journal.jsonl")}
    for number in range(4):
        first = journal[f"a{number}"]
        assert first["captions"] == [f"picture of a{number}"] and not first["notes"]
        for key in (f"b{number}", f"c{number}"):
            assert journal[key]["captions"] == first["captions"]
            assert journal[key]["notes"] == [f"caption of a near-equal image: {first['source']}"]
            assert journal[key]["source"].endswith((f"{key}.jpg", f"{key}.png"))
        assert journal[f"c{number}"]["width"] == SIZE // 2
    assert {row["key"] for row in rows(out)} >= {"a0", "b0", "c0", "d0"}
    assert not (tmp_path / "out.jsonl.share4v" / "image-hashes.jsonl").exists()
    found = summarize(tmp_path / "out.jsonl.share4v").near_images
    assert found is not None and (found.images, found.groups) == (8, 4)


def test_note_captions_all_and_names_the_first(photos: Path, tmp_path: Path) -> None:
    caption_dataset(photos, out=tmp_path / "out.jsonl", near_equal="note")
    journal = {row["key"]: row for row in rows(tmp_path / "out.jsonl.share4v" / "journal.jsonl")}
    assert len(Worker.asked) == 17
    assert journal["c2"]["captions"] == ["picture of c2"]
    assert journal["c2"]["notes"] == [f"near-equal to an earlier image: {journal['a2']['source']}"]
    assert journal["d2"]["notes"] == journal["a2"]["notes"] == []


@pytest.mark.parametrize("mode", ["note", "once"])
def test_a_killed_job_has_the_same_result(
    photos: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    caption_dataset(photos, out=whole, near_equal=mode)
    read = near_equal_module.read_item
    kills = 0
    for hashes, records in [(2, None), (4, None), (None, 0), (None, 2), (3, 1), (None, 3), (None, 1), (None, None)]:
        child = os.fork()
        if not child:
            reads = iter(range(hashes if hashes is not None else 1000))

            def limited_read(item: Any, downloads: Any, reads: Iterator[int] = reads) -> Any:
                if next(reads, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return read(item, downloads)

            monkeypatch.setattr(near_equal_module, "read_item", limited_read)
            monkeypatch.setattr(near_equal_module, "_GROUP", 1)
            monkeypatch.setattr("mindone.pipelines.image_to_text.dataset.job.GROUP_RECORDS", 1)
            Worker.records = records
            try:
                caption_dataset(photos, out=out, near_equal=mode, workers=1)
            finally:
                os._exit(0)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert kills >= 5
    assert out.read_bytes() == whole.read_bytes()
    states = [(path.with_name(path.name + ".share4v") / "journal.jsonl").read_bytes() for path in (whole, out)]
    assert states[0] == states[1]


def test_an_error_of_the_first_is_one_of_all(photos: Path, tmp_path: Path) -> None:
    (photos / "a1.png").rename(photos / "a1-fail.png")
    summary = caption_dataset(photos, out=tmp_path / "out.jsonl", near_equal="once")
    journal = {row["key"]: row for row in rows(tmp_path / "out.jsonl.share4v" / "journal.jsonl")}
    assert summary.failed == 4  # and the broken file
    assert journal["b1"]["error"] == f"the near-equal image {journal['a1-fail']['source']} failed: it cannot be read"


def test_a_new_copy_of_a_captioned_image_gets_its_caption(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    caption_dataset(photos, out=out, near_equal="once")
    Image.open(photos / "a3.png").resize((150, 150)).save(photos / "z.png")
    Worker.asked.clear()
    caption_dataset(photos, out=out, near_equal="once")
    assert set(Worker.asked) <= {"broken"}
    assert rows(out)[-1]["caption"] == "picture of a3"


def test_a_repaired_copy_is_hashed_again_when_failures_are_retried(photos: Path, tmp_path: Path) -> None:
    """The hashes of an interrupted run may be there, in which what failed has none."""
    out = tmp_path / "out.jsonl"
    caption_dataset(photos, out=out, near_equal="once")
    state = tmp_path / "out.jsonl.share4v"
    keys = [row["key"] for row in rows(state / "journal.jsonl")]
    (state / "image-hashes.jsonl").write_text("".join(json.dumps({"key": key}) + "\n" for key in keys))
    (photos / "broken.png").write_bytes((photos / "a0.png").read_bytes())
    caption_dataset(photos, out=out, near_equal="once", retry_failed=True)
    assert {row["key"]: row["caption"] for row in rows(out)}["broken"] == "picture of a0"


def test_hashes_that_a_power_cut_damaged_are_computed_again(photos: Path, tmp_path: Path) -> None:
    items, path = list(list_inputs([str(photos)])), tmp_path / "image-hashes.jsonl"

    def firsts() -> list[int | None]:
        inputs = near_equal_module.NearEqualInputs(
            tmp_path, "once", lambda start: ((item, None) for item in items[start:]), CaptioningSettings()
        )
        with closing(inputs) as near:
            return [near.first(item.number) for item in items]

    whole, content = firsts(), path.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == 17 and whole.count(None) == 9
    for damage in (lines[4][:20], bytes(50), bytes(50) + b"\n", b"[]\n", b'{"key":"a0","new":1}\n', b"{}\n"):
        path.write_bytes(b"".join((*lines[:4], damage, *lines[6:])))
        assert firsts() == whole and path.read_bytes() == content


def test_settings_that_contradict(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="near_equal 'once' and existing 'append' cannot be combined"):
        caption_dataset(photos, out=tmp_path / "out.jsonl", near_equal="once", existing="append")
    for options in ({"prompt": "What is {stem}?"}, {"begin_with": "{stem}: a"}):
        with pytest.raises(ValueError, match=r"near_equal 'once' and the variable \{stem\} in a prompt"):
            caption_dataset(photos, out=tmp_path / "out.jsonl", near_equal="once", **options)
    with pytest.raises(ValueError, match="Did you mean 'once'"):
        caption_dataset(photos, out=tmp_path / "out.jsonl", near_equal="one")
