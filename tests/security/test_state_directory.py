"""Issue 12, finding 2: a state directory that somebody else made neither reads nor writes anything."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from helpers.fake_executor import FakeExecutor
from helpers.jobs import png

from mindone.pipelines.image_to_text.dataset import job
from mindone.pipelines.image_to_text.dataset.api import caption_dataset
from mindone.pipelines.image_to_text.dataset.executors.base import EXECUTORS
from mindone.pipelines.image_to_text.dataset.executors.work_queue import create_queue, find_queue
from mindone.pipelines.image_to_text.dataset.options import JobOptions
from mindone.pipelines.image_to_text.dataset.report.report import ReportError, write_report
from mindone.pipelines.image_to_text.dataset.report.status import job_status
from mindone.pipelines.image_to_text.dataset.report.summary import summarize
from mindone.pipelines.image_to_text.dataset.state import bounded_reading, journal, resume
from mindone.pipelines.image_to_text.dataset.state.records import Item, JobError, JobSummary, Record, to_line
from mindone.pipelines.image_to_text.dataset.state.regular_files import open_own, pin_directory
from mindone.pipelines.image_to_text.dataset.state.signature import KEY_NAME, sign_directory, sign_listing
from mindone.pipelines.image_to_text.dataset.state.tasks import Task

NOT_SIGNED = r"was not started here by you: .*--adopt"
SECRET = "the owner's secret"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(EXECUTORS, "local", "helpers.fake_executor:FakeExecutor")
    monkeypatch.setattr(job, "GROUP_RECORDS", 1)
    FakeExecutor.asked.clear()
    yield
    FakeExecutor.most = None


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_text(f"picture {number}")
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "secret.png"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def run(inputs: Path, out: Path | None = None, **more: object) -> JobSummary:
    FakeExecutor.asked.clear()
    return caption_dataset(inputs, options=JobOptions(out=None if out is None else str(out), **more))


def killed_run(*arguments: object, after: int, **more: object) -> None:
    FakeExecutor.most = after
    with pytest.raises(KeyboardInterrupt):
        run(*arguments, **more)
    FakeExecutor.most = None


def change_listing(state: Path, number: int, locator: dict[str, object]) -> None:
    path = state / "inputs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[number]["locator"] = locator
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def as_somebody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "other-home"))


@pytest.mark.parametrize("out", [None, "captions.jsonl"])
def test_state_that_names_a_file_outside(
    photos: Path, victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str | None
) -> None:
    """A stranger's job on this folder, with a listing that reads and writes elsewhere."""
    target = None if out is None else tmp_path / out
    killed_run(photos, target, after=1)
    state = photos / ".share4v" if out is None else tmp_path / f"{out}.share4v"
    change_listing(state, 2, {"kind": "file", "path": str(victim)})
    as_somebody_else(monkeypatch, tmp_path)
    before = files(victim.parent), files(state)
    with pytest.raises(JobError, match=NOT_SIGNED):
        run(photos, target)
    assert FakeExecutor.asked == [] and (files(victim.parent), files(state)) == before


def test_a_listing_that_was_changed_in_a_job_of_ones_own(photos: Path, victim: Path) -> None:
    killed_run(photos, after=1)
    change_listing(photos / ".share4v", 2, {"kind": "file", "path": str(victim)})
    with pytest.raises(JobError, match=NOT_SIGNED):
        run(photos)
    assert FakeExecutor.asked == [] and list(victim.parent.iterdir()) == [victim]


def test_state_of_an_older_version_is_refused(photos: Path) -> None:
    killed_run(photos, after=1)
    (photos / ".share4v" / "signature.json").unlink()
    for more in ({}, {"restart": True}, {"retry_failed": True}):
        with pytest.raises(JobError, match=NOT_SIGNED):
            run(photos, **more)


