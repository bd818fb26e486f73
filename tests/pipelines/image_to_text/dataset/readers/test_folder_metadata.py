"""Metadata beside images: joined to them as load_dataset("imagefolder") joins it; and COCO's annotations."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from helpers.jobs import listed, png, write_tar

from mindone.pipelines.image_to_text.dataset.readers import InputError, ReaderOptions, list_inputs, samples
from mindone.pipelines.image_to_text.dataset.state.skipped import SkippedFiles

ROWS: list[dict[str, Any]] = [
    {"file_name": "1.png", "text": "One.", "mood": "calm"},
    {"file_name": "b/2.png", "text": "Two, \u732b.", "mood": "wild"},
    {"file_name": "b/c/3.png", "text": "Three.", "mood": "sad"},
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, row in enumerate(ROWS):
        path = tmp_path / "in" / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return tmp_path / "in"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)


def listing(*inputs: str, **options: Any) -> tuple[dict[str, tuple[str | None, dict[str, Any]]], dict[str, Any]]:
    skipped = SkippedFiles()
    items = list(list_inputs(inputs, ReaderOptions(**options), skipped))
    found = {item.key: (item.caption, dict(item.columns)) for item in items}
    assert len(found) == len(items)
    return found, {group.reason: group.names for group in skipped.groups()}


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_captions_and_columns_are_those_that_datasets_loads(folder: Path, name: str, tmp_path: Path) -> None:
    write(folder / name, ROWS)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "c"))
    theirs = theirs.cast_column("image", datasets.Image(decode=False))
    items = {item.path: item for item in listed("in")}
    assert len(items) == len(theirs)
    for row in theirs:
        item = items[row["image"]["path"]]
        assert (item.caption, item.columns["mood"]) == (row["text"], row["mood"])
    assert listing("in")[1] == {}


def test_a_caption_file_comes_before_metadata(folder: Path) -> None:
    write(folder / "metadata.jsonl", ROWS)
    (folder / "1.txt").write_text("Mine.")
    found, _ = listing("in")
    assert found["1"] == ("Mine.", {"text": "One.", "mood": "calm"}) and found["b/2"][0] == "Two, \u732b."


def test_metadata_of_a_deeper_directory_comes_first(folder: Path) -> None:
    write(folder / "metadata.csv", ROWS)
    write(folder / "b" / "metadata.jsonl", [{"file_name": "2.png", "text": "Closer."}])
    found, skipped = listing("in")
    assert [caption for caption, _ in found.values()] == ["One.", "Closer.", "Three."] and not skipped


def test_rows_that_are_not_used_are_named(folder: Path) -> None:
    write(folder / "metadata.jsonl", [*ROWS, {"file_name": "gone.png", "text": "x"}, ROWS[0]])
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("{broken")
    write(folder / "metadata.csv", [{"path": "1.png"}])
    assert listing("in")[1] == {
        "table": ("in/metadata.csv",),
        "metadata_row": tuple(f"in/metadata.jsonl: in/{name}" for name in ("gone.png", "1.png", "metadata.jsonl::5")),
    }


def test_the_caption_column_can_be_named(folder: Path) -> None:
    write(folder / "metadata.csv", ROWS)
    assert [caption for caption, _ in listing("in", caption_column="mood")[0].values()] == ["calm", "wild", "sad"]
    with pytest.raises(InputError, match=r"metadata.csv has no column 'mod' \(caption_column\); it has text, mood"):
        listing("in", caption_column="mod")


def test_images_named_one_by_one_have_their_metadata_too(folder: Path) -> None:
    """A shell's `in/*` names the metadata as well, which is no table of further images."""
    write(folder / "metadata.jsonl", ROWS)
    assert listing("in/1.png")[0] == {"1": ("One.", {"text": "One.", "mood": "calm"})}
    assert listing("in/*.png")[0]["1"][0] == "One."
    found, skipped = listing("in/1.png", "in/metadata.jsonl")
    assert list(found) == ["1"] and skipped["beside"] == ("in/metadata.jsonl",)
    assert list(listing("in/metadata.jsonl")[0]) == ["1", "b/2", "b/c/3"]
    # A table with that name whose rows are images themselves describes no other file.
    (folder / "metadata.jsonl").unlink()
    for name, row in (
        ("metadata.parquet", {"image": {"bytes": png(9), "path": None}}),
        ("metadata.csv", {"url": "https://localhost/a.png"}),
    ):
        write(folder / name, [row])
        found, skipped = listing("in/1.png", f"in/{name}")
        assert len(found) == 2 and "beside" not in skipped, name
    with pytest.raises(InputError, match="there is no such file"):
        listing("in/b/2.png", "in/b/metadata.csv")


