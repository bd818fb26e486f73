"""Archives as people make them, with tar, zip and Python: every image with its caption, nothing skipped silently."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from helpers.jobs import listed, png, read, run, write_tar

from mindone.pipelines.image_to_text.dataset.readers import Reader, ReaderOptions, list_inputs, read_item, samples
from mindone.pipelines.image_to_text.dataset.state.records import Item, item_from_line, to_line
from mindone.pipelines.image_to_text.dataset.state.skipped import SkippedFiles


def listing(*inputs: Path | str, **options: Any) -> tuple[list[Item], dict[str, list[str]]]:
    """Return the items, and the names that were skipped for each reason, without the archive's name."""
    skipped = SkippedFiles()
    items = list(list_inputs([str(one) for one in inputs], ReaderOptions(**options), skipped))
    return items, {group.reason: [name.rpartition("::")[2] for name in group.names] for group in skipped.groups()}


def captions(items: list[Item]) -> dict[str, str | None]:
    return {item.key: item.caption for item in items}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images with captions, in names as people write them, and what a Mac leaves beside them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("a.JPG", "b.png", "v1.2 photo.png")):
        (folder / name).write_bytes(png(number))
    for name, text in (("a.TXT", "Of a."), ("b.txt", "Of b."), ("v1.2 photo.txt", "Of v1.2."), ("notes.txt", "None.")):
        (folder / name).write_text(text)
    for name in ("._a.JPG", ".DS_Store", "__MACOSX/._b.png", ".git/c.png", "PaxHeaders.7/b.png", "d.jxr", "README"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png(9))
    return folder


def pack(folder: Path, command: str, archive: Path) -> None:
    """Pack a folder with a program of the system; the shell expands the pattern as it does for users."""
    subprocess.run(
        ["bash", "-c", f"shopt -s dotglob; {command}"], cwd=folder, check=True, env={**os.environ, "A": str(archive)}
    )


COMMANDS = {
    "photos.tar": 'tar cf "$A" *.JPG *.png *.txt *.TXT *.jxr README __MACOSX .git PaxHeaders.7 .DS_Store',
    "photos.tar.gz": 'tar czf "$A" *',
    "photos.tgz": 'tar czf "$A" .',
    "photos.zip": 'zip -q -r "$A" .',
}


@pytest.mark.parametrize("name", [*COMMANDS, "pax.tar", "stored.zip", "bzip2.zip", "python.zip"])
def test_archives_of_other_programs(tmp_path: Path, folder: Path, name: str) -> None:
    """Also if all captions come after all images, as `tar cf s.tar *.png *.txt` writes them."""
    archive = tmp_path / name
    if name == "python.zip":
        shutil.make_archive(str(tmp_path / "python"), "zip", folder)
    else:
        more = {"pax.tar": 'tar --format=pax -cf "$A" *', "stored.zip": 'zip -q -0 -r "$A" *'}
        more["bzip2.zip"] = 'zip -q -Z bzip2 -r "$A" *'
        pack(folder, {**COMMANDS, **more}[name], archive)
    items, skipped = listing(archive)
    stem = name.partition(".")[0]
    assert captions(items) == {f"{stem}/a": "Of a.", f"{stem}/b": "Of b.", f"{stem}/v1": "Of v1.2."}
    found = {item.key.rpartition("/")[2]: read(item_from_line(to_line(item))) for item in items}
    assert found == {"a": png(0), "b": png(1), "v1": png(2)}
    expected = {"format": ["d.jxr"], "no_extension": ["README"], "caption": ["notes.txt"]}
    expected["hidden"] = [".git/c.png"]
    expected["system"] = sorted(["._a.JPG", ".DS_Store", "__MACOSX/._b.png", "PaxHeaders.7/b.png"])
    assert {reason: sorted(one.removeprefix("./") for one in names) for reason, names in skipped.items()} == expected
    from_folder = listing(folder)[0]
    assert [read(item) for item in from_folder] == [png(0), png(1), png(2)]  # the folder reader lists the same


