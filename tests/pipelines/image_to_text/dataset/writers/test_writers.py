"""Output formats: their content, read with the libraries that users read them with."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.parquet as pq
import pytest
import webdataset
from helpers.jobs import caption_of, listed, png, run, tree, write_tar

from mindone.pipelines.image_to_text.dataset.readers import Reader, ReaderOptions
from mindone.pipelines.image_to_text.dataset.state.existing_captions import merge_captions
from mindone.pipelines.image_to_text.dataset.state.journal import Journal
from mindone.pipelines.image_to_text.dataset.state.listing import write_listing
from mindone.pipelines.image_to_text.dataset.state.records import Item, Record
from mindone.pipelines.image_to_text.dataset.writers import WriterOptions, format_of, open_writer

ODD = ["a b", 'say "hi"', "line\nbreak", "caf\u00e9", "cafe\u0301", "caf\udce9", "\u2028", "猫"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images with unusual or colliding names, and two that fail."""
    folder = tmp_path / "photos"
    (folder / "cats").mkdir(parents=True)
    for number, name in enumerate(ODD):
        (folder / "cats" / f"{name}.png").write_bytes(png(number))
    (folder / "1.png").write_bytes(png(20))
    (folder / "1.jpg").write_bytes(png(21))
    (folder / "empty.png").touch()
    (folder / "gone.png").symlink_to("nowhere")
    return folder


def expected(folder: Path, **options: Any) -> list[Record]:
    return [caption_of(item, Reader()) for item in listed(folder, **options)]


def written(
    tmp_path: Path, name: str, out: Path | None, items: list[Item], records: list[Record], **options: Any
) -> Any:
    """Write these records to an output."""
    state = tmp_path / "state"
    write_listing(state / "inputs.jsonl", items)
    with Journal(state / "journal.jsonl") as journal:
        for record in records[journal.count :]:
            journal.append(record)
    writer = open_writer(name, None if out is None else str(out), WriterOptions(**options), state)
    for record in records:
        writer.write(record)
    writer.finish()
    return writer


def pair(number: int = 0, caption: str = "A cat.", **more: Any) -> tuple[Item, Record]:
    item = Item(number, f"k{number}", f"s{number}", {"kind": "url", "url": "x"})
    return item, Record(number, f"k{number}", f"s{number}", (caption,), **more)


def test_jsonl_has_a_line_for_every_input(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out" / "captions.jsonl"
    run(tmp_path / "state", [photos], [("jsonl", out)])
    records = expected(photos)
    frame = pd.read_json(out, lines=True)
    loaded = datasets.Dataset.from_json(str(out), cache_dir=str(tmp_path / "cache"))
    assert len(frame) == len(loaded) == len(records) == 12
    assert list(frame["caption"].dropna()) == [one.captions[0] for one in records if one.captions]
    assert loaded["caption"] == [one.captions[0] if one.captions else None for one in records]
    assert loaded["error"] == [one.error for one in records] and sum(one is not None for one in loaded["error"]) == 2
    row = json.loads(out.read_text(encoding="utf-8").splitlines()[2])
    assert list(row) == [
        *("key", "source", "caption", "captions", "error", "model", "dtype", "prompts", "settings", "sha256", "tokens"),
        *("finish_reasons", "notes", "width", "height", "columns"),
    ]
    assert row["settings"] == {"max_new_tokens": 8} and row["tokens"] == [7] and row["width"] == 6
    assert "cats/caf\\xe9" in list(frame["key"]) and "cats/\u2028" in list(frame["key"])
    assert len(out.read_text(encoding="utf-8").splitlines()) == 12  # also for readers that treat U+2028 as a line end


@pytest.mark.parametrize("single", [True, False])
def test_parquet_has_a_row_for_every_input(tmp_path: Path, photos: Path, single: bool) -> None:
    out = tmp_path / "out" / "captions.parquet" if single else tmp_path / "parts"
    run(tmp_path / "state", [photos], [("parquet", out)], WriterOptions(shard_size=5, seconds=True))
    if not single:
        assert sorted(tree(out)) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    records = expected(photos)
    frame = pd.read_parquet(out)
    files = str(out) if single else str(out / "*.parquet")
    loaded = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
    assert loaded["caption"] == list(frame["caption"]) == [one.captions[0] if one.captions else None for one in records]
    assert loaded["error"] == [one.error for one in records]
    assert [json.loads(text) for text in frame["settings"]][2] == {"max_new_tokens": 8}
    assert frame["tokens"][3].tolist() == [7] and loaded[3]["prompts"] == ["Describe"]
    assert "cats/caf\\xe9" in list(frame["key"]) and set(frame["seconds"]) == {0.0}


def test_row_groups_of_parquet(tmp_path: Path) -> None:
    pairs = [pair(number) for number in range(2500)]
    written(tmp_path, "parquet", tmp_path / "a.parquet", [item for item, _ in pairs], [record for _, record in pairs])
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(place).num_rows for place in range(metadata.num_row_groups)] == [1024, 1024, 452]


