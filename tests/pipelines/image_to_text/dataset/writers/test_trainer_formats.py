"""Formats that trainers read: imagefolder, sd-scripts' JSON, plain CSV and JSON, read as the trainers read them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from helpers.echo_executor import EchoExecutor
from helpers.jobs import caption_of, listed, png, run, tree, write_tar

from mindone.pipelines.image_to_text import caption_dataset
from mindone.pipelines.image_to_text.dataset.executors.base import EXECUTORS
from mindone.pipelines.image_to_text.dataset.prompts.styles import STYLES
from mindone.pipelines.image_to_text.dataset.readers import Reader
from mindone.pipelines.image_to_text.dataset.review.publishing import publish
from mindone.pipelines.image_to_text.dataset.review.session import Change, ReviewSession
from mindone.pipelines.image_to_text.dataset.state.journal import Journal
from mindone.pipelines.image_to_text.dataset.state.listing import write_listing
from mindone.pipelines.image_to_text.dataset.state.records import Item, Record
from mindone.pipelines.image_to_text.dataset.state.tasks import Task
from mindone.pipelines.image_to_text.dataset.writers import (
    WriterOptions,
    check_outputs,
    find_existing_output,
    format_of,
    open_writer,
    writer_row,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A tree of six images, two of which share a name, and one that fails."""
    folder = tmp_path / "photos"
    (folder / "cats" / "old").mkdir(parents=True)
    for number, name in enumerate(["1.png", "1.jpg", "cats/猫, a.png", 'cats/old/"b".png', "cats/old/c.PNG", "z.png"]):
        (folder / name).write_bytes(png(number))
    (folder / "empty.png").touch()
    return folder


def records_of(folder: Path) -> list[Record]:
    return [caption_of(item, Reader()) for item in listed(folder)]


def write(tmp_path: Path, name: str, out: Path, pairs: list[tuple[Item, Record]]) -> Any:
    state = tmp_path / "state"
    write_listing(state / "inputs.jsonl", [item for item, _ in pairs])
    with Journal(state / "journal.jsonl") as journal:
        for _, record in pairs:
            journal.append(record)
    writer = open_writer(name, str(out), WriterOptions(), state)
    writer.finish()
    return writer


def folder_of(path: Path, tmp_path: Path) -> datasets.Dataset:
    return datasets.load_dataset("imagefolder", data_dir=str(path), split="train", cache_dir=str(tmp_path / "cache"))


def pair(number: int, path: Path | str, captions: tuple[str, ...], **more: Any) -> tuple[Item, Record]:
    key = Path(path).stem
    item = Item(number, f"{key}{number}", str(path), {"kind": "file", "path": str(path)})
    return item, Record(number, item.key, str(path), captions, **more)


def test_an_image_folder_is_a_copy_of_the_tree(tmp_path: Path, photos: Path) -> None:
    [writer] = run(tmp_path / "state", [photos], [("imagefolder", tmp_path / "out")])
    made = [one for one in records_of(photos) if one.captions]
    loaded = folder_of(tmp_path / "out", tmp_path)
    assert loaded["text"] == [one.captions[0] for one in made] and len(made) == 6 and not writer.left_out
    assert loaded["captions"] == [list(one.captions) for one in made]
    for row, record in zip(loaded, made, strict=True):
        with_path = Path(record.source)
        assert row["image"].getpixel((0, 0)) == datasets.Image().decode_example(
            {"path": None, "bytes": with_path.read_bytes()}
        ).getpixel((0, 0))
    assert set(tree(tmp_path / "out")) == {
        *("metadata.jsonl", "1.jpg.jpg", "1.png.png", "cats/猫, a.png", 'cats/old/"b".png', "cats/old/c.png", "z.png"),
    }


