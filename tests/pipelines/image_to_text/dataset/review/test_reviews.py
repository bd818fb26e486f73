"""What people decide about captions reaches every output, survives crashes, and no later run overwrites it."""

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.echo_executor import EchoExecutor
from helpers.jobs import png, tree

from mindone.pipelines.image_to_text import caption_dataset
from mindone.pipelines.image_to_text.dataset.review.index import Filter
from mindone.pipelines.image_to_text.dataset.review.publishing import publish
from mindone.pipelines.image_to_text.dataset.review.session import Change, ConflictError, ReviewSession
from mindone.pipelines.image_to_text.dataset.state.records import JobError
from mindone.pipelines.image_to_text.dataset.state.reviews import ReviewError, Reviews

FORMATS = ("jsonl", "parquet", "txt", "webdataset")
CAPTION = "A picture of {stem}"


def run(photos: Path, **options: Any) -> Any:
    return caption_dataset(
        photos, **{"out": str(photos.parent / "out"), "format": FORMATS, "prompt": CAPTION, **options}
    )


def captions(photos: Path) -> dict[str, dict[str, str | None]]:
    """The caption of every input in every output: format -> key -> caption."""
    import pyarrow.parquet

    out = photos.parent / "out"
    rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(sorted(out.glob("part-*.parquet"))).to_pylist()
    shards: dict[str, str | None] = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                if member.name.endswith(".txt"):
                    shards[str(int(Path(member.name).stem))] = archive.extractfile(member).read().decode().strip()  # type: ignore[union-attr]
    return {
        "jsonl": {row["key"]: row["caption"] for row in rows},
        "parquet": {row["key"]: row["caption"] for row in table},
        "txt": {path.stem: path.read_text().strip() for path in out.glob("*.txt")},
        "webdataset": shards,
    }


def edit(number: int, text: str) -> Change:
    return Change(number=number, verdict="edited", captions=(text,))


def check(photos: Path, **changed: str | None) -> None:
    """Every output has the changed captions, and those of the job for all other inputs."""
    expected = {str(number): changed.get(f"n{number}", f"A picture of {number}") for number in range(6)}
    present = {key: caption for key, caption in expected.items() if caption is not None}
    found = captions(photos)
    assert found["jsonl"] == found["parquet"] == expected
    assert found["txt"] == found["webdataset"] == present


def test_reviews_reach_every_output_and_undo_restores_its_bytes(photos: Path) -> None:
    run(photos)
    out = photos.parent / "out"
    before = {name: data for name, data in tree(out).items() if not name.startswith(".share4v")}
    with ReviewSession(out) as session:
        session.change([edit(0, "A dog."), Change(number=1, verdict="accepted"), Change(number=2, verdict="rejected")])
        assert publish(session.state) == []
        check(photos, n0="A dog.", n2=None)
        rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
        assert rows[0]["notes"] == ["edited in review"] and rows[1]["notes"] == ["accepted in review"]
        assert rows[2]["error"] == "rejected in review" and not rows[2]["captions"]
        assert [json.loads(line)["key"] for line in (session.state / "failed.jsonl").read_text().splitlines()] == ["2"]
        session.change([edit(0, "A cat.")])
        session.change([Change(number=0, verdict="rejected")])  # the caption on disk is an older one: deleted, too
        publish(session.state)
        check(photos, n0=None, n2=None)
        assert [row["verdict"] for row in session.undo()] == ["edited"]
        publish(session.state)
        check(photos, n0="A cat.", n2=None)
        assert len(session.undo()) == 1 and len(session.undo()) == 3 and session.undo() == []
        publish(session.state)
    check(photos)
    assert {name: data for name, data in tree(out).items() if not name.startswith(".share4v")} == before


def test_a_later_run_never_overwrites_what_people_wrote(photos: Path) -> None:
    run(photos)
    with ReviewSession(photos.parent / "out") as session:
        session.change([edit(0, "A dog.")])
        session.change([Change(number=1, verdict="accepted"), Change(number=2, verdict="rejected")])
    run(photos)  # the same job again publishes what no session has
    check(photos, n0="A dog.", n2=None)
    (photos / "6.png").write_bytes(png(6))
    run(photos)  # a pass for a new input
    found = captions(photos)
    assert all(
        found[name]["0"] == "A dog." and len(found[name]) == 7 - (name in ("txt", "webdataset")) for name in FORMATS
    )
    # Another prompt: what people wrote or accepted stays, and what they rejected gets its new caption.
    for existing in ("skip", "overwrite", "append"):
        run(photos, restart=True, existing=existing, prompt=f"Again {existing} {{stem}}")
        found = captions(photos)
        for name in FORMATS:
            assert found[name]["0"] == "A dog." and found[name]["1"] == "A picture of 1", (name, existing)
            assert found[name]["2"] == f"Again {existing} 2" if existing != "append" else found[name]["2"]
    with ReviewSession(photos.parent / "out") as session:
        assert session.row(2)["verdict"] == "none" and session.row(0)["verdict"] == "edited"
        session.undo()
        assert session.undo()[0]["captions"] != ["A dog."]


