"""Several named texts of an image in one pass: equal to jobs run one after the other, at the cost of one image."""

from __future__ import annotations

import json
import signal
import subprocess
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.jobs import png, tree
from helpers.pictures import encoded, scene
from helpers.warm_processes import warm_python

from mindone.models.share4v.modeling import Share4V
from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text import JobSummary, TextSpec, caption_dataset
from mindone.pipelines.image_to_text.dataset.inference.caption_cache import CaptionCache
from mindone.pipelines.image_to_text.dataset.inference.captioner import CaptioningRun
from mindone.pipelines.image_to_text.dataset.inference.token_rules import forced_ids
from mindone.pipelines.image_to_text.dataset.review.publishing import publish
from mindone.pipelines.image_to_text.dataset.review.session import Change, ReviewSession
from mindone.pipelines.image_to_text.dataset.state.job_description import SettingsChangedError
from mindone_share4v.cli import main

COUNT = 5
LONG, SHORT = "Describe the image.", "Shorten this: {long}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "photos"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(encoded(scene(number)))
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def two_texts(photos: Path, out: Path, **options: Any) -> JobSummary:
    texts = [
        TextSpec("long", prompt=LONG, max_new_tokens=24),
        TextSpec("short", prompt=SHORT, max_new_tokens=10, temperature=0.8, seed=3, min_words=40, attempts=2),
    ]
    return caption_dataset(photos, out=out, texts=texts, batch_size=2, **options)


def test_the_result_is_that_of_two_jobs_one_after_the_other(photos: Path, tmp_path: Path) -> None:
    two_texts(photos, tmp_path / "both.jsonl")
    first, second = tmp_path / "long.jsonl", tmp_path / "short.jsonl"
    caption_dataset(photos, out=first, prompt=LONG, max_new_tokens=24)
    later: dict[str, Any] = {"max_new_tokens": 10, "temperature": 0.8, "seed": 3, "min_words": 40, "attempts": 2}
    caption_dataset(
        first,
        out=second,
        image_column="source",
        prompt=SHORT.replace("long", "caption"),
        existing="overwrite",
        **later,
    )
    both = rows(tmp_path / "both.jsonl")
    for row, long, short in zip(both, rows(first), rows(second), strict=True):
        assert row["caption"] == row["long"] == long["caption"] and row["short"] == short["caption"]
        for name in ("captions", "prompts", "tokens", "finish_reasons"):
            assert row[name] == [*long[name], *short[name]], name
        assert row["notes"] == [f"short: {note}" for note in short["notes"]] and row["sha256"] == long["sha256"]
        assert any("words, at least 40 required" in note for note in short["notes"])  # two attempts, both sampled
        assert long["caption"] in row["prompts"][1]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_an_image_is_encoded_once_and_its_prefix_is_computed_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    encoded_images, runs = [], []
    encode, records = Share4V.encode_images, CaptioningRun.records

    def counted(self: Share4V, pixels: Any) -> Any:
        encoded_images.append(len(pixels))
        return encode(self, pixels)

    def watched(self: CaptioningRun) -> Any:
        runs.append(self)
        return records(self)

    monkeypatch.setattr(Share4V, "encode_images", counted)
    monkeypatch.setattr(CaptioningRun, "records", watched)
    texts = ["long:detailed", "tags:tags", f"short:{SHORT}", "shorter:Shorten again: {short}"]
    options: dict[str, Any] = {"max_new_tokens": 8, "batch_size": batch_size}
    caption_dataset(photos, out=tmp_path / "out.jsonl", texts=texts, **options)
    assert sum(encoded_images) == COUNT
    queried, hits = runs[0].engine.prefix_tokens
    image_tokens = runs[0].captioner.pipeline.model.config.num_image_tokens
    assert queried > 4 * COUNT * image_tokens
    # Of the four prompts about an image, three find all of its patches in the cache.
    assert hits >= 3 * COUNT * image_tokens, (queried, hits, image_tokens)