@pytest.mark.parametrize(("name", "out"), [("jsonl", "a.jsonl"), ("parquet", "a.parquet"), ("parquet", "parts")])
def test_without_inputs_the_table_is_empty(tmp_path: Path, name: str, out: str) -> None:
    written(tmp_path, name, tmp_path / out, [], [])
    frame = pd.read_json(tmp_path / out, lines=True) if name == "jsonl" else pd.read_parquet(tmp_path / out)
    assert len(frame) == 0


def test_columns_of_the_input_are_copied(tmp_path: Path) -> None:
    item, record = pair(columns={"id": 7, "tags": ["x"], "name": "caf\udce9", "score": float("nan")})
    written(tmp_path, "jsonl", tmp_path / "a.jsonl", [item], [record])
    row = json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8"))
    assert row["columns"] == {"id": 7, "tags": ["x"], "name": "caf\\xe9", "score": None} and "seconds" not in row


def test_sidecars_are_beside_their_images(tmp_path: Path, photos: Path) -> None:
    run(tmp_path / "state", [photos], [("txt", None), ("caption", None)])
    records = expected(photos, caption_suffixes=())
    for record in records:
        for suffix in (".txt", ".caption"):
            path = photos / (record.key + suffix)
            assert path.exists() == (record.error is None)
            assert not record.captions or path.read_text() == record.captions[0] + "\n"
    assert (photos / "1.jpg.txt").exists() and (photos / "1.png.txt").exists() and not (photos / "1.txt").exists()
    assert len(list(photos.rglob("*.txt"))) == 10 and not list(photos.rglob("*.partial"))
    # A second job finds all of them as existing captions.
    assert [item.caption for item in listed(photos)] == [one.captions[0] if one.captions else None for one in records]


def test_sidecars_under_a_root_directory(tmp_path: Path, photos: Path) -> None:
    write_tar(tmp_path / "s.tar", [("deep/1.png", png(1)), ("../2.png", png(2))])
    run(tmp_path / "state", [photos, tmp_path / "s.tar"], [("txt", tmp_path / "root")])
    assert not list(photos.rglob("*.txt"))
    found = tree(tmp_path / "root")
    assert {"photos/1.jpg.txt", "photos/cats/caf\udce9.txt", "s/deep/1.txt", "s/__/2.txt"} <= set(found)
    assert len(found) == 12 and all(text.startswith(b"A picture") for text in found.values())