def test_a_job_that_was_moved_keeps_its_answers(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have been paid for, and are texts; what an earlier version stored is a database, which is not opened."""
    killed_run(photos, after=2)
    answer = '{"image":"00","prompt":"0  What?","settings":"","answer":["A cat.",3,"eos",[]]}\n'
    (photos / ".share4v" / "answers.jsonl").write_text(answer)
    (photos / ".share4v" / "seen.sqlite").write_bytes(b"SQLite format 3\0")
    moved = photos.rename(tmp_path / "moved")
    run(moved, adopt=True)
    assert (moved / ".share4v" / "answers.jsonl").read_text() == answer
    assert not (moved / ".share4v" / "seen.sqlite").exists()


@pytest.mark.parametrize("signature", ["{}", "[]", '{"directory": 7}', "[" * 50_000, '{"directory": "\\ud800"}', ""])
def test_a_signature_that_is_none(photos: Path, signature: str) -> None:
    killed_run(photos, after=1)
    (photos / ".share4v" / "signature.json").write_text(signature)
    with pytest.raises(JobError, match=NOT_SIGNED):
        run(photos)


def test_the_signature_of_another_directory_is_not_valid(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "a.jsonl")
    shutil.copytree(tmp_path / "a.jsonl.share4v", tmp_path / "b.jsonl.share4v")
    with pytest.raises(JobError, match=NOT_SIGNED):
        run(photos, tmp_path / "b.jsonl")


LINKED = (
    *("job.json", "job.json.partial", "inputs.jsonl", "inputs.jsonl.partial", "inputs.next.jsonl"),
    *("journal.jsonl", "failed.jsonl.partial", "output-txt.json", "output-txt.json.partial", "speed.jsonl"),
    *("lock", "signature.json", "signature.json.partial", "answers.jsonl", "seen.sqlite", "restarted", "queue"),
)


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("kind", ["link", "hard link", "fifo"])
@pytest.mark.parametrize("own", [False, True], ids=["new", "own"])
def test_a_link_in_the_state_directory(photos: Path, victim: Path, name: str, kind: str, own: bool) -> None:
    """A new job and one of this user's: the link is not followed, whoever made the directory."""
    if own:
        killed_run(photos, after=1)
    path = photos / ".share4v" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(victim.parent if name == "queue" else victim)
    elif kind == "hard link":
        path.hardlink_to(victim)
    else:
        os.mkfifo(path)
    for adopt in (False, True):
        with pytest.raises(JobError, match="is a link, has several names"):
            run(photos, adopt=adopt)
    assert files(victim.parent) == {"secret.png": SECRET} and FakeExecutor.asked == []


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("out", [None, "captions.jsonl"])
def test_a_state_directory_that_is_a_link(photos: Path, tmp_path: Path, out: str | None, dangling: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    if not dangling:
        elsewhere.mkdir()
    target = None if out is None else tmp_path / out
    (photos / ".share4v" if out is None else tmp_path / f"{out}.share4v").symlink_to(elsewhere)
    for adopt in (False, True):
        with pytest.raises(JobError, match="it is a link"):
            run(photos, target, adopt=adopt)
    assert dangling != elsewhere.exists() and (dangling or list(elsewhere.iterdir()) == [])


def test_a_state_directory_that_the_caller_names_may_be_a_link(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    killed_run(photos, state=str(tmp_path / "link"), after=2)
    assert run(photos, state=str(tmp_path / "real")).captioned == 2


def test_a_directory_replaced_by_a_link_while_a_job_runs(tmp_path: Path) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pin_directory(state):
        state.rename(tmp_path / "moved")
        state.symlink_to(elsewhere)
        with open_own(state / "journal.jsonl", "ab+") as file:
            file.write(b"x")
    assert files(tmp_path / "moved") == {"journal.jsonl": "x"} and files(elsewhere) == {}


def test_a_directory_stays_pinned_for_the_other_user(tmp_path: Path) -> None:
    """A job in a thread, and a review of it in another one that is closed later: neither closes the other's."""
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    elsewhere.mkdir()
    first, second = pin_directory(state), pin_directory(state)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    state.rename(tmp_path / "moved")
    state.symlink_to(elsewhere)
    with open_own(state / "journal.jsonl", "ab+") as file:
        file.write(b"x")
    second.__exit__(None, None, None)
    assert files(tmp_path / "moved") == {"journal.jsonl": "x"} and files(elsewhere) == {}
    state.unlink()
    state.mkdir()
    with open_own(state / "journal.jsonl", "ab+") as file:  # no descriptor is left that has been closed
        file.write(b"y")
    assert files(state) == {"journal.jsonl": "y"}


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append", "prepend"])
def test_a_linked_caption_brings_no_file_from_outside_into_the_output(
    photos: Path, victim: Path, tmp_path: Path, existing: str
) -> None:
    (photos / "1.txt").symlink_to(victim)
    out = tmp_path / "captions.jsonl"
    summary = run(photos, out, existing=existing)
    assert (summary.failed, summary.captioned) == (1, 3)
    assert SECRET not in out.read_text() and "existing caption cannot be read: it is a link" in out.read_text()
    assert run(photos, existing=existing).failed == 1
    assert files(victim.parent) == {"secret.png": SECRET}


def test_a_caption_that_is_a_fifo(photos: Path) -> None:
    os.mkfifo(photos / "1.txt")
    assert (run(photos).failed, len(FakeExecutor.asked)) == (1, 3)


@pytest.mark.parametrize(
    ("format_name", "name"),
    [
        ("jsonl", "captions.jsonl.partial"),
        ("parquet", "part-00000.parquet.partial"),
        ("webdataset", "shard-00000.tar.partial"),
        ("open-sora-csv", "open_sora.csv"),
        ("open-sora-plan-json", "open_sora_plan.json"),
        ("txt", "0.txt"),
    ],
)
def test_a_link_in_place_of_an_output(photos: Path, victim: Path, tmp_path: Path, format_name: str, name: str) -> None:
    for number in range(4):
        (photos / f"{number}.png").write_text(f"picture {number}")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(victim)
    with suppress(OSError):  # JSONL, which would append to the file, rejects it
        run(photos, out, formats=(format_name,), existing="overwrite")
    assert files(victim.parent) == {"secret.png": SECRET}


def test_a_link_in_place_of_a_sidecars_temporary_file(photos: Path, victim: Path) -> None:
    """Its name follows from the path of the state, so a stranger who knows the path knows it."""
    killed_run(photos, after=0)
    names: list[Path] = []
    from mindone.pipelines.image_to_text.dataset.writers import WriterOptions, open_writer

    writer = open_writer("txt", None, WriterOptions(), photos / ".share4v")
    for number in range(4):
        partial = writer._writer._partial(photos / f"{number}.txt")
        partial.symlink_to(victim)
        names.append(partial)
    run(photos)
    assert (photos / "0.txt").read_text().startswith("picture 0") and not (photos / "0.txt").is_symlink()
    assert files(victim.parent) == {"secret.png": SECRET} and not any(map(os.path.lexists, names))


def test_the_progress_of_an_output_deletes_no_other_files(photos: Path, victim: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, formats=("parquet",))
    path = out / ".share4v" / "output-parquet.json"
    progress = json.loads(path.read_text())
    mine = out / "mine.parquet"
    mine.write_text("")
    names = [*progress["names"], "../elsewhere/secret.png", str(victim), "mine.parquet", "..", ""]
    path.write_text(json.dumps(progress | {"names": names, "stale": names}))
    run(photos, out, formats=("parquet",), restart=True)
    assert victim.exists() and mine.exists() and (out / "part-00000.parquet").exists()


def test_the_key_is_private_and_made_once(photos: Path, tmp_path: Path) -> None:
    run(photos)
    key = tmp_path / "home" / KEY_NAME
    first = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600 and len(first) == 32 and len(list(key.parent.iterdir())) == 1
    run(photos)
    assert key.read_bytes() == first
    key.chmod(0o644)
    with pytest.raises(JobError, match=r"state\.key is not yours alone"):
        run(photos)
    key.unlink()
    key.symlink_to(tmp_path / "other")
    with pytest.raises(JobError, match="the key that signs jobs cannot be read"):
        run(photos)


def test_a_home_that_cannot_be_written(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(JobError, match="set SHARE4V_HOME to a directory of yours"):
        run(photos)


def test_threads_that_make_the_key_at_once_agree(tmp_path: Path) -> None:
    states = [tmp_path / str(number) for number in range(8)]
    for state in states:
        state.mkdir()
    threads = [threading.Thread(target=sign_directory, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    key = (tmp_path / "home" / KEY_NAME).read_bytes()
    for state in states:
        stored = json.loads((state / "signature.json").read_text())
        sign_directory(state)
        assert json.loads((state / "signature.json").read_text()) == stored
    assert (tmp_path / "home" / KEY_NAME).read_bytes() == key


@pytest.mark.parametrize("how", ["moved", "copied", "older", "shared", "own"])
@pytest.mark.parametrize("format_name", ["txt", "jsonl", "parquet", "webdataset"])
def test_adopt_takes_over_a_job(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, format_name: str
) -> None:
    out = photos / "out"
    more = {"formats": (format_name,)}
    killed_run(photos, out, after=2, **more)
    if how in ("moved", "copied"):
        (shutil.move if how == "moved" else shutil.copytree)(str(photos), tmp_path / "there")
        photos, out = tmp_path / "there", tmp_path / "there" / "out"
    elif how == "older":
        (out / ".share4v" / "signature.json").unlink()
    elif how == "shared":
        as_somebody_else(monkeypatch, tmp_path)
    if how != "own":
        with pytest.raises(JobError, match=NOT_SIGNED):
            run(photos, out, **more)
    summary = run(photos, out, adopt=True, **more)
    assert (summary.inputs, summary.captioned, FakeExecutor.asked) == (4, 2, ["2", "3"])
    run(photos, tmp_path / "expected", **more)
    found, expected = files_of_output(out), files_of_output(tmp_path / "expected")
    assert found.keys() == expected.keys() and len(found) == (4 if format_name == "txt" else 1)
    if how not in ("moved", "copied") or format_name == "txt":  # records keep the name that an input had
        assert found == expected
    assert run(photos, out, **more).captioned == 0  # it is signed now


def files_of_output(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_adopt_derives_every_locator_from_the_inputs_that_are_named(
    photos: Path, victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_run(photos, after=1)
    state = photos / ".share4v"
    for number, locator in enumerate(
        [
            {"kind": "file", "path": str(victim)},
            {"kind": "file", "path": str(photos / ".." / "elsewhere" / "secret.png")},
            {"kind": "url", "url": "http://127.0.0.1:9/"},
            {"kind": "tar", "path": str(victim), "offset": 512, "size": 3, "sample": [0, 2**62], "name": "x"},
        ]
    ):
        change_listing(state, number, locator)
    as_somebody_else(monkeypatch, tmp_path)
    assert run(photos, adopt=True).captioned == 3
    locators = [json.loads(line)["locator"] for line in (state / "inputs.jsonl").read_text().splitlines()]
    assert locators == [{"kind": "file", "path": str(photos / f"{number}.png")} for number in range(4)]
    assert files(victim.parent) == {"secret.png": SECRET}
    assert [(photos / f"{number}.txt").read_text()[:9] for number in range(4)] == [f"picture {n}" for n in range(4)]


def test_adopt_rejects_inputs_outside_those_that_are_named(photos: Path, tmp_path: Path) -> None:
    killed_run(photos, after=1)
    shutil.move(photos / ".share4v", tmp_path / "state")
    listing = tmp_path / "state" / "inputs.jsonl"
    extra = Item(4, "../elsewhere/secret", "secret", {"kind": "file", "path": "/etc/passwd"})
    listing.write_text(listing.read_text() + to_line(extra))
    with pytest.raises(JobError, match=r"cannot be adopted: its listing has '../elsewhere/secret' .* no further input"):
        run(photos, state=str(tmp_path / "state"), adopt=True)
    assert FakeExecutor.asked == []


def test_adopt_with_other_settings_is_refused(photos: Path) -> None:
    killed_run(photos, after=1)
    (photos / ".share4v" / "signature.json").unlink()
    with pytest.raises(JobError, match=r"results with other settings .existing was"):
        run(photos, existing="append", adopt=True)
    with pytest.raises(ValueError, match="restart and adopt cannot be combined"):
        run(photos, restart=True, adopt=True)


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("what", ["first", "next", "adopt"])
def test_a_job_killed_while_it_signs(photos: Path, step: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it ends there, the same command resumes it; an adoption is adopted again."""
    from mindone.pipelines.image_to_text.dataset.state import atomic_files

    more = {"adopt": True} if what == "adopt" else {}
    if what != "first":
        run(photos)
        (photos / "4.png").write_text("picture 4" if what == "next" else "")
    if what == "adopt":
        (photos / "4.png").unlink()
        (photos / ".share4v" / "signature.json").unlink()
    count = 0
    publish = atomic_files.publish

    def killed(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == step + 1:
            raise KeyboardInterrupt
        publish(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "publish", killed)
        patch.setattr(resume, "publish", killed)
        with suppress(KeyboardInterrupt):
            run(photos, **more)
    run(photos, **more)
    expected = [f"picture {n}" for n in range(5 if what == "next" else 4)]
    assert [path.read_text()[:9] for path in sorted(photos.glob("*.txt"))] == expected


class Requests(BaseHTTPRequestHandler):
    seen: list[str] = []  # noqa: RUF012  of the one test that uses it

    def do_GET(self) -> None:
        self.seen.append(self.path)
        self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize("signed", [False, True])
def test_the_report_sends_no_requests_and_shows_no_files_of_strangers(tmp_path: Path, signed: bool) -> None:
    pytest.importorskip("matplotlib")
    server = HTTPServer(("127.0.0.1", 0), Requests)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Requests.seen.clear()
    url = f"http://127.0.0.1:{server.server_port}/a.png"
    (tmp_path / "private.png").write_bytes(png(1))
    (tmp_path / "table.jsonl").write_text(json.dumps({"image": url}))
    row = {"kind": "json", "path": str(tmp_path / "table.jsonl"), "offset": 0, "size": len(url) + 13, "column": "image"}
    locators = [{"kind": "url", "url": url}, row, {"kind": "file", "path": str(tmp_path / "private.png")}]
    state = tmp_path / "photos" / ".share4v"
    state.mkdir(parents=True)
    items = [Item(number, str(number), str(number), locator) for number, locator in enumerate(locators)]
    records = [Record(item.number, item.key, item.source, ("A cat.",)) for item in items]
    (state / "journal.jsonl").write_text("".join(map(to_line, records)))
    if signed:
        from mindone.pipelines.image_to_text.dataset.state.listing import write_listing

        write_listing(state / "inputs.jsonl", items, lambda digest: sign_listing(state, digest))
    else:
        (state / "inputs.jsonl").write_text("".join(map(to_line, items)))
    path, summary = write_report(state.parent)
    server.shutdown()
    assert summary.captions == 3 and Requests.seen == []
    assert ("data:image/webp" in path.read_text()) == signed


def test_the_report_follows_no_links(tmp_path: Path, victim: Path) -> None:
    pytest.importorskip("matplotlib")
    state = tmp_path / "photos" / ".share4v"
    state.mkdir(parents=True)
    (state / "journal.jsonl").write_text(to_line(Record(0, "a", "a", ("A cat.",))))
    (state / "report.html").symlink_to(victim)
    write_report(state.parent)
    assert files(victim.parent) == {"secret.png": SECRET} and not (state / "report.html").is_symlink()
    (state / "speed.jsonl").symlink_to(victim)
    with pytest.raises(OSError, match="it is a link"):
        write_report(state.parent)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".share4v").symlink_to(state)
    with pytest.raises(ReportError, match="it is a link"):
        write_report(tmp_path / "other")


def test_a_rank_takes_no_tasks_of_somebody_elses_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        item = Item(0, "0", "0.png", {"kind": "file", "path": "/etc/passwd"})
        queue, count = create_queue(tmp_path, [Task(item, ("What?",), (None,))], stack)
        found = find_queue(tmp_path)
        assert count == 1 and found is not None and found.directory == queue.directory
        as_somebody_else(monkeypatch, tmp_path)
        with pytest.raises(JobError, match=r"not led by a job of yours, .* another key: set SHARE4V_HOME"):
            find_queue(tmp_path)


@pytest.mark.parametrize("name", ["journal.jsonl", "job.json", "speed.jsonl", "output-jsonl.json", "inputs.jsonl"])
@pytest.mark.parametrize("kind", ["nested", "one endless line"])
def test_a_damaged_file_of_a_job_costs_little_and_is_named(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """Nesting that Python's parser cannot follow, and lines that do not fit into memory."""
    monkeypatch.setattr(bounded_reading, "MAX_LINE_BYTES", 10_000)
    monkeypatch.setattr(bounded_reading, "_MAX_JSON_BYTES", 10_000)
    monkeypatch.setattr(journal, "MAX_LINE_BYTES", 2**20)
    monkeypatch.setattr(journal, "GROUP_BYTES", 2**20)
    out = tmp_path / "out.jsonl"
    run(photos, out)
    state = tmp_path / "out.jsonl.share4v"
    assert (state / name).exists()
    (state / name).write_bytes(b"[" * 200_000 + b"\n" if kind == "nested" else bytes(5 * 2**20))

    def refuses(function: Callable[[], object]) -> None:
        try:
            function()
        except (ValueError, OSError, JobError) as error:
            assert name in str(error) or (name == "inputs.jsonl" and "its signature is missing or" in str(error))

    refuses(lambda: job_status(state))
    refuses(lambda: summarize(state))
    refuses(lambda: run(photos, out))