def test_a_retry_keeps_reviews(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It captions what failed in the job, not what was rejected; a caption that somebody wrote stays in any case."""
    failing, asked, original = {"1", "2"}, [], EchoExecutor.run

    def sometimes(self: EchoExecutor, tasks: Any) -> Iterator[Any]:
        for record in original(self, tasks):
            asked.append(record.key)
            yield replace(record, captions=(), error="out of memory") if record.key in failing else record

    monkeypatch.setattr(EchoExecutor, "run", sometimes)
    run(photos, format="jsonl")
    out = photos.parent / "out"
    with ReviewSession(out) as session:
        session.change([edit(1, "By hand."), Change(number=3, verdict="rejected")])
    failing.clear()
    asked.clear()
    run(photos, format="jsonl", retry_failed=True)
    rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert asked == ["1", "2"]
    assert [row["caption"] for row in rows][1:4] == ["By hand.", "A picture of 2", None]
    assert rows[3]["error"] == "rejected in review"


def test_a_caption_file_that_people_edited_stays(photos: Path) -> None:
    run(photos, format="txt")
    out = photos.parent / "out"
    (out / "3.txt").write_text("By hand.")
    (out / "4.txt").write_text("By hand, too.")
    with ReviewSession(out) as session:
        session.change([edit(0, "A dog."), Change(number=4, verdict="rejected")])
        publish(session.state)
    assert (out / "0.txt").read_text() == "A dog.\n"
    assert ((out / "3.txt").read_text(), (out / "4.txt").read_text()) == ("By hand.", "By hand, too.")
    assert "has another text" in str(run(photos, format="txt").left_out) or (out / "4.txt").exists()


def test_reviews_belong_to_the_input_however_it_is_written(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    run(Path("photos"), out="out", format="jsonl")

    def found() -> dict[str, str]:
        rows = map(json.loads, Path("out/captions.jsonl").read_text().splitlines())
        return {Path(row["source"]).name: row["caption"] for row in rows}

    with ReviewSession("out") as session:
        session.change([edit(0, "A dog."), edit(5, "A cat.")])
    (photos / "6.png").write_bytes(png(6))
    run(photos, out="out", format="jsonl")  # the same folder, by its absolute path
    assert found()["0.png"] == "A dog." and found()["5.png"] == "A cat." and len(found()) == 7
    (photos / "0.jpg").write_bytes(png(7))  # comes before 0.png, whose key changes
    run(photos, out="out", format="jsonl", restart=True)
    assert found()["0.png"] == "A dog." and found()["0.jpg"] == "A picture of 0"
    with ReviewSession("out") as session:
        session.change([edit(0, "Another file."), edit(1, "The first file.")])
        assert [session.row(number)["captions"] for number in (0, 1)] == [["Another file."], ["The first file."]]
        session.undo()
        assert [session.row(number)["captions"] for number in (0, 1)] == [["A picture of 0"], ["A dog."]]


def test_rows_with_the_same_image_have_reviews_of_their_own(photos: Path) -> None:
    table = photos.parent / "table.csv"
    table.write_text("file_name,question\nphotos/0.png,What?\nphotos/0.png,Why?\n")
    caption_dataset(table, out=str(photos.parent / "out"), format="jsonl", prompt="{question}")
    with ReviewSession(photos.parent / "out") as session:
        session.change([edit(0, "A dog.")])
        assert [session.row(number)["captions"] for number in (0, 1)] == [["A dog."], ["Why?"]]


def test_no_decision_overwrites_a_caption_file_that_people_edited(photos: Path) -> None:
    """Neither an accepted caption, an edit or its undoing, nor a caption that was kept because it existed."""
    (photos / "5.txt").write_text("Theirs")  # without a line end
    run(photos, format="txt", out=None)
    with ReviewSession(photos) as session:
        session.change([edit(2, "A cat."), edit(3, "A dog."), edit(5, "Ours.")])
        assert publish(session.state) == []
        assert (photos / "5.txt").read_text() == "Ours.\n"
        for number in (0, 1, 2):
            (photos / f"{number}.txt").write_text(f"By hand {number}")
        (photos / "3.txt").write_text("\ufeffA dog.  ", "utf-8")  # an editor's way to write the same text
        session.undo()
        session.change(
            [Change(number=0, verdict="accepted"), edit(1, "Another."), Change(number=5, verdict="accepted")]
        )
        left_out = publish(session.state)
    assert [(photos / f"{number}.txt").read_text() for number in (0, 1, 2)] == [f"By hand {n}" for n in (0, 1, 2)]
    assert left_out is not None and len(left_out) == 3 and all("has another text" in one for one in left_out)
    assert (photos / "3.txt").read_text() == "A picture of 3\n" and (photos / "5.txt").read_text().strip() == "Theirs"
    for existing in ("skip", "overwrite"):  # a decision that counts in later runs does not either
        summary = run(photos, format="txt", out=None, restart=True, existing=existing, prompt=f"{existing} {{stem}}")
        assert (photos / "0.txt").read_text() == "By hand 0" and "0.png" in str(summary.left_out)


def test_a_running_job_and_a_reviewer_lose_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reviewer edits captions that the job has written; the job, which goes on, writes the outputs."""
    reached, go_on = threading.Event(), threading.Event()
    original = EchoExecutor.run

    def pausing(self: EchoExecutor, tasks: Any) -> Iterator[Any]:
        for number, record in enumerate(original(self, tasks)):
            if number == 4:
                reached.set()
                assert go_on.wait(300)
            yield record

    monkeypatch.setattr(EchoExecutor, "run", pausing)
    monkeypatch.setattr("mindone.pipelines.image_to_text.dataset.job.GROUP_RECORDS", 1)
    failed: list[BaseException] = []

    def job() -> None:
        try:
            run(photos)
        except BaseException as error:
            failed.append(error)
            reached.set()

    thread = threading.Thread(target=job)
    thread.start()
    try:
        assert reached.wait(300) and not failed
        with ReviewSession(photos.parent / "out") as session:
            assert 1 <= session.status()["records"] < 6 == session.status()["inputs"]
            session.change([edit(0, "A dog.")])
            with pytest.raises(JobError, match="another process is working on this job"):
                publish(session.state)
            go_on.set()
            thread.join(300)
            assert not failed
            assert session.status()["records"] == 6
            check(photos, n0="A dog.")  # the job itself has published it
            session.change([edit(5, "The last one.")])
            publish(session.state)
    finally:
        go_on.set()
        thread.join(300)
    check(photos, n0="A dog.", n5="The last one.")


KILLED = """
import os, sys
from mindone.pipelines.image_to_text.dataset.review.session import Change, ReviewSession
session = ReviewSession(sys.argv[1])
for number in range(1000):
    session.change([Change(number=number % 6, verdict="edited", captions=(f"Edit {number}.",))])
    os.write(1, b"%d\\n" % number)
"""


def test_confirmed_edits_survive_kill_9(photos: Path) -> None:
    """A process is killed in the middle of its edits, and a torn line is added as a power failure would leave it."""
    run(photos)
    out = photos.parent / "out"
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.dup2(writing, 1)
            sys.argv = ["", str(out)]
            exec(KILLED, {})
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as confirmed:
        while int(confirmed.readline()) < 20:
            pass
        os.kill(child, signal.SIGKILL)
        last = max([20, *(int(line) for line in confirmed.read().splitlines() if line)])
    os.waitpid(child, 0)
    path = out / ".share4v" / "reviews.jsonl"
    whole = path.read_bytes()
    for torn in (b'{"key":"0","sou', b"\0" * 40, "é".encode()[:1]):
        with path.open("ab") as file:
            file.write(torn)
        Reviews(path).close()  # a job that reads it meanwhile ignores the line
        with ReviewSession(out) as session:
            assert session.status()["edited"] == 6
            assert f"Edit {last}." in [session.row(number)["captions"][0] for number in range(6)] or (
                f"Edit {last + 1}." in [session.row(number)["captions"][0] for number in range(6)]
            )
        assert path.read_bytes() == whole[: whole.rindex(b"\n") + 1]
        whole = path.read_bytes()
    run(photos)
    assert all(caption and caption.startswith("Edit ") for caption in captions(photos)["jsonl"].values())
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(ReviewError, match=r"byte 0: .*edited or damaged"):
        ReviewSession(out)


def test_one_session_at_a_time_and_only_for_own_jobs(photos: Path) -> None:
    run(photos)
    out = photos.parent / "out"
    with ReviewSession(out) as session:
        session.change([Change(number=0, verdict="edited", captions=("A dog.",), shown=("A picture of 0",))])
        with pytest.raises(ConflictError, match="has changed since it was shown"):
            session.change([Change(number=0, verdict="rejected", shown=("A picture of 0",)), edit(1, "x")])
        for wrong, text in (((" ",), "must not be empty"), (("a" * 200_000,), "at most 100,000")):
            with pytest.raises(ValueError, match=text):
                session.change([Change(number=1, verdict="edited", captions=wrong)])
        with pytest.raises(IndexError):
            session.change([edit(6, "none")])
        assert session.row(1)["verdict"] == "none"
        child = os.fork()  # locks are between processes
        if not child:
            status = 1
            try:
                ReviewSession(out)
            except JobError as error:
                status = 0 if "another `share4v review` is open" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (out / ".share4v" / "signature.json").unlink()
    with pytest.raises(JobError, match="signature is missing"):
        ReviewSession(out)


def test_a_change_of_what_was_listed_before_is_refused(photos: Path) -> None:
    """The job ran again with a new first input while its captions were shown, so the numbers mean other inputs."""
    (photos / "3.png").rename(photos / "3 fail.png")
    run(photos, format="jsonl")
    with ReviewSession(photos.parent / "out") as session:
        shown = session.row(3)
        assert shown["key"] == "3 fail" and shown["captions"] == [] and shown["listing"] == session.listing
        (photos / "0 fail.png").write_bytes(png(9))
        with (session.state / "journal.jsonl").open():  # so that the new journal is another file for sure
            run(photos, format="jsonl")
        change = Change(number=3, verdict="edited", captions=("Of input 3.",), shown=())
        for act in (
            lambda: session.change([change], shown["listing"]),
            lambda: session.replace([3], "picture", "photo", shown["listing"]),
        ):
            with pytest.raises(ConflictError, match="listed its inputs again"):
                act()
        with pytest.raises(IndexError, match="no longer 3 fail"):
            session.image(3, key="3 fail")
        session.find(Filter())
        assert session.status()["edited"] == 0 and session.listing != shown["listing"]
        assert session.image(4, key="3 fail")[0] == png(3)
        session.change([edit(4, "Of input 3.")], session.listing)


def test_reviews_after_a_cut_of_the_file_reach_the_outputs(photos: Path) -> None:
    """Lines were removed, as the message about damage advises; later reviews are at the bytes of earlier ones."""
    run(photos, format=("jsonl", "txt"))
    out = photos.parent / "out"
    path = out / ".share4v" / "reviews.jsonl"

    def found(number: int) -> set[str]:
        rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
        return {rows[number]["caption"], (out / f"{number}.txt").read_text().strip()}

    with ReviewSession(out) as session:
        session.change([edit(0, "A dog.")])
        session.change([edit(1, "A cat.")])
        publish(session.state)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    run(photos, format=("jsonl", "txt"))
    path.unlink()
    for number, text in ((2, "A cow."), (3, "A long caption. " * 100)):  # shorter than before, and longer
        with ReviewSession(out) as session:
            session.change([edit(number, text)])
            publish(session.state)
        assert found(number) == {text.strip()}


def test_looking_alone_writes_nothing(photos: Path) -> None:
    """A caption file that was deleted on purpose stays deleted, until there is something to publish or the job runs."""
    run(photos, format="txt")
    out = photos.parent / "out"
    (out / "3.txt").unlink()
    before = tree(out)
    assert publish(out / ".share4v") == [] and not (out / "3.txt").exists()
    assert {name: data for name, data in tree(out).items() if "lock" not in name} == {
        name: data for name, data in before.items() if "lock" not in name
    }
    with ReviewSession(out) as session:
        session.change([edit(0, "A dog.")])
        publish(session.state)
        (out / "3.txt").unlink(missing_ok=True)
        publish(session.state)
    assert (out / "0.txt").read_text() == "A dog.\n" and not (out / "3.txt").exists()


def test_an_action_that_does_not_fit_on_the_disk_is_not_added_later(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos, format="jsonl")
    path = photos.parent / "out" / ".share4v" / "reviews.jsonl"
    monkeypatch.setattr("mindone.pipelines.image_to_text.dataset.state.atomic_files.GROUP_BYTES", 300)
    with ReviewSession(photos.parent / "out") as session:
        session.change([edit(0, "A dog.")])
        before, calls = path.read_bytes(), []

        def full(descriptor: int) -> None:
            calls.append(descriptor)
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(OSError, match="No space"):
                session.change([edit(1, "A cat."), edit(2, "A cow."), edit(3, "A hen.")])
        assert path.read_bytes() == before and len(calls) == 1
        session.change([edit(4, "A pig.")])
        assert session.status()["edited"] == 2
    assert [json.loads(line)["captions"] for line in path.read_text().splitlines()] == [["A dog."], ["A pig."]]


def test_a_power_failure_may_damage_any_line_of_the_last_action(photos: Path) -> None:
    run(photos, format="jsonl")
    path = photos.parent / "out" / ".share4v" / "reviews.jsonl"
    with ReviewSession(photos.parent / "out") as session:
        session.change([edit(0, "A dog.")])
        confirmed = path.read_bytes()
        session.change([edit(1, "A cat."), edit(2, "A cow."), edit(3, "A hen.")])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * (len(lines[1]) - 1) + b"\n" + b"".join(lines[2:]))
    run(photos, format="jsonl")  # the job ignores it
    with ReviewSession(photos.parent / "out") as session:
        assert session.status()["edited"] == 1 and path.read_bytes() == confirmed
        session.change([edit(1, "A cat.")])
        session.change([edit(2, "A cow.")])
    path.write_bytes(b"\0\n" + path.read_bytes())
    with pytest.raises(ReviewError, match="byte 0"):
        ReviewSession(photos.parent / "out")