def test_existing_sidecars_are_not_changed(tmp_path: Path, photos: Path) -> None:
    kept = {"cats/a b.txt": b"\xef\xbb\xbfMine.\r\n\r\n", "cats/猫.caption": b"caf\xe9"}
    for name, data in kept.items():
        (photos / name).write_bytes(data)
    run(tmp_path / "state", [photos], [("txt", None), ("jsonl", tmp_path / "a.jsonl")])
    assert (photos / "cats/a b.txt").read_bytes() == kept["cats/a b.txt"]
    assert (photos / "cats/猫.caption").read_bytes() == b"caf\xe9"
    assert (photos / "cats/猫.txt").read_bytes() == b"caf\xe9\n"
    rows = {row["key"]: row for row in map(json.loads, (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines())}
    assert rows["cats/a b"]["caption"] == "Mine." and rows["cats/a b"]["notes"] == ["kept existing"]
    assert rows["cats/猫"]["caption"] == "caf\\xe9"


@pytest.mark.parametrize(
    ("mode", "text"),
    [("overwrite", b"New.\n"), ("append", b"caf\xe9 1 New.\n"), ("prepend", b"New. caf\xe9 1\n")],
)
def test_existing_captions_are_merged_once(tmp_path: Path, mode: str, text: bytes) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    (tmp_path / "1.txt").write_bytes(b"caf\xe9 1\n")
    [item] = listed(tmp_path / "1.png")
    record = Record(0, "1", item.source, (merge_captions(mode, item.caption, "New."),))
    for _ in range(3):  # as after a crash, when the record is written again
        written(tmp_path, "txt", None, [item], [record])
        assert (tmp_path / "1.txt").read_bytes() == text
        (tmp_path / "state" / "output-txt.json").unlink()


def test_several_captions_have_one_line_each(tmp_path: Path) -> None:
    items = [Item(number, str(number), str(number)) for number in range(3)]
    texts = [("One\ntwo. ", "Three."), ("One\n\ntwo.",), ("half \ud83d",)]
    records = [Record(item.number, item.key, item.source, text) for item, text in zip(items, texts, strict=True)]
    written(tmp_path, "txt", tmp_path / "out", items, records)
    assert tree(tmp_path / "out") == {
        "0.txt": b"One two.\nThree.\n",
        "1.txt": b"One\n\ntwo.\n",
        "2.txt": b"half \\ud83d\n",
    }


def test_a_deleted_sidecar_is_restored(tmp_path: Path, photos: Path) -> None:
    run(tmp_path / "state", [photos], [("txt", None)])
    before = tree(photos)
    changed = photos / "cats" / "caf\u00e9.txt"
    (photos / "cats" / "a b.txt").unlink()
    changed.write_text("By hand.")
    run(tmp_path / "state", [photos], [("txt", None)])
    assert tree(photos) == {**before, "cats/caf\u00e9.txt": b"By hand."}


def test_a_deleted_directory_does_not_affect_other_captions(tmp_path: Path, photos: Path) -> None:
    items = listed(photos)
    records = [caption_of(item, Reader()) for item in items]
    (photos / "cats").rename(tmp_path / "elsewhere")
    writer = written(tmp_path, "txt", None, items, records)
    assert len(list(photos.rglob("*.txt"))) == 2 and not (photos / "cats").exists()
    assert len(writer.left_out) == 8 and "its directory no longer exists" in writer.left_out[0]


def opened(state: Path, items: list[Item], out: Path | None = None) -> Any:
    """Open the sidecar output of a job whose records are all in the journal."""
    write_listing(state / "inputs.jsonl", items)
    with Journal(state / "journal.jsonl") as journal:
        for item in items[journal.count :]:
            journal.append(caption_of(item, Reader()))
    return open_writer("txt", None if out is None else str(out), WriterOptions(), state)


def test_two_jobs_on_overlapping_folders(tmp_path: Path, photos: Path) -> None:
    """Both have temporary files of the same images, with different numbers, when they rename them."""
    items, inner = listed(photos), listed(photos / "cats")
    records = [caption_of(item, Reader()) for item in items]
    writers = [opened(tmp_path / "a", items), opened(tmp_path / "b", inner)]
    for writer, own in zip(writers, (items, inner), strict=True):
        for item in own:
            writer.write(caption_of(item, Reader()))
    for writer in writers:
        writer.finish()
    for record in records:
        if record.captions:
            assert (photos / f"{record.key}.txt").read_text() == record.captions[0] + "\n"
    assert not list(photos.rglob("*.partial")) and [writer.left_out for writer in writers] == [[], []]


def test_two_jobs_on_one_image_use_different_temporary_files(tmp_path: Path, photos: Path) -> None:
    [item] = listed(photos / "1.jpg")
    writers = [opened(tmp_path / "a", [item]), opened(tmp_path / "b", [item])]
    for writer in writers:
        writer.write(caption_of(item, Reader()))
    partials = list(photos.glob(".*.partial"))
    assert len(partials) == 2 and all(path.name.startswith(".1.txt.share4v-") for path in partials)


def test_temporary_files_of_a_crash_are_overwritten(tmp_path: Path, photos: Path) -> None:
    items = listed(photos)
    writer = opened(tmp_path / "state", items)
    for item in items:
        writer.write(caption_of(item, Reader()))
    left = list(photos.rglob("*.partial"))
    assert len(left) == 10
    for path in left:
        path.write_bytes(b"torn, and longer than the caption that replaces it" * 9)
    opened(tmp_path / "state", items).finish()
    assert not list(photos.rglob("*.partial"))
    texts = [path.read_text() for path in photos.rglob("*.txt")]
    assert len(texts) == 10 and all(text.startswith("A picture") for text in texts)


@pytest.mark.parametrize("stem", ["n" * 240, "é" * 120])
def test_sidecars_of_the_longest_names(tmp_path: Path, stem: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / f"{stem}.png").write_bytes(png(1))
    [item] = listed(tmp_path / "photos")
    opened(tmp_path / "state", [item]).finish()
    assert (tmp_path / "photos" / f"{stem}.txt").read_text().startswith("A picture")


def test_a_deleted_temporary_file_is_reported_and_restored(tmp_path: Path, photos: Path) -> None:
    items = listed(photos)
    writer = opened(tmp_path / "state", items)
    for item in items:
        writer.write(caption_of(item, Reader()))
    next((photos / "cats").glob(".a b*.partial")).unlink()
    writer.finish()
    assert len(writer.left_out) == 1 and "a b.png: its temporary file was deleted before" in writer.left_out[0]
    assert len(list(photos.rglob("*.txt"))) == 9
    opened(tmp_path / "state", items).finish()
    assert len(list(photos.rglob("*.txt"))) == 10


def samples(path: Path) -> list[dict[str, Any]]:
    """Read shards with the webdataset library."""
    shards = sorted(map(str, path.glob("*.tar"))) if path.is_dir() else str(path)
    return list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))