def test_one_member_per_name_in_the_output(tmp_path: Path, folder: Path) -> None:
    """The new shard has the caption once, not a.txt and a.TXT; webdataset reads it."""
    import webdataset

    pack(folder, COMMANDS["photos.tar"], tmp_path / "photos.tar")
    run(tmp_path / "state", [tmp_path / "photos.tar"], [("webdataset", tmp_path / "out")])
    with tarfile.open(tmp_path / "out" / "photos.tar") as archive:
        names = archive.getnames()
        texts = {name: archive.extractfile(name).read() for name in names if name.lower().endswith(".txt")}
    assert sorted(names) == ["a.JPG", "a.txt", "b.png", "b.txt", "v1.2 photo.png", "v1.2 photo.txt"]
    assert texts == {"a.txt": b"Of a.\n", "b.txt": b"Of b.\n", "v1.2 photo.txt": b"Of v1.2.\n"}
    found = list(webdataset.WebDataset(str(tmp_path / "out" / "photos.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == ["a", "b", "v1"]
    assert found[0]["jpg"] == png(0) and found[0]["txt"] == b"Of a.\n"


def test_samples_of_unordered_archives_are_copied_completely(tmp_path: Path) -> None:
    members = [(f"{n}.{kind}", f"{kind} {n}".encode()) for kind in ("cls", "json") for n in (2, 0, 1)]
    members[3:3] = [(f"{n}.png", png(n)) for n in range(3)]
    write_tar(tmp_path / "s.tar", [*members, ("1.txt", b"Mine.")], pax_headers={"comment": "c" * 600})
    run(tmp_path / "state", [tmp_path / "s.tar"], [("webdataset", tmp_path / "out")])
    with tarfile.open(tmp_path / "out" / "s.tar") as archive:
        found = {info.name: archive.extractfile(info).read() for info in archive}
    assert {name: data for name, data in found.items() if not name.endswith(".txt")} == dict(members)
    assert found["1.txt"] == b"Mine.\n" and len(found) == 12


def test_names_that_differ_only_in_case_or_normalization(tmp_path: Path) -> None:
    members = [("A.jpg", png(0)), ("a.jpg", png(1)), ("a.txt", b"Of a."), ("B.JPEG", png(2)), ("caf\u00e9.png", png(3))]
    members += [("cafe\u0301.txt", b"Coffee."), ("b.Txt", b"Of B."), ("c.png", png(4)), ("c.TXT", b"Of c.")]
    write_tar(tmp_path / "s.tar", members)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    for path in (tmp_path / "s.tar", tmp_path / "s.zip"):
        items, skipped = listing(path)
        assert [read(item) for item in items] == [png(n) for n in range(5)] and skipped == {}
        expected = [None, "Of a.", "Of B.", "Coffee.", "Of c."]
        assert [item.caption for item in items] == expected
        assert [item.locator["name"] for item in items] == ["A", "a", "b", "cafe\u0301", "c"]


def test_appended_members_are_samples_of_their_own(tmp_path: Path) -> None:
    """`tar rf` appends a file again; nothing is overwritten silently."""
    write_tar(
        tmp_path / "s.tar",
        [("1.png", png(0)), ("1.txt", b"Old."), ("2.png", png(1)), ("1.png", png(2)), ("1.txt", b"New.")],
    )
    items, _ = listing(tmp_path / "s.tar")
    assert [(item.key, item.caption, read(item)) for item in items] == [
        ("s/1", "Old.", png(0)),
        ("s/2", None, png(1)),
        ("s/1.png", "New.", png(2)),
    ]


def test_links_ambiguous_captions_and_nested_archives_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("d.jpg", "d.png"):
        (folder / name).write_bytes(png(len(name)))
    (folder / "d.txt").write_text("Which?")
    (folder / "link.png").symlink_to("d.png")
    os.link(folder / "d.png", folder / "hard.png")
    (folder / "inner.zip").write_bytes(b"x")
    (folder / "t.csv").write_text("x")
    pack(folder, 'tar cf "$A" d.jpg d.png d.txt hard.png link.png inner.zip t.csv', tmp_path / "s.tar")
    items, skipped = listing(tmp_path / "s.tar")
    assert [item.key for item in items] == ["s/d.jpg", "s/d.png"]
    assert skipped == {
        "nested": ["inner.zip"],
        "table": ["t.csv"],
        "link": ["hard.png", "link.png"],
        "ambiguous": ["d.txt"],
    }
    subprocess.run(
        ["tar", "cf", str(tmp_path / "s.tar"), "--dereference", "--hard-dereference", "."], cwd=folder, check=True
    )
    assert len(listed(tmp_path / "s.tar")) == 4  # as the message advises


def test_include_and_exclude_apply_to_members(tmp_path: Path) -> None:
    members = [("x/a.jpg", png(0)), ("x/a_mask.png", png(1)), ("y/b.png", png(2)), ("c.jxr", png(3))]
    write_tar(tmp_path / "s.tar", members)
    keys = [item.key for item in listed(tmp_path / "s.tar", exclude=("*_mask.png", "y"))]
    assert keys == ["s/x/a"]
    assert [item.key for item in listed(tmp_path / "s.tar", include=("*.jxr",))] == ["s/c"]
    assert len(listed(tmp_path, include=("*.tar",))) == 3


def test_memory_holds_names_on_disk_only(tmp_path: Path) -> None:
    """An archive with 1,000 samples, all captions after all images, is listed with the captions, in order."""
    import tracemalloc

    count = 1_000
    with (tmp_path / "s.tar").open("wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for suffix, data in (("png", png(1)), ("txt", b"Caption %d")):
            for number in range(count):
                text = data % number if suffix == "txt" else data
                info = tarfile.TarInfo(f"{number:06}.{suffix}")
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text))
            archive.members = []
    tracemalloc.start()
    for number, item in enumerate(list_inputs([str(tmp_path / "s.tar")])):
        assert item.key == f"s/{number:06}" and item.caption == f"Caption {number}"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == count - 1 and peak < 2**20


def test_too_many_texts_of_a_compressed_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_STORED_TEXTS", 5000)
    write_tar(tmp_path / "s.tar.gz", [("0.png", png(0)), *((f"{n}.txt", bytes(1000)) for n in range(20))], "w:gz")
    items = listed(tmp_path / "s.tar.gz")
    assert read(items[0]) == png(0) and "more than 5,000 bytes" in str(read(items[1])) and len(items) == 2


# ---- ZIP


def zip_bytes(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def test_zip_with_data_before_it_and_a_comment(tmp_path: Path) -> None:
    """As self-extracting archives have."""
    data = bytearray(zip_bytes([("a.png", png(1)), ("b.png", png(2))]))
    comment = b"PK\5\6 in a comment " * 40
    data[-2:] = struct.pack("<H", len(comment))
    (tmp_path / "s.zip").write_bytes(b"#!/bin/sh\n" * 100 + bytes(data) + comment)
    assert [read(item) for item in listed(tmp_path / "s.zip")] == [png(1), png(2)]


def test_zip64_as_a_stream_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path, 'printf x > a.png; cat a.png | zip -q "$A" -', tmp_path / "stream.zip")
    assert [item.key for item in listed(tmp_path / "stream.zip", include=("-",))] == ["stream/-"]
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive, archive.open("a.png", "w", force_zip64=True) as file:
        file.write(png(1))
    assert [read(item) for item in listed(tmp_path / "s.zip")] == [png(1)]
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)  # as if there were more entries than 16 bits can count
    (tmp_path / "many.zip").write_bytes(zip_bytes([("a.png", png(1)), ("b.png", png(2))]))
    assert b"PK\6\6" in (tmp_path / "many.zip").read_bytes()
    assert [read(item) for item in listed(tmp_path / "many.zip")] == [png(1), png(2)]


def test_names_in_zip_files(tmp_path: Path) -> None:
    """UTF-8 with and without the flag, code page 437, Windows' backslashes, and a path that leaves the folder."""
    data = zip_bytes([("AAAA.png", png(1)), ("BBBB.png", png(2)), ("C\\D.png", png(3)), ("../e.png", png(4))])
    data = data.replace(b"AAAA", "\u00e9\u00e9".encode()).replace(b"BBBB", b"caf\x82")
    (tmp_path / "s.zip").write_bytes(data)
    items = listed(tmp_path / "s.zip")
    assert [item.key for item in items] == ["s/\u00e9\u00e9", "s/caf\u00e9", "s/C/D", "s/__/e"]
    assert [read(item) for item in items] == [png(n) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.replace(b"PK\1\2", b"PK\1\3", 1), "damaged after 0 images: its directory is damaged"),
        (lambda data: data[:-30], "it is truncated, or no ZIP archive"),
        (lambda data: b"this is no archive" * 9, "it is truncated, or no ZIP archive"),
        (lambda data: data[40:], "its directory is damaged"),
    ],
)
def test_damaged_zip_files(tmp_path: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    (tmp_path / "s.zip").write_bytes(change(zip_bytes([("a.png", png(1)), ("b.png", png(2))])))
    assert reason in str(read(listed(tmp_path / "s.zip")[-1]))


def test_a_damaged_or_unreadable_entry_fails_alone(tmp_path: Path) -> None:
    data = bytearray(zip_bytes([("a.png", png(1)), ("b.png", png(2)), ("c.png", png(3))], zipfile.ZIP_STORED))
    data[data.index(png(1)) + 30] ^= 1
    second = data.rindex(b"b.png") - 46  # in the directory
    data[second + 10] = 99
    (tmp_path / "s.zip").write_bytes(data)
    found = [read(item) for item in listed(tmp_path / "s.zip")]
    assert "checksum is wrong" in str(found[0]) and "compressed by method 99" in str(found[1]) and found[2] == png(3)
    pack(tmp_path, 'printf x > a.png; zip -q -P secret "$A" a.png', tmp_path / "locked.zip")
    assert "it is encrypted" in str(read(listed(tmp_path / "locked.zip")[0]))


def test_zip_bombs_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that share their data, and one that is larger than its size states or than any image may be."""
    data = zip_bytes([("a.png", bytes(100_000))])
    start = data.index(b"PK\1\2")
    entry, end = data[start : data.index(b"PK\5\6")], bytearray(data[data.index(b"PK\5\6") :])
    struct.pack_into("<2H2L", end, 8, 50, 50, 50 * len(entry), start)
    (tmp_path / "overlap.zip").write_bytes(data[:start] + entry * 50 + end)
    assert "its entries overlap" in str(read(listed(tmp_path / "overlap.zip")[-1]))
    small = bytearray(data)
    for at in (22, start + 24):
        struct.pack_into("<L", small, at, 50)
    (tmp_path / "lie.zip").write_bytes(small)
    assert "checksum is wrong" in str(read(listed(tmp_path / "lie.zip")[0]))
    monkeypatch.setattr("mindone.pipelines.image_to_text.dataset.readers.reader.MAX_IMAGE_BYTES", 50_000)
    (tmp_path / "large.zip").write_bytes(data)
    assert read(listed(tmp_path / "large.zip")[0]) == "it has 100,000 bytes; at most 50,000 are read"


def test_zip_shards_in_a_folder_become_new_shards(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        members = [(f"{number}.png", png(number)), (f"{number}.txt", b"Mine."), (f"{number}.json", b'{"n": 1}')]
        (tmp_path / "in" / f"s{number}.zip").write_bytes(zip_bytes(members))
    items = listed(tmp_path / "in")
    assert captions(items) == {"s0/0": "Mine.", "s1/1": "Mine."} and items[0].columns == {"n": 1}
    assert captions(listed(tmp_path / "in" / "s{0..1}.zip")) == captions(items)
    run(tmp_path / "state", [tmp_path / "in"], [("webdataset", tmp_path / "out")])
    with tarfile.open(tmp_path / "out" / "shard-00000.tar") as archive:
        assert archive.extractfile("000000001.png").read() == png(1)
        assert archive.extractfile("000000001.txt").read() == b"Mine.\n"


# ---- videos


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.zip"])
def test_videos_in_archives(tmp_path: Path, name: str) -> None:
    import av
    import numpy as np

    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width, stream.height = 32, 16
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 20 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = clip.read_bytes()
    members = [("a.mp4", data), ("a.txt", b"Mine."), ("broken.MOV", data[:200]), ("c.png", png(1))]
    if name.endswith("zip"):
        (tmp_path / name).write_bytes(zip_bytes(members))
    else:
        write_tar(tmp_path / name, members, "w:gz" if name.endswith("gz") else "w")
    items = listed(tmp_path / name, frames=3, frame_mode="even")
    assert captions(items) == {"s/a": "Mine.", "s/broken": None, "s/c": None}
    [expected] = [read_item(item) for item in listed(clip, frames=3, frame_mode="even")]
    picture = read_item(items[0])
    assert picture.sha256 == expected.sha256 and picture.columns == expected.columns and len(picture.frames) == 3
    assert all(np.array_equal(one, other) for one, other in zip(picture.frames, expected.frames, strict=True))
    assert Reader().data(items[0]) == data and read(items[2]) == png(1)
    with pytest.raises(Exception, match=r"^(?!.*/tmp)"):
        read_item(items[1])


def test_the_metadata_of_a_sample_may_be_far_away(tmp_path: Path) -> None:
    members = [(f"{n}.png", png(n)) for n in range(3)] + [
        (f"{n}.json", json.dumps({"n": n}).encode()) for n in (2, 0, 1)
    ]
    write_tar(tmp_path / "s.tar.xz", members, "w:xz")
    assert [item.columns for item in listed(tmp_path / "s.tar.xz")] == [{"n": 0}, {"n": 1}, {"n": 2}]