KILLED = """
import os, signal, sys
from mindone.pipelines.image_to_text import TextSpec, caption_dataset
from mindone.pipelines.image_to_text.dataset import job
from mindone.pipelines.image_to_text.dataset.inference.caption_cache import CaptionCache
from mindone.pipelines.image_to_text.dataset.inference.captioner import CaptioningRun

photos, out, log, most = sys.argv[1], sys.argv[2], open(sys.argv[3], "a"), int(sys.argv[4])
job.GROUP_RECORDS, made = 1, [0]

def noted(original):
    def put(self, key, *more):
        original(self, key, *more)
        log.write(f"{key!r} {len(more) > 1 and more[0]}\\n")
        log.flush()
        made[0] += 1
        if made[0] == most:
            os.kill(os.getpid(), signal.SIGKILL)
    return put

CaptionCache.put, CaptionCache.put_attempt = noted(CaptionCache.put), noted(CaptionCache.put_attempt)
texts = [
    TextSpec("long", prompt="Describe the image.", max_new_tokens=12),
    TextSpec("short", prompt="Shorten this: {long}", max_new_tokens=6, require="unicorn", attempts=2),
    TextSpec("blind", prompt="Say it again: {short}", max_new_tokens=6, image=False),
]
caption_dataset(photos, out=out, texts=texts, batch_size=2, format=("jsonl", "txt", "parquet"))
"""


def test_a_kill_between_steps_changes_no_byte_and_loses_no_answer(photos: Path, tmp_path: Path) -> None:
    def run(name: str, most: int) -> int:
        arguments = [str(photos), str(tmp_path / name), str(tmp_path / f"{name}.log"), str(most)]
        return subprocess.run([warm_python(), "-c", KILLED, *arguments], check=False, timeout=300).returncode

    assert run("whole", 0) == 0
    for most in (1, 2, 3, 5):
        assert run("killed", most) == -signal.SIGKILL
    assert run("killed", 0) == 0
    outputs = [
        {path: data for path, data in tree(tmp_path / name).items() if not path.startswith(".share4v")}
        for name in ("whole", "killed")
    ]
    assert outputs[0] == outputs[1] and len(outputs[0]) == 2 + 3 * COUNT
    made = [(tmp_path / f"{name}.log").read_text().splitlines() for name in ("whole", "killed")]
    assert sorted(made[0]) == sorted(made[1])  # so none was made twice
    assert len(made[1]) == len(set(made[1])) == 4 * COUNT  # one attempt more for each of the second text


def test_a_text_without_the_image_is_the_answer_to_a_prompt_without_one(photos: Path, tmp_path: Path) -> None:
    texts = [
        TextSpec("long", prompt=LONG, max_new_tokens=12),
        TextSpec("blind", prompt="Say it again: {long}", image=False, max_new_tokens=8, begin_with="A"),
    ]
    caption_dataset(photos / "0.png", out=tmp_path / "out.jsonl", texts=texts)
    row = rows(tmp_path / "out.jsonl")[0]
    tiny = pipeline("image-to-text")
    ids = tiny.processor.encode_prompt(tiny.processor.prompt(row["prompts"][1], 0, tiny.template().name))
    begin = forced_ids(tiny.processor, "A", tiny.template().name)
    answer = tiny.model.generate(input_ids=np.array([[*ids, *begin]]), max_new_tokens=8)
    assert row["blind"] == tiny.processor.tokenizer.decode([*begin, *answer[0]]).strip()