def test_only_outputs_that_the_job_itself_named_are_written(photos: Path) -> None:
    """job.json names them; somebody who changed it must not make a review overwrite other files."""
    run(photos, format="jsonl")
    job, victim = photos.parent / "out" / ".share4v" / "job.json", photos.parent / "diary.jsonl"
    victim.write_text("Dear diary")
    settings = json.loads(job.read_text())
    without = {name: value for name, value in settings.items() if name != "sinks"}
    with ReviewSession(photos.parent / "out") as session:
        session.change([edit(0, "A dog.")])
        for changed in ({**settings, "out": str(victim)}, without, {}, []):
            job.write_text(json.dumps(changed))
            with pytest.raises(JobError, match=r"job\.json is missing, was changed, .* run the same caption-dataset"):
                publish(session.state)
        job.write_text(json.dumps(settings))  # in another order
        assert publish(session.state) == []
    assert victim.read_text() == "Dear diary"
    signature = job.with_name("signature.json")  # of an older version
    signature.write_text(json.dumps({k: v for k, v in json.loads(signature.read_text()).items() if k != "job"}))
    with pytest.raises(JobError, match="older version"):
        publish(job.parent)
    run(photos, format="jsonl")
    assert publish(job.parent) == []


def test_filters(photos: Path) -> None:
    (photos / "fail.png").write_bytes(png(99))
    run(photos, prompt="A picture with note: rule and {stem} of them", format="jsonl")
    with ReviewSession(photos.parent / "out") as session:

        def found(**wanted: Any) -> list[str]:
            return [session.row(number)["key"] for number in session.find(Filter(**wanted))[0]]

        assert found(failed=True) == ["fail"] and len(found()) == 7
        assert found(breaks_rules=True) == list("012345")
        session.change([edit(0, "Two words"), edit(1, "two  words"), edit(2, "One")])
        assert found(duplicates=True) == ["0", "1"] and found(max_words=1) == ["2", "fail"]
        assert found(breaks_rules=True) == list("345")
        assert found(verdicts=("edited",), search="TWO") == ["0", "1"]
        assert found(sort="longest")[-1] == "fail" and found(sort="shortest", min_words=1)[:3] == ["2", "0", "1"]
        session.change([Change(number=3, verdict="rejected"), edit(6, "By hand")])
        assert found(failed=True) == [] and found(verdicts=("rejected",)) == ["3"]
        assert len(session.replace([0, 1, 2, 4], "words", "texts")) == 2 and found(search="texts") == ["0", "1"]
        assert len(session.undo()) == 2 and found(search="texts") == []
        numbers, rows = session.find(Filter(), start=2, count=3)
        assert len(numbers) == 7 and [row["number"] for row in rows] == [2, 3, 4]
        data, kind = session.image(0)
        assert (data, kind) == (png(0), "image/png") and session.image(0, 4)[1] == "image/webp"
