"""What a folder contains: everything that can be captioned is, and everything else is counted and named."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.jobs import png, read, write_tar

from mindone.pipelines.image_to_text.dataset.readers import InputError, ReaderOptions, list_inputs
from mindone.pipelines.image_to_text.dataset.state.records import Item
from mindone.pipelines.image_to_text.dataset.state.skipped import (
    REASONS,
    SkippedFiles,
    SkippedGroup,
    read_skipped,
    write_skipped,
)


def listing(*inputs: Path | str, **options: Any) -> tuple[list[Item], dict[str, list[str]]]:
    """Return the items, and the names that were skipped for each reason."""
    skipped = SkippedFiles()
    items = list(list_inputs([str(one) for one in inputs], ReaderOptions(**options), skipped))
    assert all(group.count == len(group.names) for group in skipped.groups())
    return items, {group.reason: list(group.names) for group in skipped.groups()}


def keys(items: list[Item]) -> list[str]:
    return [item.key for item in items]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(len(name)))


def write_parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_pipes_and_sockets_are_counted_and_never_opened(tmp_path: Path) -> None:
    write(tmp_path, "in/1.png", "in/2.png")
    for name in ("3.png", "metadata.jsonl", "1.json", "a.tar", "notes"):
        os.mkfifo(tmp_path / "in" / name)
    (tmp_path / "in" / "link.jpg").symlink_to("3.png")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("in/socket.csv")
    items, skipped = listing("in")
    assert keys(items) == ["1", "2"]
    names = ["1.json", "3.png", "a.tar", "link.jpg", "metadata.jsonl", "notes", "socket.csv"]
    assert skipped == {"special": [f"in/{name}" for name in names]}
    assert listing("in/*.png")[1] == {"special": ["in/3.png"]}
    assert listing("in/1.png")[1] == {"special": ["in/metadata.jsonl"]}


def test_shards_beside_images_and_in_subfolders_are_listed_with_them(tmp_path: Path) -> None:
    write(tmp_path, "in/preview.png", "in/b/c/1.jpg")
    for name in ("in/s-0.tar", "in/s-1.tar", "in/b/s-2.tar", "in/b/c.tar"):
        write_tar(tmp_path / name, [("x.png", png(1)), ("x.txt", b"Mine.")])
    items, skipped = listing("in")
    assert keys(items) == ["b/c/1", "b/c/x", "b/s-2/x", "preview", "s-0/x", "s-1/x"] and skipped == {}
    assert [item.caption for item in items] == [None, "Mine.", "Mine.", None, "Mine.", "Mine."]
    assert all(isinstance(read(item), bytes) for item in items)


def test_a_cloned_hugging_face_data_set(tmp_path: Path) -> None:
    """As `git clone` leaves it: hidden files, a card, and Parquet files that `datasets` wrote into a subfolder."""
    import datasets  # takes seconds

    datasets.disable_progress_bars()
    pictures = [{"bytes": png(number), "path": f"{number}.png"} for number in range(3)]
    data = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 2]})
    data = data.cast_column("image", datasets.Image(decode=False))
    for name in (".git/HEAD", ".gitattributes", "README.md"):
        write(tmp_path, f"ds/{name}")
    (tmp_path / "ds" / "data").mkdir()
    data.to_parquet(tmp_path / "ds" / "data" / "train-00000-of-00001.parquet")
    items, skipped = listing("ds")
    assert keys(items) == [f"data/train-00000-of-00001/{number}" for number in range(3)]
    assert [read(item) for item in items] == [png(0), png(1), png(2)] and items[1].columns == {"label": 1}
    assert skipped == {"hidden": ["ds/.git", "ds/.gitattributes"], "other": ["ds/README.md"]}


def test_data_sets_that_were_saved_in_subfolders(tmp_path: Path) -> None:
    import datasets  # takes seconds

    datasets.disable_progress_bars()
    write(tmp_path, "in/a.png")
    data = datasets.Dataset.from_dict({"image": [{"bytes": png(5), "path": None}]})
    data = data.cast_column("image", datasets.Image(decode=False))
    data.save_to_disk(tmp_path / "in" / "x" / "saved")
    items, skipped = listing("in")
    assert keys(items) == ["a", "x/saved/0"] and read(items[1]) == png(5) and skipped == {}


def img2dataset(folder: Path, url: str) -> None:
    """Write what img2dataset writes with --output_format webdataset."""
    folder.mkdir()
    for shard in ("00000", "00001"):
        members = [(f"{shard}0000.jpg", png(int(shard))), (f"{shard}0000.json", b'{"caption": "alt"}')]
        write_tar(folder / f"{shard}.tar", members)
        write_parquet(folder / f"{shard}.parquet", url=[url], key=[f"{shard}0000"], caption=["alt"])
        (folder / f"{shard}_stats.json").write_text('{"count": 1}')


def test_tables_beside_an_archive_of_the_same_name_only_describe_it(tmp_path: Path) -> None:
    img2dataset(tmp_path / "laion", "http://127.0.0.1:9/a.jpg")
    items, skipped = listing("laion")
    assert keys(items) == ["00000/000000000", "00001/000010000"]
    assert [item.locator["kind"] for item in items] == ["tar", "tar"]
    names = ["00000.parquet", "00000_stats.json", "00001.parquet", "00001_stats.json"]
    assert skipped == {"described": [f"laion/{name}" for name in names]}
    # --output_format files: a folder in place of the archive.
    write(tmp_path, "files/00000/000000000.jpg", "files/00000/000000000.json")
    write_parquet(tmp_path / "files" / "00000.parquet", url=["http://127.0.0.1:9/a.jpg"])
    items, skipped = listing("files")
    assert keys(items) == ["00000/000000000"] and skipped == {"described": ["files/00000.parquet"]}


@pytest.mark.parametrize("column", ["url", "URL", "image", "link"])
def test_no_url_in_a_table_of_a_folder_is_listed(tmp_path: Path, column: str) -> None:
    """Only a table that the caller names, or a pattern that names tables, requests a connection."""
    write_parquet(tmp_path / "in" / "meta.parquet", **{column: ["http://127.0.0.1:9/a.jpg"], "text": ["x"]})
    reason = "no_images" if column == "link" else "urls"
    assert listing("in") == ([], {reason: ["in/meta.parquet"]})
    write(tmp_path, "in/sub/1.png")
    reason = {"link": "no_images", "image": "table"}.get(column, "urls")
    items, skipped = listing("in")
    assert keys(items) == ["sub/1"] and skipped == {reason: ["in/meta.parquet"]}
    if column == "link":
        return
    for inputs, options in ((["in/meta.parquet"], {}), (["in/*.parquet"], {}), (["in"], {"include": ("*.parquet",)})):
        items, skipped = listing(*inputs, **options)
        assert [item.locator["kind"] for item in items] == ["url"] and skipped == {}


def test_urls_inside_a_found_table_are_not_downloaded(tmp_path: Path) -> None:
    """A struct of `datasets` may have a URL in place of bytes, and a column of paths a URL among them."""
    struct = [{"bytes": png(1), "path": None}, {"bytes": None, "path": "http://127.0.0.1:9/a.jpg"}]
    write_parquet(tmp_path / "a" / "t.parquet", image=struct)
    items, _ = listing("a")
    assert [read(item) for item in items] == [png(1), "it is a URL, and nothing is downloaded here"]
    write(tmp_path, "b/1.data")
    write_parquet(tmp_path / "b" / "t.parquet", image=["1.data", "http://me:secret@127.0.0.1:9/a.jpg"])
    items, _ = listing("b")
    assert read(items[0]) == png(len("b/1.data"))
    assert "pass the table itself as an input" in str(read(items[1])) and "secret" not in items[1].source


def test_a_folder_of_tables_that_name_files_is_still_listed(tmp_path: Path) -> None:
    write(tmp_path, "pictures/1.png")
    write_parquet(tmp_path / "in" / "t.parquet", image=["../pictures/1.png"])
    items, skipped = listing("in")
    assert [read(item) for item in items] == [png(len("pictures/1.png"))] and skipped == {}
    write(tmp_path, "in/2.png")  # beside images, a table of paths would list them twice
    items, skipped = listing("in")
    assert keys(items) == ["2"] and skipped == {"table": ["in/t.parquet"]}


def test_a_table_without_images_or_pyarrow_does_not_stop_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "in/1.png")
    write_parquet(tmp_path / "in" / "a.parquet", x=[1])
    write_parquet(tmp_path / "in" / "b.parquet", photo=[1])
    assert listing("in")[1] == {"no_images": ["in/a.parquet", "in/b.parquet"]}
    write_parquet(tmp_path / "tables" / "c.parquet", image=[1])
    assert listing("tables") == ([], {"no_images": ["tables/c.parquet"]})
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    items, skipped = listing("in")
    assert keys(items) == ["1"] and skipped == {"pyarrow": ["in/a.parquet", "in/b.parquet"]}


OTHERS = {
    "format": ["a.jxr", "b.HDP", "c.wdp", "d.cur", "e.dcx", "f.bpg", "g.svg", "h.CR2", "i.psd", "j.vob"],
    "no_extension": ["k", "scan.d/l"],
    "table": ["m.csv", "metadata.jsonl", "n.tsv", "orphan.json"],
    "archive": ["o.7z", "p.rar", "q.tar.zst"],
    "caption": ["notes.txt"],
    "hidden": [".cache", ".hidden.png"],
    "system": ["._x.png", ".DS_Store", "@eaDir", "PaxHeaders.12", "Thumbs.db", "__MACOSX"],
    "other": ["r.md", "s.safetensors"],
}


def write_others(folder: Path) -> None:
    write(folder, "x.png", "x.txt", "x.json", "x.npz", "y.png", "y.png.json", "scan.d/z.png")
    folders = (".cache", "@eaDir", "PaxHeaders.12", "__MACOSX")
    write(folder, *(name for names in OTHERS.values() for name in names if name not in folders))
    write(folder, ".cache/1.png", "@eaDir/1.png", "__MACOSX/._x.png", "PaxHeaders.12/x.png", ".DS_Store")
    write(folder, "old.share4v/journal.jsonl", "t.png.partial")


def test_everything_that_is_skipped_is_counted_and_named(tmp_path: Path) -> None:
    write_others(tmp_path / "in")
    items, skipped = listing("in")
    assert keys(items) == ["scan.d/z", "x", "y"]
    expected = {reason: [f"in/{name}" for name in sorted(names)] for reason, names in OTHERS.items()}
    expected["no_extension"] = ["in/k", "in/scan.d/l"]
    assert skipped == expected
    assert set(OTHERS) <= set(REASONS)


def test_include_lists_what_it_names(tmp_path: Path) -> None:
    write_others(tmp_path / "in")
    assert keys(listing("in", include=("*.jxr",))[0]) == ["a"]
    items, skipped = listing("in", include=("*.hdp", "*.cur"))
    assert keys(items) == ["d"] and skipped == {"case": ["in/b.HDP"]}
    assert read(items[0]) == png(len("d.cur"))
    # Without an extension, a pattern selects among what is listed anyway, and files that begin as images do.
    assert keys(listing("in", include=("*",))[0]) == ["k", "scan.d/l", "scan.d/z", "x", "y"]
    assert keys(listing("in/*")[0]) == ["k", "x", "y"]
    (tmp_path / "in" / "k").write_bytes(b"#!/bin/sh")
    assert keys(listing("in", include=("*", "*.jxr"))[0]) == ["a", "scan.d/l", "scan.d/z", "x", "y"]
    assert keys(listing("in", include=("k",))[0]) == ["k"]
    assert keys(listing("in", include=(".*.png",))[0]) == ["._x", ".hidden"]


def test_the_files_that_a_shell_pattern_names_beside_images_are_no_inputs(tmp_path: Path) -> None:
    """`share4v caption-dataset in/*`: the shell names 1.txt too, which is a caption and not a list."""
    write(tmp_path, "in/1.png", "in/2.jpg")
    (tmp_path / "in" / "1.txt").write_text("Mine.")
    (tmp_path / "in" / "2.jpg.json").write_text("{}")
    (tmp_path / "in" / "3.txt").write_text("1.png\n")
    items, _ = listing(*sorted((tmp_path / "in").iterdir()))
    assert [(item.key, item.caption) for item in items] == [("1", "Mine."), ("2", None), ("1.png", None)]


def test_captions_that_differ_in_case_or_normalization_are_found(tmp_path: Path) -> None:
    write(tmp_path, "in/A.JPG", "in/caf\u00e9.png", "in/B.png", "in/c.png")
    for name, text in (("A.TXT", "Of A."), ("cafe\u0301.txt", "Coffee."), ("b.Txt", "Of B."), ("c.txt", "Of c.")):
        (tmp_path / "in" / name).write_text(text)
    (tmp_path / "in" / "C.txt").write_text("Another.")
    items, skipped = listing("in")
    assert {item.key: item.caption for item in items} == {
        "A": "Of A.",
        "B": "Of B.",
        "c": "Of c.",
        "caf\u00e9": "Coffee.",
    }
    files = {item.key: item.locator.get("caption_file") for item in items}
    assert files == {"A": "A.TXT", "B": "b.Txt", "c": None, "caf\u00e9": "cafe\u0301.txt"}
    assert skipped == {"caption": ["in/C.txt"]}
    (tmp_path / "list.txt").write_text("in/A.JPG\nin/caf\u00e9.png\n")
    items, _ = listing("list.txt", "in/c.png")
    assert [item.caption for item in items] == ["Of A.", "Coffee.", "Of c."]


def test_captions_that_are_not_read_are_named(tmp_path: Path) -> None:
    write(tmp_path, "in/1.png", "in/2.jpg", "in/2.png")
    for name in ("1.txt", "2.txt"):
        (tmp_path / "in" / name).write_text("Mine.")
    assert listing("in")[1] == {"ambiguous": ["in/2.txt"]}
    (tmp_path / "captions").mkdir()
    skipped = listing("in", caption_root="captions")[1]
    full_names = ["in/2.jpg", "in/2.png"]
    assert skipped == {"ambiguous": ["in/2.txt"], "other_caption": ["in/1.txt"], "full_name": full_names}


def test_the_outputs_of_jobs_are_no_inputs(tmp_path: Path) -> None:
    write(tmp_path, "in/1.png")
    for name in ("in/own.tar", "in/shard-0.tar", "in/other.tar"):
        write_tar(tmp_path / name, [("x.png", png(1))])
    write_parquet(tmp_path / "in" / "captions.parquet", image=[png(3)])
    (tmp_path / "in" / "captions.parquet.share4v").mkdir()
    (tmp_path / "in" / ".share4v").mkdir()
    (tmp_path / "in" / ".share4v" / "output-webdataset.json").write_text(json.dumps({"names": ["shard-0.tar"]}))
    items, skipped = listing("in", own_outputs=((str(tmp_path / "in"), "own*"),))
    assert keys(items) == ["1", "other/x"]
    assert skipped == {"output": ["in/captions.parquet", "in/shard-0.tar"]}


def test_a_line_for_each_reason() -> None:
    group = SkippedGroup("format", 7, ("a.jxr", "b.hdp", "c.jxr", "d.bpg", "e.bpg", "f.dcx"))
    assert group.line() == (
        "skipped images or videos in formats that are not listed by default: 7 (a.jxr, b.hdp, c.jxr, d.bpg, e.bpg, "
        "...); to caption them too, add include (--include) '*' and include (--include) '*.jxr' and include "
        "(--include) '*.hdp' and include (--include) '*.bpg'"
    )
    assert group.line(with_advice=False).endswith("e.bpg, ...)")
    assert SkippedGroup("hidden", 1, ("caf\udce9",)).line() == r"skipped hidden files or folders: 1 ($'caf\xe9')"


def test_what_was_skipped_is_stored(tmp_path: Path) -> None:
    skipped = SkippedFiles()
    for number in range(1000):
        skipped.note("other", f"{number}.md")
    skipped.note("hidden", "caf\udce9")
    groups = skipped.groups()
    assert [(group.reason, group.count, len(group.names)) for group in groups] == [
        ("hidden", 1, 1),
        ("other", 1000, 20),
    ]
    write_skipped(tmp_path / "skipped.json", groups)
    assert read_skipped(tmp_path / "skipped.json") == groups
    for damaged in ("", "{", "[1]", '[{"reason": 1}]', "[" * 9999):
        (tmp_path / "skipped.json").write_text(damaged)
        assert read_skipped(tmp_path / "skipped.json") == ()
    assert read_skipped(tmp_path / "gone.json") == ()


def test_an_error_about_a_folder_names_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        listing("gone")


def test_a_named_file_beside_a_named_image_is_noted(tmp_path: Path) -> None:
    """`caption-dataset cats.jpg cats.txt`, as a shell expands `*`: cats.txt is a caption, and not silently."""
    write(tmp_path, "cats.png", "a.png")
    (tmp_path / "cats.txt").write_text(f"{tmp_path / 'a.png'}\n", encoding="utf-8")
    items, skipped = listing(tmp_path / "cats.png", tmp_path / "cats.txt")
    assert keys(items) == ["cats"] and skipped == {"beside": [str(tmp_path / "cats.txt")]}
    assert keys(listing(tmp_path / "cats.txt")[0]) == ["a"]