def test_a_retry_asks_only_for_the_text_whose_rules_are_new(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And failed.jsonl names the text."""
    made: list[str] = []
    put = CaptionCache.put

    def noted(self: CaptionCache, key: tuple[bytes, str], caption: Any) -> None:
        made.append(key[1].rpartition("text ")[2])
        put(self, key, caption)

    monkeypatch.setattr(CaptionCache, "put", noted)
    long = TextSpec("long", prompt=LONG, max_new_tokens=8)
    strict = TextSpec("short", prompt=SHORT, max_new_tokens=4, require="unicorn", attempts=1)
    options: dict[str, Any] = {"out": tmp_path / "out.jsonl", "on_fault": "fail"}
    image = photos / "0.png"
    assert caption_dataset(image, texts=[long, strict], **options).failed == 1
    assert made == ["long", "short"]
    assert rows(tmp_path / "out.jsonl.share4v" / "failed.jsonl")[0]["error"].startswith("breaks a rule: short: ")
    caption_dataset(image, texts=[long, strict], retry_failed=True, **options)
    assert made == ["long", "short"]  # the same question has the same answer
    loose = TextSpec("short", prompt=SHORT, max_new_tokens=4, attempts=1)
    assert caption_dataset(image, texts=[long, loose], retry_failed=True, **options).failed == 0
    assert made == ["long", "short", "short"]


def test_a_text_that_the_model_cannot_write_is_named(photos: Path, tmp_path: Path) -> None:
    texts = [TextSpec("long", prompt=LONG, max_new_tokens=8), TextSpec("big", prompt="Read this: " + "a " * 3000)]
    assert caption_dataset(photos / "0.png", out=tmp_path / "out.jsonl", texts=texts).failed == 1
    error = rows(tmp_path / "out.jsonl.share4v" / "failed.jsonl")[0]["error"]
    assert error.startswith("big: ")


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    folder = tmp_path / "drawings"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder


ECHOED = ["long:A long text of {stem}", "short:A text of {stem}"]
FORMATS = ("txt", "jsonl", "parquet", "webdataset", "csv", "json", "imagefolder", "open-sora-csv")


@pytest.mark.usefixtures("echo_executor")
def test_every_output_has_the_texts_by_name(drawings: Path, tmp_path: Path) -> None:
    import csv

    import pyarrow.parquet

    out = tmp_path / "out"
    caption_dataset(drawings, out=out, format=FORMATS, texts=ECHOED)
    expected = [{"long": f"A long text of {n}", "short": f"A text of {n}"} for n in range(3)]

    def named(row: dict[str, Any]) -> dict[str, Any]:
        return {name: row[name] for name in ("long", "short")}

    assert [named(row) for row in rows(out / "captions.jsonl")] == expected
    assert [row["caption"] for row in rows(out / "captions.jsonl")] == [one["long"] for one in expected]
    assert [named(row) for row in pyarrow.parquet.read_table(sorted(out.glob("part-*"))).to_pylist()] == expected
    with (out / "captions.csv").open(newline="") as file:
        assert [named(row) for row in csv.DictReader(file)] == expected
    assert [named(row) for row in json.loads((out / "captions.json").read_text())] == expected
    assert [named(row) for row in rows(out / "metadata.jsonl")] == expected
    texts = {path.name: path.read_text().strip() for path in out.glob("*.txt")}
    assert texts == {f"{n}{end}.txt": one[name] for n, one in enumerate(expected) for name, end in ENDS.items()}
    with tarfile.open(next(out.glob("*.tar"))) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert members["000000001.short.txt"] == b"A text of 1\n" and members["000000001.txt"] == b"A long text of 1\n"
    assert "A long text of 2" in (out / "open_sora.csv").read_text() and ",A text" not in str(out / "open_sora.csv")


ENDS = {"long": "", "short": ".short"}


@pytest.mark.usefixtures("echo_executor")
def test_files_beside_images_are_replaced_only_if_the_job_wrote_them(drawings: Path) -> None:
    (drawings / "0.short.txt").write_text("By hand.")
    (drawings / "2.txt").write_text("By hand, too.")
    options: dict[str, Any] = {"out": None, "texts": ECHOED}
    first = caption_dataset(drawings, **options)
    assert (first.captioned, first.kept) == (2, 1) and len(first.left_out) == 1 and "0.short.txt" in first.left_out[0]
    texts = {path.name: path.read_text().strip() for path in drawings.glob("*.txt")}
    assert texts == {
        **{"0.txt": "A long text of 0", "0.short.txt": "By hand.", "1.txt": "A long text of 1"},
        **{"1.short.txt": "A text of 1", "2.txt": "By hand, too."},
    }
    again = ["long:Another long text of {stem}", "short:Another text of {stem}"]
    with pytest.raises(SettingsChangedError, match=r"texts\.long\.prompt was .*A long text"):
        caption_dataset(drawings, out=None, texts=again)
    caption_dataset(drawings, out=None, texts=again, restart=True)
    texts = {path.name: path.read_text().strip() for path in drawings.glob("*.txt")}
    assert texts["1.txt"] == "Another long text of 1" and texts["1.short.txt"] == "Another text of 1"
    assert texts["0.short.txt"] == "By hand." and texts["2.txt"] == "By hand, too."
    with ReviewSession(drawings) as session:
        session.change([Change(number=0, verdict="edited", captions=("Edited.", "Short."))])
        session.change([Change(number=1, verdict="rejected")])
        publish(session.state)
    assert (drawings / "0.txt").read_text() == "Edited.\n" and (drawings / "0.short.txt").read_text() == "By hand."
    assert not (drawings / "1.txt").exists() and not (drawings / "1.short.txt").exists()


@pytest.mark.usefixtures("echo_executor")
@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["short:Some {stem}.", "long:A {stem}."], {"short": "By hand 2", "long": "By hand 1"}),
        (["brief:One {stem}.", "short:Some {stem}."], {"brief": "One 0.", "short": "By hand 2"}),
        (["brief:One {stem}."], {"brief": "One 0."}),
        ([], {"caption": "By hand 1"}),
    ],
)
def test_what_people_wrote_stays_under_its_name_if_a_restart_has_other_texts(
    drawings: Path, tmp_path: Path, texts: list[str], expected: dict[str, str]
) -> None:
    out = tmp_path / "out.jsonl"
    caption_dataset(drawings, out=out, texts=["long:A long {stem}.", "short:A short {stem}."])
    with closing(ReviewSession(out)) as session:
        session.change([Change(number=0, verdict="edited", captions=("By hand 1", "By hand 2"))])
    caption_dataset(drawings, out=out, texts=texts, prompt="Another.", restart=True)
    row = rows(out)[0]
    assert {name: row[name] for name in expected} == expected
    assert row["captions"] == list(expected.values())


@pytest.mark.usefixtures("echo_executor")
def test_a_restart_with_other_texts_leaves_no_file_of_the_earlier_ones(drawings: Path) -> None:
    caption_dataset(drawings, texts=["long:A {stem}.", "short:The {stem}.", "tags:{stem}, a"])
    first = sorted(item.stem for item in drawings.glob("*.png"))
    (drawings / f"{first[0]}.tags.txt").write_text("from a person")
    caption_dataset(drawings, texts=["short:Some {stem}.", "brief:One {stem}."], restart=True)
    texts = {path.name: path.read_text().strip() for path in drawings.glob("*.txt")}
    expected = {f"{stem}.txt": f"Some {stem}." for stem in first} | {
        f"{stem}.brief.txt": f"One {stem}." for stem in first
    }
    assert texts == {**expected, f"{first[0]}.tags.txt": "from a person"}
    caption_dataset(drawings, prompt="A", restart=True)
    left = {path.name for path in drawings.glob("*.txt")}
    assert left == {f"{first[0]}.tags.txt", *(f"{stem}.txt" for stem in first)}


@pytest.mark.usefixtures("echo_executor")
def test_texts_have_templates_of_their_own_which_may_contain_the_others(drawings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def run(template: str | None, own: str | None) -> list[tuple[str, str]]:
        texts = [TextSpec("long", prompt="Long"), TextSpec("short", prompt="Short {stem}", template=own)]
        summary = caption_dataset(drawings, out=out, format=("txt", "jsonl"), texts=texts, template=template)
        found = [(row["long"], row["short"]) for row in rows(out / "captions.jsonl")]
        files = [tuple((out / f"{n}{end}.txt").read_text().strip() for end in ENDS.values()) for n in range(3)]
        assert files == found and (summary.captioned == 3) == (not seen)
        seen.append(summary)
        return found

    seen: list[JobSummary] = []
    assert run("sks, {caption}", None) == [("sks, Long", f"sks, Short {n}") for n in range(3)]
    assert run("sks, {caption}", "{caption} ({long})") == [("sks, Long", f"Short {n} (Long)") for n in range(3)]
    assert run("sks, {caption}", "zwx {caption}") == [("sks, Long", f"zwx Short {n}") for n in range(3)]
    assert run(None, None) == [("Long", f"Short {n}") for n in range(3)]
    with pytest.raises(ValueError, match="template must contain"):
        run(None, "zwx")


@pytest.mark.usefixtures("echo_executor")
def test_a_file_name_that_two_images_would_share_is_refused(drawings: Path) -> None:
    (drawings / "0.short.png").write_bytes(png(9))
    with pytest.raises(ValueError, match=r"0\.short\.txt would be that of two images"):
        caption_dataset(drawings, out=None, texts=ECHOED)
    assert caption_dataset(drawings, out=drawings.parent / "out.jsonl", texts=ECHOED).captioned == 4


@pytest.mark.usefixtures("echo_executor")
@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["short:shrot"], {}, "Did you mean 'short'"),
        (["a b:short"], {}, "a name starts with a letter"),
        (["caption:short"], {}, "has another meaning"),
        (["text_tokens:short"], {}, "has another meaning"),  # a column of token counts
        (["a:short"], {"require": "@refusals"}, "can only be forbidden"),
        (["a:short", "A:tags"], {}, "two of them are called"),
        (["short:Shorten: {long}", "long:detailed"], {}, "{long}"),
        (["long:detailed", "short:Shorten: {lnog}"], {}, "Did you mean {long}"),
        (["long:detailed"], {"captions": 2}, "a named text has one"),
        (["long:detailed"], {"existing": "append"}, "cannot be combined"),
        ([TextSpec("a", style="short", image=False)], {}, "does not see the image"),
        ([TextSpec("a", min_words=9, max_words=3)], {}, "a: min_words 9 is more"),
        ({"a": {"max_word": 3}}, {}, "Did you mean 'max_words'"),
        ({"a": 3}, {}, "must be a table"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    drawings: Path, texts: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        caption_dataset(drawings, out=drawings.parent / "out.jsonl", texts=texts, **options)
    assert message in str(caught.value) and not list(drawings.parent.glob("out*"))


def test_tables_and_specs_and_flags_are_the_same_job(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cli.jsonl"
    command = ["caption-dataset", str(drawings), "--out", str(out), "--max-new-tokens", "5"]
    assert main([*command, "--text", "long:detailed", "--text", "short:Shorten this: {long}", "--dry-run"]) == 0
    assert "short: Shorten this: {long}" in capsys.readouterr().out
    assert main([*command, "--text", "long:detailed", "--text", "short:Shorten this: {long}"]) == 0
    assert all(row["short"] for row in rows(out))
    tables = {"long": "detailed", "short": {"prompt": "Shorten this: {long}"}}
    assert caption_dataset(drawings, out=out, max_new_tokens=5, texts=tables).captioned == 0  # the job is done
    assert main([*command, "--text", "long:detailed", "--text", "short:srot"]) == 2
    assert "--text: unknown caption style" in capsys.readouterr().err


@pytest.mark.usefixtures("echo_executor")
def test_a_text_that_breaks_its_own_rule_is_written_by_a_retry(drawings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    broken = "A text. {note|} note: 3 words, at least 9 required"
    strict = [TextSpec("long", prompt="A text"), TextSpec("short", prompt=broken, min_words=9)]
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps({"file": f"drawings/{n}.png", "note": ""}) + "\n" for n in range(3)))
    found = caption_dataset(table, out=out, texts=strict, on_fault="fail")
    assert found.failed == 3 and {row["long"] for row in rows(out)} == {None}
    loose = [TextSpec("long", prompt="A text"), TextSpec("short", prompt=broken, min_words=1)]
    with pytest.raises(SettingsChangedError, match="add retry_failed"):
        caption_dataset(table, out=out, texts=loose, on_fault="fail")
    assert caption_dataset(table, out=out, texts=loose, retry_failed=True).failed == 0