def test_the_output_of_a_job_is_no_metadata(folder: Path) -> None:
    write(folder / "metadata.jsonl", ROWS)
    (folder / "metadata.jsonl.share4v").mkdir()
    found, skipped = listing("in")
    assert found["1"] == (None, {}) and skipped["output"] == ("in/metadata.jsonl",)


# ---- COCO


def test_captions_of_cocos_annotations(folder: Path) -> None:
    """The layout of captions_val2017.json: `licenses` have URLs too, and annotations refer to images by id."""
    coco = {
        "info": {"year": 2017, "url": "http://cocodataset.org"},
        "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution"}],
        "images": [
            {"license": 4, "file_name": "1.png", "coco_url": "http://images.cocodataset.org/1.jpg", "id": 1},
            {"license": 4, "file_name": "b/2.png", "coco_url": "http://images.cocodataset.org/2.jpg", "id": 2},
        ],
        "annotations": [
            {"image_id": 1, "id": 38, "caption": "A bicycle."},
            {"image_id": 1, "id": 39, "caption": "A bike."},
            {"image_id": 9, "id": 40, "caption": "Of no image."},
        ],
    }
    reordered = {name: coco[name] for name in ("annotations", "images", "licenses", "info")}
    for content in (coco, reordered):
        (folder / "captions.json").write_text(json.dumps(content))
        found, _ = listing("in/captions.json")
        assert {key: caption for key, (caption, _) in found.items()} == {"1": "A bicycle.", "b/2": None}
        assert found["1"][1]["captions"] == ["A bicycle.", "A bike."] and found["b/2"][1]["captions"] == []
        assert listing("in/captions.json", caption_column="caption")[0] == found
    del coco["annotations"]
    (folder / "captions.json").write_text(json.dumps(coco))
    assert listing("in/captions.json")[0]["1"][0] is None


def test_an_object_with_several_arrays_names_those_that_are_not_listed(folder: Path) -> None:
    """Arrays with images that are not listed are named, and no column of the user's is replaced."""
    rows = {name: [{"file_name": name, "captions": ["Mine."], "id": 1}] for name in ("1.png", "b/2.png")}
    path = folder / "all.json"
    path.write_text(json.dumps({"train": rows["1.png"], "val": rows["b/2.png"]}))
    found, skipped = listing("in/all.json")
    assert list(found) == ["1"] and skipped == {"array": ("in/all.json: val",)}
    path.write_text(json.dumps({"images": rows["1.png"], "b/2.png": "A caption."}))
    found, skipped = listing("in/all.json")
    assert list(found) == ["b/2"] and skipped == {"array": ("in/all.json: images",)}
    annotations = [{"image_id": 1, "caption": "One."}]
    path.write_text(
        json.dumps({"images": rows["1.png"], "annotations": annotations, "licenses": [{"url": "http://x"}]})
    )
    found, skipped = listing("in/all.json")
    assert found["1"] == ("One.", {"captions": ["Mine."], "annotation_captions": ["One."], "id": 1, "caption": "One."})
    assert skipped == {}


