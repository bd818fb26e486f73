"""Links between directories of a folder of images: loops, links out of the folder, and links that multiply paths."""

from __future__ import annotations

from pathlib import Path

from helpers.jobs import listed, png, read
from helpers.limits import run_limited

from mindone.pipelines.image_to_text.dataset.readers.folder import MAX_LINKS

LIST = """
from mindone.pipelines.image_to_text.dataset.readers import list_inputs, ReaderOptions
report(lambda path: len(list(list_inputs([path], ReaderOptions()))), sys.argv[1])
"""


def test_links_that_multiply_paths_end(tmp_path: Path) -> None:
    """Thirty directories, each with two links to the next one: a thousand million paths."""
    for number in range(30):
        folder = tmp_path / "in" / f"d{number:02}"
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(png(number))
        if number < 29:
            for name in ("x", "y"):
                (folder / name).symlink_to(f"../d{number + 1:02}")
    kind, count = run_limited(LIST, str(tmp_path / "in"), seconds=30, megabytes=900)
    assert kind == "value" and int(count) < 30 * 5 * MAX_LINKS, (kind, count)


def test_a_directory_that_too_many_links_lead_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "in" / "real").mkdir(parents=True)
    (tmp_path / "in" / "real" / "1.png").write_bytes(png(1))
    for number in range(MAX_LINKS + 1):
        (tmp_path / "in" / f"link{number:03}").symlink_to("real")
    items = listed(tmp_path / "in")
    assert len(items) == MAX_LINKS + 2
    (failure,) = [item for item in items if item.locator["kind"] == "failure"]
    assert f"link{MAX_LINKS:03}" in failure.source and "more than 100 links lead to it" in str(read(failure))


def test_links_are_followed_out_of_the_folder_but_not_back(tmp_path: Path) -> None:
    """Documented in SECURITY.md: a folder of links can bring other readable images into the job."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").write_bytes(png(1))
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "self").symlink_to(".")
    assert [item.key for item in listed(tmp_path / "in")] == ["out/1"]
