"""share4v report: the page is self-contained, its counts are right, and text from the data cannot run in it."""

from __future__ import annotations

import base64
import importlib
import io
import json
import pickle
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.paths import TINY_SCRIPTS
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mindone.pipelines.image_to_text.dataset.report import report as report_module
from mindone.pipelines.image_to_text.dataset.report.charts import median
from mindone.pipelines.image_to_text.dataset.report.report import ReportError, find_state, write_report
from mindone.pipelines.image_to_text.dataset.report.streaming_stats import (
    DuplicateCounter,
    TopCounts,
    stable_hash,
)
from mindone.pipelines.image_to_text.dataset.report.summary import Summary, summarize
from mindone.pipelines.image_to_text.dataset.state.listing import write_listing
from mindone.pipelines.image_to_text.dataset.state.paths import SPEED_LOG
from mindone.pipelines.image_to_text.dataset.state.records import Item, Picture, Record, to_line
from mindone.pipelines.image_to_text.dataset.state.signature import sign_listing
from mindone.pipelines.image_to_text.dataset.state.speed_log import (
    SpeedLog,
    SpeedSample,
    read_speed_log,
)
from mindone_share4v.cli import main

COUNT = 300
HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> \"'&amp; {{ 7 * 7 }} $x^2$"


def read_file(item: Item) -> Picture:
    """Read the image file of an item."""
    return Picture((Path(item.locator["path"]).read_bytes(),), "")