def write_archive(path: Path, folder: Path, prefix: str = "") -> None:
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    members = [(prefix + one.relative_to(folder).as_posix(), one.read_bytes()) for one in files]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members:
                archive.writestr(name, data)
    else:
        write_tar(path, members, "w:gz" if path.suffix == ".tgz" else "w")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
@pytest.mark.parametrize("archive", ["train.zip", "train.tar", "train.tgz"])
def test_metadata_in_an_archive_is_joined_as_in_a_folder(folder: Path, tmp_path: Path, archive: str, name: str) -> None:
    write(folder / name, [*ROWS, {"file_name": "absent.png", "text": "None.", "mood": ""}])
    write(folder / "b" / "metadata.jsonl", [{"file_name": "2.png", "text": "Deeper.", "mood": "wild"}])
    write_archive(tmp_path / archive, folder, "./" if archive == "train.tar" else "")
    items = listed(archive)
    found = {item.locator["member"].removeprefix("./"): (item.caption, item.columns["mood"]) for item in items}
    assert found == {"1.png": ("One.", "calm"), "b/2.png": ("Deeper.", "wild"), "b/c/3.png": ("Three.", "sad")}
    _, skipped = listing(archive)
    assert {*skipped} == {"metadata_row"}
    with pytest.raises(InputError, match=rf"{archive}::.*{name} has no column 'mod'"):
        listing(archive, caption_column="mod")
    assert {item.caption for item in listed(archive, caption_column="mood")} == {"calm", "wild", "sad"}


def test_metadata_in_an_archive_is_what_datasets_loads(folder: Path, tmp_path: Path) -> None:
    write(folder / "metadata.jsonl", ROWS)
    write_archive(tmp_path / "train.zip", folder)
    theirs = datasets.load_dataset(
        "imagefolder", data_files=str(tmp_path / "train.zip"), split="train", cache_dir=str(tmp_path / "c")
    ).cast_column("image", datasets.Image(decode=False))
    names = [row["image"]["path"].partition("::")[0].rpartition("/")[2] for row in theirs]  # zip://b/2.png::train.zip
    wanted = {name: (row["text"], row["mood"]) for name, row in zip(names, theirs, strict=True)}
    found = {
        item.locator["member"].rpartition("/")[2]: (item.caption, item.columns["mood"]) for item in listed("train.zip")
    }
    assert found == wanted and len(found) == len(ROWS)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe\0", b"{}" * 9, b"[" * 100_000, b'{"file_name": "../../../etc/passwd"}\n{"file_name": "/1.png"}'],
)
def test_bad_metadata_in_an_archive_does_not_stop_its_images(tmp_path: Path, data: bytes) -> None:
    write_tar(tmp_path / "a.tar", [("metadata.jsonl", data), ("1.png", png(1))])
    assert [(item.locator["member"], item.caption) for item in listed("a.tar")] == [("1.png", None)]


def test_a_caption_file_counts_more_than_metadata(tmp_path: Path) -> None:
    row = json.dumps({"file_name": "1.png", "text": "From the table."}).encode()
    write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.txt", b"From its own file."), ("metadata.jsonl", row)])
    assert [item.caption for item in listed("a.tar")] == ["From its own file."]


def test_so_many_metadata_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_METADATA_FILES", 2)
    row = json.dumps({"file_name": "1.png", "text": "Yes."}).encode()
    for mode in ("w", "w:gz"):
        write_tar(
            tmp_path / "a.tar",
            [(f"{one}/{name}", data) for one in "abc" for name, data in (("1.png", png(1)), ("metadata.jsonl", row))],
            mode,
        )
        assert [item.caption for item in listed("a.tar")] == ["Yes.", "Yes.", None]
        assert listing("a.tar")[1] == {"table": ("a.tar::c/metadata.jsonl",)}
    monkeypatch.setattr(samples, "MAX_METADATA_BYTES", len(row))
    assert [item.caption for item in listed("a.tar")] == ["Yes.", None, None]