def test_an_image_folder_with_caption_files_is_what_lora_trainers_read(tmp_path: Path, photos: Path) -> None:
    run(tmp_path / "state", [photos], [("imagefolder", tmp_path / "out"), ("txt", tmp_path / "out")])
    rows = map(json.loads, (tmp_path / "out" / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    for row in rows:
        image = tmp_path / "out" / row["file_name"]
        assert image.with_suffix(".txt").read_text() == row["text"] + "\n"


class Hashing(EchoExecutor):
    """Its records have the digests of the images, as those of a model."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        for task in tasks:
            digest = sha256(Path(task.item.path or "").read_bytes()).hexdigest()
            yield from (replace(record, sha256=digest) for record in super().run([task]))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_rejected_image_leaves_the_copy_but_not_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    monkeypatch.setitem(EXECUTORS, "local", f"{__name__}:Hashing")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(png(number))
    out = folder if in_place else tmp_path / "train"
    caption_dataset(folder, out=out, format=("imagefolder", "txt"))
    with closing(ReviewSession(out)) as session:
        session.change([Change(number=0, verdict="rejected", captions=())])
    publish(out / ".share4v")
    names = {"metadata.jsonl", "1.png", "1.txt", *(("0.png",) if in_place else ())}
    assert {name for name in tree(out) if not name.startswith(".")} == names
    assert (folder / "0.png").exists()


def test_metadata_in_the_folder_of_the_images_copies_nothing(tmp_path: Path, photos: Path) -> None:
    (photos / "empty.png").unlink()
    before = tree(photos)
    run(tmp_path / "state", [photos], [("imagefolder", photos)])
    after = tree(photos)
    metadata = after.pop("metadata.jsonl")
    assert after == before
    assert [json.loads(line)["file_name"] for line in metadata.decode().splitlines()] == [
        str(Path(one.source).relative_to(photos)) for one in records_of(photos)
    ]
    assert folder_of(photos, tmp_path)["text"] == [one.captions[0] for one in records_of(photos)]


def test_images_of_archives_are_written_as_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("deep/1.png", png(1)), ("../2", png(2)), ("3.odd name", png(3))])
    items = listed(tmp_path / "s.tar", include=("*",))
    run(tmp_path / "state", [tmp_path / "s.tar"], [("imagefolder", tmp_path / "out")])
    assert len(folder_of(tmp_path / "out", tmp_path)) == len(listed(tmp_path / "s.tar")) <= len(items)
    assert "s/deep/1.png" in tree(tmp_path / "out")


def test_images_that_are_not_copied_are_named(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "z.png").write_bytes(b"of somebody else")
    (photos / "a\\b.png").write_bytes(png(8))
    pairs = [(item, caption_of(item, Reader())) for item in listed(photos)]
    pairs[0] = pairs[0][0], Record(0, pairs[0][0].key, pairs[0][0].source, ("A.",), sha256="0" * 64)
    (photos / "cats" / "old" / "c.PNG").unlink()
    writer = write(tmp_path, "imagefolder", tmp_path / "out", pairs)
    assert [text.rpartition(": ")[2] for text in writer.left_out if "z.png" not in text] == [
        "it was changed after it was captioned",
        "rename the file",
        "there is no such file",
    ]
    assert sum("z.png is another file: delete it, or choose another out" in text for text in writer.left_out) == 1
    assert (tmp_path / "out" / "z.png").read_bytes() == b"of somebody else"
    assert len(folder_of(tmp_path / "out", tmp_path)) == len(pairs) - 5  # one failed


def test_copies_never_become_inputs(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ValueError, match="copies images into it, which the next run would caption too"):
        check_outputs(["imagefolder"], str(photos / "out"), [str(photos)])
    check_outputs(["imagefolder"], str(photos), [str(photos)])
    check_outputs(["imagefolder"], str(tmp_path), [str(photos)])
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1.png").write_bytes(png(1))
    with pytest.raises(ValueError, match="is not: copies of the others in that folder would be inputs of the next run"):
        run(tmp_path / "state", [photos, tmp_path / "more"], [("imagefolder", photos)])


def read_as_sd_scripts(path: Path, image_dir: str | None = None) -> dict[str, str]:
    """Return path -> training text, by the rules of `FineTuningDataset` for a .json file with its default settings."""
    metadata = json.loads(path.read_text(encoding="utf-8"))
    texts = {}
    for key, entry in metadata.items():
        assert Path(key).is_absolute() or image_dir is not None, "image_dir is required when image paths are relative"
        caption, tags = entry.get("caption") or "", entry.get("tags")
        if tags is not None and len(tags) > 0:
            caption = caption + ", " + tags if len(caption) > 0 else tags
        texts[key] = caption
    return texts


def test_sd_scripts_finds_every_image_and_text(tmp_path: Path, photos: Path) -> None:
    [writer] = run(tmp_path / "state", [photos], [("sd-scripts-json", tmp_path / "out" / "meta.json")])
    made = [one for one in records_of(photos) if one.captions]
    texts = read_as_sd_scripts(tmp_path / "out" / "meta.json")
    assert texts == {one.source: one.captions[0] for one in made} and all(Path(name).is_file() for name in texts)
    assert not writer.left_out


def test_sd_scripts_gets_tags_of_the_style_and_of_a_column(tmp_path: Path) -> None:
    tags, plain = STYLES["tags"].prompt, STYLES["default"].prompt
    pairs = [
        pair(0, "/a.png", ("A cat.", "cat, sofa", "Another\nview."), prompts=(plain, tags, plain)),
        pair(1, "/b.png", ("cat",), prompts=(tags,)),
        pair(2, "/c.png", ("Kept.",), columns={"tags": ["cat ", "", "a sofa"]}),
        pair(3, "/d.png", ("A dog.",), prompts=(plain,), columns={"tags": "dog,\n grass"}),
        pair(4, "/e.png", ("A fox.",), prompts=(plain,), columns={"tags": [1, 2]}),
        pair(5, "/a.png", ("The same file.",), prompts=(plain,)),
        pair(6, "/caf\udce9.png", ("No text.",), prompts=(plain,)),
        (Item(7, "v", "v.mp4", {"kind": "video", "path": "/v.mp4"}), Record(7, "v", "v.mp4", ("A film.",))),
        (Item(8, "x", "x.png", {"kind": "failure"}), Record(8, "x", "x.png", error="broken")),
    ]
    writer = write(tmp_path, "sd-scripts-json", tmp_path / "meta.json", pairs)
    assert json.loads((tmp_path / "meta.json").read_text(encoding="utf-8")) == {
        "/a.png": {"caption": "A cat.\nAnother view.", "tags": "cat, sofa"},
        "/b.png": {"tags": "cat"},
        "/c.png": {"caption": "Kept.", "tags": "cat, a sofa"},
        "/d.png": {"caption": "A dog.", "tags": "dog, grass"},
        "/e.png": {"caption": "A fox."},
    }
    assert [text.partition(": ")[2] for text in writer.left_out] == [
        "an earlier input is the same file, and sd-scripts has one entry for each file",
        "its name is not valid UTF-8, so no JSON can contain it: rename the file",
        "it is a video, which sd-scripts does not read",
    ]
    assert read_as_sd_scripts(tmp_path / "meta.json")["/d.png"] == "A dog., dog, grass"


def test_sd_scripts_takes_two_named_texts_the_caption_and_the_tags(
    tmp_path: Path, photos: Path, echo_executor: None
) -> None:
    out = tmp_path / "meta.json"
    options: dict[str, Any] = {"out": out, "format": "sd-scripts-json"}
    with pytest.raises(
        ValueError, match=r"it takes the texts 'long' and 'tags', and has no place for 'short'"
    ) as error:
        caption_dataset(photos, texts=["long:A long text", "short:Some text", "tags:one, two"], **options)
    assert "--text" in str(error.value) and not list(tmp_path.glob("meta.json*"))  # before the work begins
    with pytest.raises(ValueError, match="has no place for 'keywords'"):
        caption_dataset(photos, texts=["long:A long text", "keywords:tags"], **options)
    caption_dataset(photos / "1.png", texts=["tags:one, {stem}", "long:A long text of {tags}."], **options)
    assert list(json.loads(out.read_text()).values()) == [{"caption": "A long text of {tags}.", "tags": "one, 1"}]


def test_sd_scripts_needs_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("1.png", png(1))])
    with pytest.raises(ValueError, match=r"s\.tar::1\.png is not a separate file, which sd-scripts needs: the formats"):
        run(tmp_path / "state", [tmp_path / "s.tar"], [("sd-scripts-json", tmp_path / "a.json")])


def test_csv_and_json_have_a_row_for_every_input(tmp_path: Path, photos: Path) -> None:
    outputs = [(name, tmp_path / f"a.{name}") for name in ("csv", "json")]
    run(tmp_path / "state", [photos], outputs)
    records = records_of(photos)
    table, rows = pd.read_csv(tmp_path / "a.csv"), json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    frame = pd.read_json(tmp_path / "a.json")
    loaded = datasets.load_dataset(
        "csv", data_files=str(tmp_path / "a.csv"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert list(table["path"]) == [row["path"] for row in rows] == loaded["path"] == [one.source for one in records]
    for column in (table["caption"], frame["caption"], pd.Series(loaded["caption"])):
        assert list(column.dropna()) == [one.captions[0] for one in records if one.captions]
    assert list(table["error"].dropna()) == [one.error for one in records if one.error] and len(table) == 7
    assert [json.loads(cell) for cell in table["captions"]] == [row["captions"] for row in rows]
    assert [json.loads(cell) for cell in table["settings"]] == [row["settings"] for row in rows]
    assert list(table.columns) == list(rows[0])


def test_cells_of_csv_are_quoted(tmp_path: Path) -> None:
    texts = ['He said: "no", twice.', "two\nlines\r\n", " spaces ", "\u2028猫", "caf\udce9", "", "=1+1"]
    pairs = [pair(number, f"/{number}.png", (text,)) for number, text in enumerate(texts)]
    write(tmp_path, "csv", tmp_path / "a.csv", pairs)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows] == [*texts[:4], "caf\\xe9", *texts[5:]]
    assert list(pd.read_csv(tmp_path / "a.csv", keep_default_na=False)["caption"])[:4] == texts[:4]


@pytest.mark.parametrize(("name", "empty"), [("json", "[]\n"), ("sd-scripts-json", "{}\n"), ("csv", None)])
def test_without_inputs(tmp_path: Path, name: str, empty: str | None) -> None:
    out = tmp_path / f"a{writer_row(name).suffix}"
    write(tmp_path, name, out, [])
    assert out.read_text() == empty if empty is not None else len(pd.read_csv(out)) == 0


@pytest.mark.parametrize("name", ["json", "csv", "imagefolder", "sd-scripts-json"])
def test_nothing_has_its_final_name_before_it_is_complete(tmp_path: Path, photos: Path, name: str) -> None:
    """Every stop between two records leaves no file that a trainer would read, and the next run completes it."""
    row = writer_row(name)
    out = tmp_path / "out" if name == "imagefolder" else tmp_path / f"out{row.suffix}"
    file = out / row.file_name if name == "imagefolder" else out
    items, state = listed(photos), tmp_path / "state"
    write_listing(state / "inputs.jsonl", items)
    for item in items:
        record = caption_of(item, Reader())
        with Journal(state / "journal.jsonl") as journal:
            journal.append(record)
        writer = open_writer(name, str(out), WriterOptions(), state)
        writer.write(record)
        if item.number % 2:
            writer.flush()  # otherwise the process ends before it
        assert not file.exists()
        if name == "imagefolder":
            known = {png(number) for number in range(6)}
            assert all(data in known for path, data in tree(out).items() if not path.endswith(".partial"))
    open_writer(name, str(out), WriterOptions(), state).finish()
    run(tmp_path / "whole", [photos], [(name, tmp_path / "whole" / out.name)])
    whole = tmp_path / "whole" / out.name
    assert (tree(out) if out.is_dir() else out.read_bytes()) == (tree(whole) if whole.is_dir() else whole.read_bytes())
    assert find_existing_output(row, out) == file


def test_suffixes_choose_plain_tables() -> None:
    assert [format_of(name) for name in ("a.csv", "a.JSON")] == ["csv", "json"]