class Job:
    """A synthetic job on rendered scenes, with failures, repetitive and duplicate captions, and hostile text."""

    def __init__(self, folder: Path, count: int = COUNT) -> None:
        sys.path.insert(0, str(TINY_SCRIPTS))
        try:
            self.scenes, self.captions = importlib.import_module("scenes"), importlib.import_module("captions")
        finally:
            sys.path.remove(str(TINY_SCRIPTS))
        self.folder, self.state = folder, folder / ".share4v"
        self.state.mkdir(parents=True)
        self.rng = random.Random(11)
        records = [self.record(number) for number in range(count)]
        self.records = records
        items = [self.item(record) for record in records]
        write_listing(self.state / "inputs.jsonl", items, partial(sign_listing, self.state))
        (self.state / "journal.jsonl").write_text("".join(map(to_line, records)), encoding="utf-8")
        job = {"model": {"model": "sharegpt4v-tiny"}, "captions": {"generation": {"max_new_tokens": 96}}, "out": None}
        (self.state / "job.json").write_text(json.dumps(job), encoding="utf-8")
        self.log_speed()

    def record(self, number: int) -> Record:
        scene_rng = self.scenes.scene_rng(3, number % 280)  # the last ones are duplicates
        scene = self.scenes.sample_scene(scene_rng)
        key = f"{scene.background.replace(' ', '-')}/{number:04d}"
        path = self.folder / f"{key}.png"
        path.parent.mkdir(exist_ok=True)
        self.scenes.render(scene, scene_rng, 192).save(path)
        text = self.captions.caption(scene, scene_rng)
        sha256 = f"{number % 280:064x}"
        blank = Record(number, key, str(path), model="sharegpt4v-tiny", dtype="float32", sha256=sha256, columns={})
        if number % 17 == 5:
            path.write_bytes(path.read_bytes()[: 40 + number])
            return replace(blank, error=f"{path}: truncated image, {40 + number} bytes; copy it again")
        if number % 61 == 7:
            path.unlink()
            return replace(blank, sha256=None, error=f"{path}: there is no such file")
        notes: tuple[str, ...] = ()
        reason = "eos"
        if number % 53 == 9:
            text, reason = text + " There is a small red star to the left of it." * 7, "length"
            notes = ("repetition: 'there is a small red star' 7 times", "attempt 1 of 3 (repetition: 'x')")
        if number % 41 == 2:
            text = "The background is white."
        if number == 100:
            text = HOSTILE
        if number % 29 == 3:
            return replace(blank, captions=(text,), notes=("kept existing",), model="", dtype="", sha256=None)
        tokens = len(text.split()) + 6
        return replace(
            blank,
            captions=(text,),
            prompts=(self.captions.question(scene_rng),),
            tokens=(tokens,),
            seconds=round(tokens / 90, 3),
            finish_reasons=(reason,),
            notes=notes,
            width=192,
            height=192,
        )

    def item(self, record: Record) -> Item:
        return Item(record.number, record.key, record.source, {"kind": "file", "path": record.source})

    def log_speed(self) -> None:
        times = iter([0.0, *(second + self.rng.random() * 0.2 for second in range(1, 61))])
        for first, last in ((0, 20), (20, 60)):
            log = SpeedLog(self.state / SPEED_LOG, lambda: 1.76e9, lambda: next(times))
            for step in range(first, last - 1):
                log.note(5, round(400 * (1 - 0.7 ** (step % 20 + 1)) + 60 * self.rng.random()))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    yield Job(tmp_path_factory.mktemp("job"))
    for name in ("scenes", "captions"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def page(job: Job) -> str:
    path, _ = write_report(job.folder, read=read_file)
    assert path == job.state / "report.html"
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text; fails if tags are not closed in order."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open[-1:]:
            self.text.append(data)


# The page


def test_the_page_is_self_contained(page: str) -> None:
    tags = Tags(page)
    urls = [value for _, attrs in tags.tags for name, value in attrs.items() if name in ("src", "href", "xlink:href")]
    assert urls and all(value and value.startswith(("data:", "#")) for value in urls)
    assert not {tag for tag, _ in tags.tags} & {"script", "link", "iframe", "object", "base", "form"}
    without_namespaces = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    assert "http:" not in without_namespaces and "https:" not in without_namespaces and "@import" not in page
    ids = [attrs["id"] for _, attrs in tags.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 20  # of the charts


def test_text_from_the_data_is_escaped(job: Job, page: str, tmp_path: Path) -> None:
    """Text of captions, file names, prompts, settings and errors is shown and is never markup."""
    hostile = replace(
        job.records[0],
        number=0,
        key=HOSTILE,
        source=HOSTILE + "\udce9",
        captions=(HOSTILE, f"{HOSTILE} " * 20),
        prompts=(HOSTILE, HOSTILE),
        notes=(HOSTILE,),
        finish_reasons=(HOSTILE, "eos"),
        tokens=(3, 4),
        model=HOSTILE,
    )
    failed = replace(hostile, number=1, captions=(), error=f"{HOSTILE} again")
    state = tmp_path / ".share4v"
    state.mkdir()
    (state / "journal.jsonl").write_text(to_line(hostile) + to_line(failed), encoding="utf-8")
    (state / "job.json").write_text(json.dumps({HOSTILE: HOSTILE}), encoding="utf-8")
    path, _ = write_report(tmp_path)
    made = Tags(path.read_text(encoding="utf-8"))
    assert not {tag for tag, _ in made.tags} & {"script", "img"}
    assert not [name for _, attrs in made.tags for name in attrs if name.startswith("on")]
    text = "".join(made.text)
    assert "<script>alert(1)</script>" in text and "{{ 7 * 7 }}" in text and "&amp;" in text
    assert "\\xe9" in text  # a byte that is not UTF-8
    assert "<script>" not in page and HOSTILE not in page


def test_the_page_shows_the_counts(job: Job, page: str) -> None:
    text = re.sub(r"\s+", " ", " ".join(Tags(page).text))
    failed = [record for record in job.records if record.error]
    captions = [record.captions[0] for record in job.records if not record.error]
    assert f"{COUNT} inputs" in text and f"{len(captions)} captions" in text and f"{len(failed)} failed" in text
    opening, count = Counter(" ".join(one.split()[:3]).rstrip(".,:;").lower() for one in captions).most_common(1)[0]
    assert re.search(rf"{re.escape(opening)} {count}\b", text)
    truncated = sum("truncated" in (record.error or "") for record in failed)
    assert re.search(rf"\.\.\.: truncated image, # bytes; copy it again .*? {truncated} ", text)
    assert "started 2 times" in text and "repetitive captions" in text and "cut off at 96 tokens" in text


def test_the_page_shows_the_words_and_the_trigger(job: Job, tmp_path: Path) -> None:
    path, summary = write_report(job.folder, tmp_path / "page.html", read=read_file, trigger="Background")
    tags = Tags(path.read_text(encoding="utf-8"))
    shown = " ".join(tags.text)
    captions = [caption for record in job.records for caption in record.captions]
    share = sum("background" in caption.lower() for caption in captions)
    assert summary.audit.words.count("background") == share
    assert f"In {share} captions" in " ".join(shown.split())
    assert (
        summary.audit.near_duplicates.captions >= sum(caption == "The background is white." for caption in captions) - 1
    )


def test_the_page_contains_thumbnails_and_marks_missing_images(job: Job, page: str) -> None:
    images = [attrs for tag, attrs in Tags(page).tags if tag == "img"]
    missing = page.count("the image can no longer be read")
    assert len(images) + missing == 24 and len(images) >= 20
    for attrs in images:
        data = base64.b64decode(str(attrs["src"]).partition("base64,")[2])
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (192, 192)
    keys = {record.key for record in job.records if not record.error}
    assert {attrs["alt"] for attrs in images} <= keys


def test_the_page_is_reproducible(job: Job, page: str) -> None:
    write_report(job.folder, job.folder / "again.html", read_file)
    assert (job.folder / "again.html").read_text(encoding="utf-8") == page


def test_charts_use_the_colors_of_the_page_and_have_labels(page: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 3
    for chart in charts:
        assert re.search(r'role="img" aria-label="[^"]+"', chart)
        colors = set(re.findall(r"#[0-9a-fA-F]{6}\b|(?<=: )(?:black|white)", chart))
        assert not colors and "var(--accent)" in chart and "var(--muted)" in chart


# Counts


def test_the_counts_are_right(job: Job) -> None:
    summary = summarize(job.state)
    done = [record for record in job.records if record.error is None]
    kept = [record for record in done if "kept existing" in record.notes]
    assert (summary.inputs, summary.done, summary.failed) == (COUNT, COUNT, COUNT - len(done))
    assert (summary.kept, summary.captioned) == (len(kept), len(done) - len(kept))
    assert summary.generated_tokens == sum(sum(record.tokens) for record in done)
    assert summary.words == Counter(len(record.captions[0].split()) for record in done)
    repetitive = [record.key for record in done if record.captions[0].count("There is a small red star to") > 1]
    assert summary.repetitive == len(repetitive) == len(summary.repetitive_examples.values()) > 3
    assert {example.key for example in summary.repetitive_examples.values()} == set(repetitive)
    white = [record for record in done if record.captions[0] == "The background is white."]
    top = summary.same_captions.largest(1)[0]
    assert (top.text, top.count) == ("The background is white.", len(white))
    shas = Counter(record.sha256 for record in job.records if record.sha256)
    assert summary.same_images.count == sum(count - 1 for count in shas.values()) > 5
    assert [example.text for example in summary.shortest.values()] == sorted(
        (record.captions[0] for record in done), key=lambda text: len(text.split())
    )[:5]


def test_reasons_are_counted_without_names_and_numbers() -> None:
    summary = Summary()
    for number, head in enumerate(("6e 6f 20 ...", "ff d8", "00 00 00 1c ...")):
        error = f"a/{number}.png: {number + 9} bytes ({head}): not an image format"
        summary.add(Record(number, f"a/{number}", f"a/{number}.png", error=error))
    assert summary.reasons.most_common() == [("...: # bytes (...): not an image format", 3)]
    assert len(next(iter(summary.reason_examples.values()))) == 3


def test_identical_captions_of_identical_images_are_not_duplicates() -> None:
    summary = Summary()
    for number in range(4):
        summary.add(Record(number, str(number), f"{number}.png", ("Same.",), sha256="a" * 64))
    assert summary.same_captions.count == 0 and summary.same_images.count == 3


def test_a_running_job_can_be_reported(job: Job, tmp_path: Path) -> None:
    state = tmp_path / "captions.jsonl.share4v"
    state.mkdir()
    complete = (job.state / "journal.jsonl").read_bytes().splitlines(keepends=True)[:50]
    (state / "journal.jsonl").write_bytes(b"".join(complete) + b'{"number":50,"key":"wh')
    (state / "inputs.jsonl").write_bytes((job.state / "inputs.jsonl").read_bytes())
    path, summary = write_report(tmp_path / "captions.jsonl", read=read_file)
    assert summary.done == 50 and path.parent == state
    page = path.read_text(encoding="utf-8")
    assert "50 of 300 inputs done" in page and "This job has no speed log" in page


@pytest.mark.parametrize("records", [[], [Record(0, "a", "a.png", error="unreadable")]])
def test_a_job_without_captions_can_be_reported(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text("".join(map(to_line, records)), encoding="utf-8")
    path, summary = write_report(tmp_path)
    assert summary.done == len(records)
    assert "There are no captions to measure" in path.read_text(encoding="utf-8")


def test_memory_does_not_grow_with_the_journal() -> None:
    """All fields of the records differ, so every table fills up."""
    summary = Summary(
        same_captions=DuplicateCounter(200),
        same_images=DuplicateCounter(200),
        **{name: TopCounts(200) for name in ("openings", "prompts", "models", "notes", "finish_reasons", "reasons")},
    )
    sizes = []
    for number in range(9000):
        text = f"{'abcdefghij'[number % 10]}{number} is {'long ' * (number % 7)} {number}"
        record = Record(
            number, f"k{number}", f"{number}.png", (text,), sha256=f"{stable_hash(text):064x}", tokens=(number,)
        )
        varied = {
            "prompts": (f"p {number}",),
            "notes": (f"{text} b",),
            "model": f"m{number}",
            "finish_reasons": (text,),
        }
        summary.add(replace(record, **varied))
        summary.add(Record(number, f"k{number}", "x", error=text))
        if number % 3000 == 2999:
            counts = {
                name: value for name, value in vars(summary).items() if name != "audit"
            }  # see audit/test_audit.py
            sizes.append(len(pickle.dumps(counts)))
    assert sizes[2] < 1.1 * sizes[1]


# Speed


@given(st.lists(st.integers(0, 9), min_size=1))
def test_median(lengths: list[int]) -> None:
    assert median(Counter(lengths)) == sorted(lengths)[len(lengths) // 2]


def test_the_speed_log_survives_an_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / SPEED_LOG
    timer = iter([10.0, 12.0, 100.0, 101.0])
    SpeedLog(path, lambda: 5.0, lambda: next(timer)).note(4, 80)
    path.write_text(path.read_text() + '{"at": 7, "seco')
    SpeedLog(path, lambda: 6.0, lambda: next(timer)).note(1, 30)
    assert list(read_speed_log(path)) == [
        SpeedSample(5.0, 0.0, 0, 0),
        SpeedSample(5.0, 2.0, 4, 80),
        SpeedSample(6.0, 0.0, 0, 0),
        SpeedSample(6.0, 1.0, 1, 30),
    ]
    summary = Summary()
    summary.add_speed(read_speed_log(path))
    assert (summary.seconds, summary.run_starts, summary.started, summary.ended) == (3.0, [0.0, 2.0], 5.0, 6.0)
    assert list(read_speed_log(tmp_path / "none.jsonl")) == []


def test_a_speed_log_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    SpeedLog(tmp_path / "no" / "such" / "folder").note(1, 1)
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.tuples(st.floats(0.01, 50), st.integers(0, 900)), max_size=50), st.integers(1, 40))
def test_a_long_speed_log_is_merged_without_loss(rows: list[tuple[float, int]], times: int) -> None:
    summary = Summary()
    samples = [SpeedSample(0.0, seconds, 1, tokens) for seconds, tokens in rows * times]
    summary.add_speed(samples)
    assert len(summary.speed) <= 400
    assert sum(one.tokens for one in summary.speed) == sum(one.tokens for one in samples)
    assert sum(one.seconds for one in summary.speed) == pytest.approx(summary.seconds)


# The command


def test_the_command(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "journal.jsonl").write_bytes((job.state / "journal.jsonl").read_bytes())
    html = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--html", str(html)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{html}: ") and "captions," in out and "failed" in out and not err
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_usage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "no journal.jsonl in" in capsys.readouterr().err
    (tmp_path / "journal.jsonl").write_text("garbage\n" + to_line(Record(1, "a", "a")), encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 2
    assert "journal.jsonl, line 1: not a record" in capsys.readouterr().err
    monkeypatch.setattr(report_module, "_REQUIRED_PACKAGES", ("no_such_library",))
    assert main(["report", str(tmp_path)]) == 2
    assert "needs no_such_library" in (err := capsys.readouterr().err) and "mindone-share4v[report]" in err


def test_the_state_of_an_output_is_found(tmp_path: Path) -> None:
    for state, out in ((".share4v", ""), ("captions.jsonl.share4v", "captions.jsonl"), ("state", "state")):
        (tmp_path / state).mkdir()
        (tmp_path / state / "journal.jsonl").touch()
        assert find_state(tmp_path / out) == tmp_path / state
        (tmp_path / state / "journal.jsonl").unlink()
    with pytest.raises(ReportError, match="or the folder that it captioned"):
        find_state(tmp_path)


def test_the_page_can_show_any_text(job: Job) -> None:
    """Lone surrogates, control characters and other scripts."""
    summary = Summary()
    summary.add(Record(0, "k\udcff", "s\udcff", ("天\x07\u2028 \ud83d caption",), prompts=("?\udc80",), tokens=(3,)))
    page = report_module.render(summary, {}, "name\udce9")
    page.encode()
    assert "天" in page and "name\\xe9" in page
