"""Folders, patterns and list files: each file is listed once, with a unique key, in a deterministic order."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from helpers.jobs import listed, png, read, write_tar
from helpers.paths import ROOT, TESTS

from mindone.pipelines.image_to_text.dataset.inference.caption_cache import CaptionCache
from mindone.pipelines.image_to_text.dataset.readers import InputError, ItemError, Reader, read_item
from mindone.pipelines.image_to_text.dataset.readers.downloads import DownloadOptions
from mindone.pipelines.image_to_text.dataset.readers.patterns import expand_braces, matches, split_pattern
from mindone.pipelines.image_to_text.dataset.state.keys import fold, without_suffix
from mindone.pipelines.image_to_text.dataset.state.records import Item


def keys(items: list[Item]) -> list[str]:
    return [item.key for item in items]


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(len(name)))


def test_a_folder_is_listed_in_name_order(tmp_path: Path) -> None:
    write_images(
        tmp_path, "b/2.PNG", "b/10.jpg", "a.webp", "b.gif", "b/c/1.Tiff", ".hidden.png", ".git/1.png", "._a.webp"
    )
    write_images(tmp_path, "notes.md", "a.txt.bak", "x.share4v/1.png", "b-1.bmp")
    items = listed(tmp_path)
    assert keys(items) == ["a", "b/10", "b/2", "b/c/1", "b-1", "b"]
    assert [item.number for item in items] == list(range(6))
    assert [item.path for item in items] == [item.source for item in items]
    assert all(read(item) == Path(item.source).read_bytes() for item in items)
    picture = read_item(items[0])
    assert picture.frames == (png(6),) and picture.sha256 == sha256(png(6)).hexdigest() and not picture.columns
    assert keys(listed(tmp_path, hidden=True))[:3] == ["._a", ".git/1", ".hidden"]


def test_sources_show_relative_inputs_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "photos/cats/1.png")
    monkeypatch.chdir(tmp_path)
    [item] = listed("photos/")
    assert (item.key, item.source, item.path) == ("cats/1", "photos/cats/1.png", str(tmp_path / "photos/cats/1.png"))
    monkeypatch.chdir("/")
    assert read(item) == png(len("photos/cats/1.png"))


@pytest.mark.parametrize(
    "name",
    [
        "a b.png",
        "it's.png",
        'say "hi".png',
        "line\nbreak.png",
        "tab\t.png",
        "caf\u00e9.png",
        "cafe\u0301.png",
        "\u2028.png",
        "caf\udce9.png",
        "猫/🐈.png",
        "%20.png",
        "-rf.png",
        "a\\b.png",
        "[1].png",
        "{a,b}.png",
        "#1.png",
    ],
)
def test_unusual_file_names(tmp_path: Path, name: str) -> None:
    write_images(tmp_path / "photos", name)
    [item] = listed(tmp_path / "photos")
    assert item.key == name.removesuffix(".png") and read(item) == png(len(name))
    assert listed(tmp_path / "photos" / name) == [
        Item(0, name.rpartition("/")[2].removesuffix(".png"), item.source, item.locator)
    ]


def test_the_key_of_a_long_name_is_shortened(tmp_path: Path) -> None:
    write_images(tmp_path, "x" * 250 + ".png", "x" * 251 + ".jpg")
    found = keys(listed(tmp_path))
    assert len(set(found)) == 2 and all(len(key) <= 240 for key in found)


def test_keys_of_files_with_the_same_stem_include_the_extension(tmp_path: Path) -> None:
    """The keys of the other files do not change."""
    write_images(
        tmp_path, "cats/1.jpg", "cats/1.png", "cats/2.jpg", "dogs/1.jpg", "3.jpg", "3.jpg.png", "A.jpg", "a.png"
    )
    found = {Path(item.source).name: item.key for item in listed(tmp_path) if "dogs" not in item.source}
    assert found == {
        "1.jpg": "cats/1.jpg",
        "1.png": "cats/1.png",
        "2.jpg": "cats/2",
        "3.jpg": "3",
        "3.jpg.png": "3.jpg.png",
        "A.jpg": "A.jpg",
        "a.png": "a.png",
    }
    (tmp_path / "cats" / "1.jpg").unlink()
    assert keys(listed(tmp_path / "cats")) == ["1", "2"]


def test_keys_and_order_of_many_similar_names(tmp_path: Path) -> None:
    """Compared with a direct implementation: a key includes the extension if several files share the stem."""
    draw, names = random.Random(5), {f"n{number}.png" for number in range(1000)}
    letters = ["a", "A", "b", "-", ".", "\u00e9", "e\u0301", "\u00df", "ss", "\udce9"]
    for _ in range(1500):
        suffix = draw.choice([".png", ".PNG", ".jpg", ".jpg.png"])
        names.add("x" + "".join(draw.choices(letters, k=draw.randint(1, 4))) + suffix)
    for name in names:
        (tmp_path / name).touch()
    stems = Counter(fold(without_suffix(name)) for name in names)
    full_names = Counter(fold(name) for name in names)
    write_images(tmp_path, "x/1.png", "x-/1.png")
    found, written = listed(tmp_path), Counter[str]()
    assert [item.source.removeprefix(f"{tmp_path}/") for item in found] == [
        name + "/1.png" * (name in ("x", "x-")) for name in sorted({*names, "x", "x-"}, key=os.fsencode)
    ]
    for item in found:
        name = item.source.removeprefix(f"{tmp_path}/")
        stem = without_suffix(name)
        if name not in names or (stems[fold(stem)] == 1 and fold(stem) not in full_names):
            assert item.key == stem
        else:
            written[fold(name)] += 1
            assert item.key == name + (f"~{written[fold(name)]}" if written[fold(name)] > 1 else "")
    assert len(written) > 100 and max(written.values()) > 2


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    write_images(tmp_path, "photos/cats/1.png", "elsewhere/2.png")
    photos = tmp_path / "photos"
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "3.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (photos / "cats" / "up").symlink_to(photos)
    (tmp_path / "elsewhere" / "back").symlink_to(photos)
    (photos / "gone.png").symlink_to("nowhere.png")
    (photos / "self.png").symlink_to("self.png")
    os.mkfifo(photos / "pipe.png")
    items = listed(photos)
    assert sorted(keys(items)) == ["3", "cats/1", "gone", "linked/2", "self"]
    reasons = {item.key: read(item) for item in items}
    assert reasons["gone"] == "there is no such file" and "symbolic links" in str(reasons["self"])
    assert reasons["3"] == reasons["linked/2"] == png(len("elsewhere/2.png"))


def test_an_unreadable_directory_is_one_failed_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "1.png", "closed/2.png", "open/3.png")
    scandir = os.scandir

    def scan(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)  # root can read everything
    items = listed(tmp_path)
    assert [isinstance(read(item), bytes) for item in items] == [True, False, True]
    assert read(items[1]) == "the directory cannot be read: Permission denied"


def test_include_and_exclude(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg", "b.png", "cats/a.jpg", "cats/old/a.jpg", "dogs/a.jpg", "notes.txt")
    assert keys(listed(tmp_path, include=("*.jpg",))) == ["a", "cats/a", "cats/old/a", "dogs/a"]
    assert keys(listed(tmp_path, include=("cats/*.jpg", "b.*"))) == ["b", "cats/a"]
    assert keys(listed(tmp_path, exclude=("old", "dogs/**"))) == ["a", "b", "cats/a"]
    assert keys(listed(tmp_path / "**" / "a.jpg")) == ["a", "cats/a", "cats/old/a", "dogs/a"]
    assert keys(listed(tmp_path / "*.jpg")) == ["a"]
    assert keys(listed(tmp_path / "c*" / "*.jpg")) == ["cats/a"]
    assert keys(listed(tmp_path / "{cats,dogs}" / "a.jpg")) == ["a", "a.jpg"]


def test_patterns() -> None:
    assert matches("a/b/c.png", "a/**/c.png") and matches("a/c.png", "a/**/c.png") and matches("a/c.png", "**/c.png")
    assert not matches("a/b/c.png", "*/c.png") and not matches("a/b", "./b") and matches("b", "./b")
    assert matches("a/[1].png", "a/[[]1].png") and matches("a/c.PNG", "*.[Pp][Nn][Gg]")
    assert split_pattern("/data/*.jpg") == ("/data", "./*.jpg") and split_pattern("/*/a.jpg") == ("/", "*/a.jpg")
    assert expand_braces("a-{3..1}{x,y}") == ["a-3x", "a-3y", "a-2x", "a-2y", "a-1x", "a-1y"]
    assert expand_braces("{008..010}.tar")[0] == "008.tar" and expand_braces("{a}.png") == ["{a}.png"]


def test_several_inputs_are_listed_in_the_given_order(tmp_path: Path) -> None:
    write_images(tmp_path, "x/imgs/1.png", "y/imgs/1.png", "z/1.png", "2.png")
    assert keys(listed(tmp_path / "z", tmp_path / "2.png", tmp_path / "x" / "imgs", tmp_path / "y" / "imgs")) == [
        "z/1",
        "2",
        "imgs/1",
        "imgs~2/1",
    ]


def test_files_that_two_inputs_share_are_listed_once(tmp_path: Path) -> None:
    write_images(tmp_path, "photos/cats/1.png", "photos/2.png")
    photos = tmp_path / "photos"
    assert keys(listed(photos, photos / "cats", photos / "2.png", photos)) == ["photos/2", "photos/cats/1"]


def test_existing_captions_beside_the_images(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "2.png", "3.png", "4.jpg", "4.png", "5.png", "6.png", "7.png")
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbfOne.\r\n")
    (tmp_path / "2.caption").write_text("Two.")
    (tmp_path / "3.txt").write_text("")
    (tmp_path / "4.txt").write_text("Ambiguous: two images have this stem.")
    (tmp_path / "5.txt").write_text("First")
    (tmp_path / "5.caption").write_text("Second")
    (tmp_path / "6.txt").write_bytes(b"x" * 2**21)
    (tmp_path / "7.txt").write_text(" \n")
    (tmp_path / "7.caption").write_text("Seven.")
    items = {item.key: item for item in listed(tmp_path)}
    assert {key: item.caption for key, item in items.items()} == {
        "1": "One.",
        "2": "Two.",
        "3": None,
        "4.jpg": None,
        "4.png": None,
        "5": "First",
        "6": None,
        "7": "Seven.",
    }
    assert "its existing caption cannot be read: 6.txt is larger" in str(read(items["6"]))
    assert listed(tmp_path / "5.png", caption_suffixes=(".caption",))[0].caption == "Second"


def test_existing_captions_under_another_root(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", "cats/1.png", "cats/2.png", "3.png")
    write_images(tmp_path / "more", "1.png")
    (tmp_path / "photos" / "cats" / "1.txt").write_text("Beside it.")
    (tmp_path / "captions" / "cats").mkdir(parents=True)
    (tmp_path / "captions" / "cats" / "2.txt").write_text("Under the root.")
    (tmp_path / "captions" / "3.caption").write_text("Three.")
    found = listed(tmp_path / "photos", caption_root=str(tmp_path / "captions"))
    assert [(item.key, item.caption) for item in found] == [
        ("3", "Three."),
        ("cats/1", None),
        ("cats/2", "Under the root."),
    ]
    assert not any(item.caption for item in listed(tmp_path / "photos/cats/1.png", caption_root=str(tmp_path / "none")))


def test_a_list_file(tmp_path: Path) -> None:
    write_images(tmp_path, "photos/ 1.png", "photos/2.png", "other/2.png", "photos/caf\udce9.png")
    (tmp_path / "other" / "2.txt").write_text("Two.")
    outside = tmp_path.parent / "outside.png"
    lines = [b"\xef\xbb\xbfphotos/ 1.png\r", b"", b"photos/2.png", str(tmp_path / "other/2.png").encode()]
    lines += [b"photos/caf\xe9.png", b"./photos/../photos/2.png", bytes(outside), b"nul\0.png", b"http://[x/1.png"]
    (tmp_path / "list.txt").write_bytes(b"\n".join(lines))
    items = listed(tmp_path / "list.txt")
    assert (
        keys(items)
        == [
            "photos/ 1",
            "photos/2",
            "other/2",
            "photos/caf\udce9",
            "photos/2.png",  # listed twice: two inputs
            str(outside)[1:].removesuffix(".png"),
            "nul_",
            "http_/[x/1",
        ]
    )
    assert items[2].caption == "Two." and items[1].source == str(tmp_path / "photos/2.png")
    assert [isinstance(read(item), bytes) for item in items] == [True] * 5 + [False] * 3
    assert read(items[5]) == "there is no such file" and read(items[6]) == "the path contains a null character"
    rooted = listed(tmp_path / "list.txt", image_root=str(tmp_path / "photos"))
    assert rooted[1].source == str(tmp_path / "photos" / "photos" / "2.png")


def test_repeated_names_in_a_list_file(tmp_path: Path) -> None:
    write_images(tmp_path, "1.jpg", "1.png")
    (tmp_path / "list.txt").write_text("1.jpg\n1.png\n1.jpg\n1.jpg\n")
    assert keys(listed(tmp_path / "list.txt")) == ["1", "1.png", "1.jpg", "1.jpg~2"]


def test_urls_are_downloaded(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if "1.png" in self.path else 404)
            self.end_headers()
            self.wfile.write(png(1))

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "list.txt").write_text(f"{base}/a/1.png?x=1\n{base}/a/2.png\nfile://{tmp_path}/no%20file.png\n")
        items = listed(tmp_path / "list.txt")
        assert keys(items) == ["127.0.0.1/a/1", "127.0.0.1/a/2", "no file"]
        reader = Reader(downloads=DownloadOptions(url_private=True))
        assert reader.data(items[0]) == png(1)
        with pytest.raises(ItemError, match="the download failed: the server answered 404 Not Found"):
            reader.data(items[1])
        assert read(items[2]) == "there is no such file"
        assert "an address that is not public: allow such addresses with url_private" in str(read(items[0]))
        server.shutdown()


def test_unreadable_files_have_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "1.png", "2.png", "large.png")
    (tmp_path / "empty.png").touch()
    items = {item.key: item for item in listed(tmp_path)}
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").mkdir()
    monkeypatch.setattr("mindone.pipelines.image_to_text.dataset.readers.image_bytes.MAX_IMAGE_BYTES", 10)
    assert read(items["1"]) == "there is no such file"
    assert read(items["2"]) == "not a regular file"
    assert read(items["empty"]) == "it is empty (0 bytes)"
    assert read(items["large"]) == f"it has {len(png(9))} bytes; at most 10 are read"
    with pytest.raises(ItemError, match="unknown kind of locator 'new': another version listed the inputs"):
        read_item(Item(0, "a", "a", {"kind": "new"}))


def test_invalid_inputs_are_rejected_immediately(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "notes.md")
    for inputs, message in [
        ((tmp_path / "gone",), "there is no such file or directory"),
        ((tmp_path / "gone" / "*.png",), "there is no directory"),
        ((tmp_path / "notes.md",), "its name does not tell what it is"),
        (("",), "'' is not a path"),
        ((), "expected a list of paths"),
    ]:
        with pytest.raises(InputError, match=message):
            listed(*inputs)
    with pytest.raises(InputError, match="unknown kind of input '7z': expected one of folder, file"):
        listed(tmp_path, kind="7z")
    with pytest.raises(InputError, match="is not a directory"):
        listed(tmp_path, image_root="gone")


def test_the_kind_option_overrides_the_name(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png")
    (tmp_path / "paths").write_text("1.png\n")
    assert keys(listed(tmp_path / "paths", kind="list")) == ["1"]


def test_a_folder_of_shards_is_one_data_set(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number in (10, 2):
        write_tar(tmp_path / "shards" / f"s-{number:02}.tar", [("a.png", png(number))])
    assert keys(listed(tmp_path / "shards")) == ["s-02/a", "s-10/a"]
    assert keys(listed(tmp_path / "shards" / "s-{02..02}.tar", tmp_path / "shards" / "s-1*.tar")) == [
        "s-02/a",
        "shards/s-10/a",
    ]
    write_images(tmp_path / "shards", "1.png")
    assert keys(listed(tmp_path / "shards")) == ["1", "s-02/a", "s-10/a"]
    assert keys(listed(tmp_path / "shards", include=("*.tar",))) == ["s-02/a", "s-10/a"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from helpers.crashing import without_upstream
without_upstream(sys.argv[1])
from mindone.pipelines.image_to_text.dataset.state.keys import KeyRegistry
from mindone.pipelines.image_to_text.dataset.inference.caption_cache import CaptionCache
from mindone.pipelines.image_to_text.dataset.rules.retries import Caption
what, path = sys.argv[2], Path(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
try:
    if what == "keys":
        registry = KeyRegistry()
        for number in range(100_000):
            registry.claim(f"{number}/" + "x" * 230, "y")
    else:
        seen = CaptionCache(path / "answers.jsonl" if what == "seen" else None)
        for number in range(6_000):
            seen.put((number.to_bytes(32, "big"), "Describe"), Caption("x" * 500, 9, "eos"))
    print("done")
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("what", "limit", "said"),
    [
        (
            "keys",
            2**20,
            "free space in the temporary directory, usually /var/tmp, or set SQLITE_TMPDIR or TMPDIR to another one",
        ),
        ("seen", 0, "the answers cannot be written (File too large): free disk space for "),
        ("seen", 2**20, "the answers cannot be written (File too large): free disk space for "),
        ("seen-temporary", 2**20, "done"),  # it is emptied whenever it is full, because it only saves work
    ],
)
def test_the_error_of_a_full_disk_says_what_to_do(tmp_path: Path, what: str, limit: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(ROOT), what, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_a_caption_cache_in_a_missing_directory(tmp_path: Path) -> None:
    message = r"cannot be written \(No such file or directory\): free disk space for .*answers.jsonl"
    with pytest.raises(OSError, match=message):
        CaptionCache(tmp_path / "gone" / "answers.jsonl")