INPUT = [
    ("000/a.jpg", png(0)),
    ("000/a.json", b'{"url": "x"}'),
    ("000/a.cls", b"5"),
    ("b.left.jpg", png(1)),
    ("b.right.jpg", png(2)),
    ("c.jpg", b""),
    ("c.json", b"{}"),
    ("d.png", png(3)),
    ("d.txt", b"Before.\n"),
    ("é" * 70 + ".jpg", png(4)),
]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_captions_are_added_to_input_shards(tmp_path: Path, mode: str) -> None:
    name = "s.tar" if mode == "w" else "s.tar.gz"
    write_tar(tmp_path / name, INPUT, mode, mtime=1.5, uid=1000, uname="somebody", pax_headers={"comment": "c" * 600})
    run(tmp_path / "state", [tmp_path / name], [("webdataset", tmp_path / "out")])
    assert sorted(tree(tmp_path / "out")) == ["s.tar"]
    found = {one["__key__"]: one for one in samples(tmp_path / "out")}
    before = {one["__key__"]: one for one in samples(tmp_path / name)}
    captions = {item.key: caption_of(item, Reader()).captions for item in listed(tmp_path / name)}
    assert list(found) == ["000/a", "b", "d", "é" * 70]  # c failed
    for key, one in found.items():
        for field, data in before[key].items():
            assert field in ("__url__", "__local_path__", "txt") or one[field] == data
    assert found["000/a"]["txt"].decode() == captions["s/000/a"][0] + "\n"
    assert found["b"]["left.txt"].decode() == captions["s/b.left"][0] + "\n"
    assert found["b"]["right.txt"].decode() == captions["s/b.right"][0] + "\n"
    assert found["d"]["txt"] == b"Before.\n"  # kept
    with tarfile.open(tmp_path / name) as old, tarfile.open(tmp_path / "out" / "s.tar") as new:
        kept = {info.name: info for info in old if info.name != "d.txt"}
        for info in new:
            if info.name in kept:
                same = ("size", "mtime", "uid", "uname", "pax_headers", "mode", "type")
                assert [getattr(info, one) for one in same] == [getattr(kept[info.name], one) for one in same]
            else:
                assert (info.mtime, info.uid, info.uname) == (0, 0, "")


def test_a_caption_in_a_shard_is_replaced(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", INPUT)
    items = listed(tmp_path / "s.tar")
    records = [caption_of(replace(item, caption=None), Reader()) for item in items]
    written(tmp_path, "webdataset", tmp_path / "out", items, records)
    found = {one["__key__"]: one for one in samples(tmp_path / "out")}
    assert found["d"]["txt"].startswith(b"A picture") and list(found["d"])[-1] == "txt"


def test_one_output_shard_for_each_input_shard(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        for number in range(2):
            write_tar(tmp_path / folder / f"s-{number}.tar", [(f"{n}.png", png(n)) for n in range(3)])
    inputs = [tmp_path / "x", tmp_path / "y"]
    run(tmp_path / "state", inputs, [("webdataset", tmp_path / "out")], WriterOptions(shard_size=1))
    assert sorted(tree(tmp_path / "out")) == ["s-0.tar", "s-0~2.tar", "s-1.tar", "s-1~2.tar"]
    assert [one["__key__"] for one in samples(tmp_path / "out")] == ["0", "1", "2"] * 4


def test_new_shards_of_other_inputs(tmp_path: Path, photos: Path) -> None:
    options = WriterOptions(shard_size=4)
    run(tmp_path / "state", [photos], [("webdataset", tmp_path / "out")], options)
    assert sorted(tree(tmp_path / "out")) == ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]
    found, records = samples(tmp_path / "out"), [one for one in expected(photos) if one.captions]
    assert [one["__key__"] for one in found] == [f"{record.number:09d}" for record in records]
    for one, record in zip(found, records, strict=True):
        picture = one["jpg" if record.source.endswith("jpg") else "png"]
        assert picture == Path(record.source).read_bytes() and one["txt"].decode() == record.captions[0] + "\n"
        assert json.loads(one["json"])["sha256"] == record.sha256
    decoded = next(iter(webdataset.WebDataset(str(tmp_path / "out/shard-00000.tar"), shardshuffle=False).decode("pil")))
    assert decoded["png" if "png" in decoded else "jpg"].size == (6, 4) and isinstance(decoded["txt"], str)


def test_changed_and_deleted_images_are_left_out_of_shards(tmp_path: Path, photos: Path) -> None:
    items = listed(photos)
    records = [caption_of(item, Reader()) for item in items]
    (photos / "1.jpg").write_bytes(png(99))
    (photos / "1.png").unlink()
    writer = written(tmp_path, "webdataset", tmp_path / "out", items, records)
    assert len(samples(tmp_path / "out")) == 8
    assert [text.partition(": ")[2] for text in writer.left_out] == [
        "it was changed after it was captioned",
        "it can no longer be read: there is no such file",
    ]


def test_files_of_another_job_are_not_overwritten(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", INPUT)
    for name, file in [("webdataset", "s.tar"), ("parquet", "part-00007.parquet")]:
        (tmp_path / file).touch()
        with pytest.raises(ValueError, match=rf"{file} already exists, and this job did not write it"):
            run(tmp_path / f"state-{name}", [tmp_path / "s.tar"], [(name, tmp_path)])


@pytest.mark.parametrize(("name", "file"), [("webdataset", "mine.tar"), ("parquet", "part-00009.parquet")])
def test_a_restarted_job_does_not_overwrite_files_of_others(tmp_path: Path, photos: Path, name: str, file: str) -> None:
    state, out = tmp_path / "state", tmp_path / "out"
    run(state, [photos], [(name, out)])
    (out / file).write_text("mine")
    for path in state.glob("*.jsonl"):  # as --restart does
        path.unlink()
    before = tree(out)
    with pytest.raises(ValueError, match=rf"{file} already exists"):
        run(state, [photos], [(name, out)])
    assert tree(out) == before


@pytest.mark.parametrize(("name", "out"), [("webdataset", "out"), ("parquet", "out"), ("jsonl", "out/a.jsonl")])
def test_a_restarted_job_deletes_its_old_files(tmp_path: Path, photos: Path, name: str, out: str) -> None:
    """But only once the new ones are complete."""
    options, state, target = WriterOptions(shard_size=3), tmp_path / "state", [(name, tmp_path / out)]
    run(state, [photos], target, options)
    old = tree(tmp_path / "out")
    for path in state.glob("*.jsonl"):  # as --restart does
        path.unlink()
    write_listing(state / "inputs.jsonl", listed(photos / "cats"))
    for _ in range(2):  # started, and ended at once
        open_writer(name, str(tmp_path / out), options, state)
        assert {path: data for path, data in tree(tmp_path / "out").items() if not path.endswith(".partial")} == old
    run(state, [photos / "cats"], target, options)
    run(tmp_path / "fresh", [photos / "cats"], [(name, tmp_path / "fresh" / out)], options)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh" / "out") and len(tree(tmp_path / "out")) <= len(old)


def test_a_deleted_part_is_written_again(tmp_path: Path, photos: Path) -> None:
    for name in ("parquet", "webdataset"):
        job = tmp_path / name, [photos], [(name, tmp_path / f"{name}-out")], WriterOptions(shard_size=3)
        run(*job)
        before = tree(tmp_path / f"{name}-out")
        (tmp_path / f"{name}-out" / sorted(before)[1]).unlink()
        run(*job)
        assert tree(tmp_path / f"{name}-out") == before


def test_open_sora_files(tmp_path: Path, photos: Path) -> None:
    outputs = [("open-sora-csv", tmp_path / "out"), ("open-sora-plan-json", tmp_path / "out")]
    csv_writer, plan_writer = run(tmp_path / "state", [photos], outputs)
    frame = pd.read_csv(tmp_path / "out" / "open_sora.csv")
    records = [one for one in expected(photos) if one.captions and "\udce9" not in one.source]
    assert list(frame["caption"]) == list(frame["text"]) == [one.captions[0] for one in records]
    assert list(frame["path"]) == [one.source for one in records]
    assert list(frame["video"]) == [str(Path(one.source).relative_to(photos)) for one in records]
    assert set(frame["width"]) == {6} and set(frame["height"]) == {4} and set(frame["num_frames"]) == {1}
    assert ["not valid UTF-8" in text for text in csv_writer.left_out] == [True]
    plan = json.loads((tmp_path / "out" / "open_sora_plan.json").read_text())
    assert [one["path"] for one in plan] == ["1.jpg"] and plan[0]["resolution"] == {"height": 4, "width": 6}
    assert len(plan_writer.left_out) == 9


def test_open_sora_reads_the_size_of_images_with_kept_captions(tmp_path: Path, photos: Path) -> None:
    (photos / "1.jpg.txt").write_text("Mine.")
    folder = WriterOptions(folder=str(tmp_path))
    run(tmp_path / "state", [photos], [("open-sora-plan-json", tmp_path / "a.json")], folder)
    [row] = json.loads((tmp_path / "a.json").read_text())
    assert row["cap"] == ["Mine."] and row["resolution"] == {"height": 4, "width": 6} and row["path"] == "photos/1.jpg"


def test_invalid_outputs_are_rejected(tmp_path: Path, photos: Path) -> None:
    write_tar(tmp_path / "s.tar", INPUT)
    for inputs, name, out, message in [
        (photos, "jsonl", None, r"out \(--out\) must be a file or a directory for the format 'jsonl'"),
        (photos, "jsonl", "a.parquet", r"ends in \.parquet, expected \.jsonl; for several formats pass a directory"),
        (photos, "txt", "a.jsonl", "is a file name, but the format 'txt' needs a directory as out"),
        (photos, "webdataset", "a.tar", "is a file name, but the format 'webdataset' needs a directory as out"),
        (photos, "zip", "out", "unknown format 'zip'; known: txt, caption"),
        (tmp_path / "s.tar", "txt", None, r"s\.tar::000/a\.jpg is not a separate file, so no caption"),
        (tmp_path / "s.tar", "open-sora-csv", "a.csv", "is not a separate file, which Open-Sora's trainers need"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(tmp_path / f"state-{message}"[:40], [inputs], [(name, None if out is None else tmp_path / out)])
    with pytest.raises(ValueError, match="shard_size must be an integer of at least 1, got 0"):
        WriterOptions(shard_size=0)
    with pytest.raises(ValueError, match=r"its suffix '\.xml' belongs to no format"):
        format_of("captions.xml")
    assert [format_of(name) for name in (None, "a", "a.jsonl", "a.PARQUET")] == ["txt", "txt", "jsonl", "parquet"]


def test_several_formats_in_one_directory(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    names = ["jsonl", "parquet", "webdataset", "open-sora-csv", "open-sora-plan-json", "txt"]
    run(tmp_path / "state", [photos], [(name, out) for name in names])
    assert {path.name for path in out.iterdir() if path.suffix != ".txt"} == {
        *("captions.jsonl", "part-00000.parquet", "shard-00000.tar", "open_sora.csv", "open_sora_plan.json", "cats"),
    }


def test_an_output_can_be_used_as_an_input(tmp_path: Path, photos: Path) -> None:
    """Captions in shards are found when the shards are the input of another job."""
    run(tmp_path / "state", [photos], [("webdataset", tmp_path / "shards")])
    items = listed(tmp_path / "shards")
    assert [item.caption for item in items] == [one.captions[0] for one in expected(photos) if one.captions]
    run(tmp_path / "second", [tmp_path / "shards"], [("jsonl", tmp_path / "a.jsonl")], readers=ReaderOptions())
    frame = pd.read_json(tmp_path / "a.jsonl", lines=True)
    assert all(note == ["kept existing"] for note in frame["notes"]) and len(frame) == 10
