"""share4v score: compared with pycocoevalcap's functions and a separate BLEU; unavailable metrics are reported."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from mindone.pipelines.image_to_text.evaluation import metrics as metrics_module
from mindone.pipelines.image_to_text.evaluation import ptb_tokenizer as words_module
from mindone.pipelines.image_to_text.evaluation import read_captions, score_captions
from mindone.pipelines.image_to_text.evaluation.metrics import METRICS, Metric
from mindone.pipelines.image_to_text.evaluation.ptb_tokenizer import plain, ptb_words, tokenize
from mindone_share4v.cli import main

WITH_JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="PTBTokenizer and METEOR are Java programs")
WITHOUT_JAVA_METRICS = ["bleu", "rouge-l", "cider"]
PREDICTIONS = {
    "1": "A red dog runs across a green field.",
    "2": "Two cats (one black, one white) sleep on a sofa; they don't move.",
    "3": "A man's hat.",
    "4": "",
}
REFERENCES = {
    "1": ["A dog is running across a field.", "The red dog runs over green grass, fast."],
    "2": ["Two cats sleep on a sofa."],
    "3": ["A hat on a man's head.", "The man wears a hat.", "It's a hat!"],
    "4": ["A tree."],
}
# A caption, and its words from PTBTokenizer; verified again if Java is installed.
GOLDEN = {
    "In the top left there are four small blue stars. In the bottom left there are two small yellow squares.": (
        "in the top left there are four small blue stars in the bottom left there are two small yellow squares"
    ),
    "A man's dog (brown) doesn't like the boys' toys, does it?": (
        "a man 's dog -lrb- brown -rrb- does n't like the boys toys does it"
    ),
    'The sign reads "STOP" - and "GO"; it\'s 10:30 a.m. in St. Louis.': (
        "the sign reads stop and go it 's 10:30 a.m. in st. louis"
    ),
    "Two cats -- one big, one small -- can't sleep... They're at Mr. Smith's.": (
        "two cats one big one small ca n't sleep they 're at mr. smith 's"
    ),
    "It cost $5.50 & 20% off; 1,000 people, 3-4 dogs, No. 5, 1/2.": (
        "it cost $ 5.50 & 20 % off 1,000 people 3-4 dogs no. 5 1/2"
    ),
    "A well-lit, black-and-white T-shirt and/or X-ray at 50° in the U.S.": (
        "a well-lit black-and-white t-shirt and/or x-ray at 50 ° in the u.s."
    ),
    "A café’s “menu” — naïve, cannot, gonna, rock 'n' roll in the '60s, o'clock": (
        "a café 's menu naïve can not gon na rock 'n' roll in the '60s o'clock"
    ),
    "A colour photo of the theatre in grey; he says [sic] #tag.": (
        "a colour photo of the theatre in grey he says -lsb- sic -rsb- #tag"
    ),
    "": "",
    "Line\rends\u2028inside\x0ba\x85caption \U0001f642 and a lone \ud83d surrogate": (
        "line ends inside a caption and a lone surrogate"
    ),
}

WORDS = """a the two red car's dogs' dog isn't they're it's well-known black-and-white 3 10:30 1,000 50% $5 Mr. St.
    U.S. etc. e.g. p.m. café "quoted" 'single' (left) [box] TV, sky; sea: end. Next! why? -- – — ... and/or R&B 2nd
    1960s half-eaten T-shirt o'clock we'll I'd you've let's Cannot close-up sat. sun. no. in. art."""


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module.shutil, "which", lambda name: None)


def by_number(texts: dict[str, Any]) -> dict[int, list[str]]:
    return {n: [one] if isinstance(one, str) else list(one) for n, one in enumerate(texts.values())}


# Tokenization


@pytest.mark.parametrize(("caption", "words"), GOLDEN.items())
def test_the_built_in_tokenizer_equals_ptb(caption: str, words: str) -> None:
    assert ptb_words(plain(caption)) == words


@WITH_JAVA
def test_ptb_gives_the_expected_words() -> None:
    tokenized, description = tokenize(by_number(dict(zip(GOLDEN, GOLDEN, strict=True))), "ptb")
    assert [texts[0] for texts in tokenized.values()] == list(GOLDEN.values()) and "Java" in description


@WITH_JAVA
def test_both_tokenizers_agree_on_random_captions() -> None:
    rng = random.Random(4)
    words = WORDS.split()
    # The last word is plain, because PTBTokenizer may treat the end of a line differently depending on the next line.
    texts = [" ".join([*rng.choices(words, k=rng.randint(1, 14)), "there"]) for _ in range(1500)]
    theirs, _ = tokenize(dict(enumerate([text] for text in texts)), "ptb")
    differing = [text for n, text in enumerate(texts) if ptb_words(text) != theirs[n][0]]
    assert differing == []


@given(st.text(max_size=60))
def test_any_text_is_tokenized(text: str) -> None:
    words = ptb_words(plain(text))
    assert words == words.lower().strip() and "\n" not in words and ptb_words("") == ""


def test_auto_falls_back_without_java_and_says_so(no_java: None) -> None:
    tokenized, description = tokenize({0: ["It's here."]})
    assert tokenized == {0: ["it 's here"]} and description.startswith("built-in, without Java")
    with pytest.raises(RuntimeError, match=r"Java is not installed: install a Java runtime"):
        tokenize({0: ["a"]}, "ptb")
    with pytest.raises(ValueError, match="unknown tokenizer 'nltk'; known: auto, ptb, python"):
        tokenize({0: ["a"]}, "nltk")


def test_a_broken_java_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\nexit 7\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "exit status 7" in str(words_module.java_problem())
    scores = score_captions(PREDICTIONS, REFERENCES, ["bleu", "meteor"])
    assert scores.tokenizer.startswith("built-in") and "exit status 7" in scores.not_computed["METEOR"]


# Metrics


def corpus_bleu(predictions: list[list[str]], references: list[list[list[str]]], order: int) -> float:
    """Corpus BLEU of Papineni et al. 2002: clipped counts, and the length of the closest reference."""
    logs, length, closest = 0.0, 0, 0
    for words, refs in zip(predictions, references, strict=True):
        length += len(words)
        closest += min((abs(len(ref) - len(words)), len(ref)) for ref in refs)[1]
    for size in range(1, order + 1):
        correct = total = 0
        for words, refs in zip(predictions, references, strict=True):
            grams = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
            clip: Counter[tuple[str, ...]] = Counter()
            for ref in refs:
                clip |= Counter(tuple(ref[i : i + size]) for i in range(len(ref) - size + 1))
            correct += sum((grams & clip).values())
            total += sum(grams.values())
        logs += math.log(Fraction(correct, total)) / order
    return math.exp(logs + min(0.0, 1 - closest / length))


def test_bleu_equals_the_definition() -> None:
    predictions = {"a": "the cat sat on the mat today", "b": "a dog in a small red boat"}
    references = {"a": ["the cat sat on a mat", "a cat is on the mat today"], "b": ["a dog in a red boat on a lake"]}
    scores = score_captions(predictions, references, ["bleu"], "python").scores
    made = [text.split() for text in predictions.values()]
    given_words = [[text.split() for text in texts] for texts in references.values()]
    for order in (1, 2, 3, 4):
        assert scores[f"BLEU-{order}"] == pytest.approx(corpus_bleu(made, given_words, order), rel=1e-6)
    # 6 of 7 words are correct in each: "the" occurs twice, but once in each reference. 14 words; the closest references
    # have 16.
    assert scores["BLEU-1"] == pytest.approx(12 / 14 * math.exp(1 - 16 / 14), rel=1e-6)


@pytest.mark.parametrize("tokenizer", [pytest.param("ptb", marks=WITH_JAVA), "python"])
def test_scores_equal_pycocoevalcap(tokenizer: str) -> None:
    scores = score_captions(PREDICTIONS, REFERENCES, WITHOUT_JAVA_METRICS, tokenizer)
    made, _ = tokenize(by_number(PREDICTIONS), tokenizer)
    given_words, _ = tokenize(by_number(REFERENCES), tokenizer)
    bleu, each_bleu = Bleu(4).compute_score(given_words, made, verbose=0)
    rouge, each_rouge = Rouge().compute_score(given_words, made)
    cider, each_cider = Cider().compute_score(given_words, made)
    expected = {f"BLEU-{n + 1}": value for n, value in enumerate(bleu)} | {"ROUGE-L": rouge, "CIDEr": cider}
    assert scores.scores == expected and not scores.not_computed and scores.images == 4
    assert list(scores.per_image) == list(PREDICTIONS)
    for number, own in enumerate(scores.per_image.values()):
        assert own["BLEU-4"] == each_bleu[3][number]
        assert (own["ROUGE-L"], own["CIDEr"]) == (each_rouge[number], each_cider[number])
    assert scores.notes == ("1 captions have no words and score 0",)


@WITH_JAVA
def test_meteor_equals_pycocoevalcap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program reads its tables for seconds, so it runs once: what it was given and what it answered are watched."""
    from pycocoevalcap.meteor.meteor import Meteor

    calls, compute = [], Meteor.compute_score

    def watched(self: Meteor, *words: Any) -> Any:
        calls.append((words, compute(self, *words)))
        return calls[-1][1]

    monkeypatch.setattr(Meteor, "compute_score", watched)
    scores = score_captions(PREDICTIONS, REFERENCES, ["meteor"])
    made, _ = tokenize(by_number(PREDICTIONS))
    given_words, _ = tokenize(by_number(REFERENCES))
    ((words, (total, each)),) = calls
    assert words == (given_words, made)
    assert scores.scores == {"METEOR": total} and total > 0.1
    assert [own["METEOR"] for own in scores.per_image.values()] == each


def test_identical_captions_score_one() -> None:
    same = {key: texts[0] for key, texts in REFERENCES.items()}
    scores = score_captions(same, REFERENCES, ["bleu", "rouge-l"]).scores
    assert scores["BLEU-1"] == pytest.approx(1) and scores["ROUGE-L"] == pytest.approx(1)


def test_other_metrics_are_computed_without_java(no_java: None) -> None:
    scores = score_captions(PREDICTIONS, REFERENCES)
    assert set(scores.scores) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}
    assert set(scores.not_computed) == {"METEOR", "SPICE"}
    for reason in scores.not_computed.values():
        assert reason.startswith("Java is not installed: install a Java runtime")


# SPICE cannot run here, because its parser's model must be downloaded. The tests cover what surrounds it: one download
# attempt, the report of its failure, and how the results of pycocoevalcap's class are read.


@pytest.fixture
def java(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a working Java."""
    monkeypatch.setattr(metrics_module, "java_problem", lambda: None)
    monkeypatch.setattr(words_module, "java_problem", lambda: "disabled")
    answer = subprocess.CompletedProcess(["java"], 0, "", 'openjdk version "17.0.1"')
    monkeypatch.setattr(metrics_module.subprocess, "run", lambda *args, **options: answer)


def test_a_failed_download_of_the_model_is_reported(java: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spice = importlib.import_module("pycocoevalcap.spice.get_stanford_models")
    monkeypatch.setattr(metrics_module, "_SPICE_JARS", ("absent.jar", "absent-models.jar"))
    calls = []

    def fail() -> None:
        calls.append(1)
        raise URLError("no route to host")

    monkeypatch.setattr(spice, "get_stanford_models", fail)
    reason = score_captions(PREDICTIONS, REFERENCES, ["spice"]).not_computed["SPICE"]
    assert "could not be downloaded" in reason and "no route to host" in reason
    assert "python -m pycocoevalcap.spice.get_stanford_models" in reason and calls == [1]
    reason = score_captions(PREDICTIONS, REFERENCES, ["spice"], download=False).not_computed["SPICE"]
    assert "downloads are disabled" in reason and calls == [1]


def replace_spice(monkeypatch: pytest.MonkeyPatch, compute: Callable[..., Any]) -> None:
    module = types.ModuleType("stub_scorer")
    module.Stub = type("Stub", (), {"compute_score": lambda self, given, made: compute(given, made)})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stub_scorer", module)
    monkeypatch.setitem(METRICS, "spice", Metric(("SPICE",), "stub_scorer:Stub", needs_java=True))


def test_the_results_of_spice_are_read(java: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def compute(given: dict[int, list[str]], made: dict[int, list[str]]) -> Any:
        seen.append(os.environ["JAVA_TOOL_OPTIONS"])
        return 0.25, [{"All": {"f": 0.1 * number, "pr": 1.0}} for number in sorted(made)]

    replace_spice(monkeypatch, compute)
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dmine=1")
    scores = score_captions(PREDICTIONS, REFERENCES, ["spice"])
    assert scores.scores == {"SPICE": 0.25}
    assert [own["SPICE"] for own in scores.per_image.values()] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert seen[0].startswith("-Dmine=1 --add-opens=java.base/java.lang=ALL-UNNAMED")
    assert os.environ["JAVA_TOOL_OPTIONS"] == "-Dmine=1"


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            subprocess.CalledProcessError(1, ["java"]),
            "Stub's Java program exited with status 1; its output is above",
        ),
        (ValueError("could not convert string to float: ''"), "Stub failed: ValueError: could not convert"),
        (AssertionError(), "Stub failed: AssertionError"),
    ],
)
def test_a_failed_scorer_is_reported(
    java: None, monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str
) -> None:
    def compute(given: Any, made: Any) -> Any:
        raise raised

    replace_spice(monkeypatch, compute)
    scores = score_captions(PREDICTIONS, REFERENCES, ["bleu", "spice"])
    assert scores.not_computed["SPICE"].startswith(message) and "BLEU-4" in scores.scores


def test_a_score_of_nan_is_reported(java: None, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_spice(monkeypatch, lambda given, made: (math.nan, [math.nan] * 4))
    assert "Stub returned nan" in score_captions(PREDICTIONS, REFERENCES, ["spice"]).not_computed["SPICE"]


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(ValueError, match="no captions to score"):
        score_captions({}, {})
    with pytest.raises(ValueError, match="1 images have no reference, for example 'b'"):
        score_captions({"a": "x", "b": "y"}, {"a": ["x"]})
    with pytest.raises(ValueError, match="2 images have no prediction, for example 'b'"):
        score_captions({"a": "x"}, {"a": ["x"], "b": ["y"], "c": ["z"]})
    with pytest.raises(ValueError, match="references of 'a' are 'x': expected a list"):
        score_captions({"a": "x"}, {"a": "x"})
    with pytest.raises(ValueError, match=r"unknown metric 'bleu4'; known: bleu, meteor, rouge-l, cider, spice"):
        score_captions({"a": "x"}, {"a": ["x"]}, ["bleu4"])


def test_cider_of_one_image_is_explained() -> None:
    scores = score_captions({"a": "a dog"}, {"a": ["a dog"]}, ["cider"], "python")
    assert scores.scores["CIDEr"] == 0 and "with one image it is 0" in scores.notes[0]


# Files


def write(path: Path, file_format: str, rows: list[tuple[str, str]]) -> Path:
    """Write captions in one of the supported formats."""
    grouped: dict[str, list[str]] = {}
    for key, text in rows:
        grouped.setdefault(key, []).append(text)
    file = path.with_suffix({"coco": ".json", "object": ".json", "list": ".json"}.get(file_format, f".{file_format}"))
    if file_format == "coco":
        numbers = {key: n for n, key in enumerate(grouped, 1)}
        value: Any = {
            "images": [{"id": n, "file_name": f"{key}.jpg"} for key, n in numbers.items()],
            "annotations": [{"id": 90 + n, "image_id": numbers[key], "caption": t} for n, (key, t) in enumerate(rows)],
        }
        file.write_text(json.dumps(value))
    elif file_format == "object":
        file.write_text(json.dumps(grouped))
    elif file_format == "list":
        file.write_text(json.dumps([{"image": key, "caption": text} for key, text in rows]))
    elif file_format == "jsonl":
        file.write_text(
            "".join(json.dumps({"image": key, "captions": texts}) + "\n\n" for key, texts in grouped.items())
        )
    else:
        with file.open("w", newline="", encoding="utf-8-sig") as out:
            writer = csv.writer(out, delimiter="," if file_format == "csv" else "\t")
            writer.writerows([("image", "text"), *rows])
    return file


ROWS = [("a", 'One, "two"'), ("b", "Line\nend"), ("a", "Three\t"), ("c", "Vier: é")]


@pytest.mark.parametrize("file_format", ["coco", "object", "list", "jsonl", "csv", "tsv"])
def test_every_format_gives_the_same_captions(file_format: str, tmp_path: Path) -> None:
    made = read_captions(write(tmp_path / "captions", file_format, ROWS))
    names = {"1": "a", "2": "b", "3": "c"} if file_format == "coco" else {"a": "a", "b": "b", "c": "c"}
    captions = {names[key]: texts for key, texts in made.captions.items()}
    assert captions == {"a": ['One, "two"', "Three\t"], "b": ["Line\nend"], "c": ["Vier: é"]}
    if file_format == "coco":
        assert made.names == {"1": "a.jpg", "2": "b.jpg", "3": "c.jpg"}


def test_captions_written_by_this_package(tmp_path: Path) -> None:
    """The outputs of `share4v caption --json` and `share4v caption-dataset`."""
    file = tmp_path / "captions.jsonl"
    rows = [
        {"image": "a.jpg", "error": "unreadable"},
        {"image": "b.jpg", "caption": "A dog.", "tokens": 3, "seconds": 0.1, "finish_reason": "eos"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = read_captions(file)
    assert made.captions == {"b.jpg": ["A dog."]} and made.failed == ["a.jpg"]
    rows = [
        {"number": 0, "key": "b", "source": "b.jpg", "caption": "A dog.", "captions": ["A dog."], "error": None},
        {"number": 1, "key": "c", "source": "c.jpg", "caption": None, "captions": [], "error": "gone"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = read_captions(file)
    assert made.captions == {"b": ["A dog."]} and made.failed == ["c"] and made.columns == ("key", "caption")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", r"unknown format; expected a file that ends in \.json, \.jsonl"),
        ("a.json", "[1]", "entry 1: expected an object, got 1"),
        ("a.json", '"x"', "expected a list of objects or an object, got a str"),
        ("a.json", "[{", "not JSON, at line 1"),
        ("a.json", "[" * 100_000, "a.json: not JSON: maximum recursion depth"),
        ("a.jsonl", '{"key": ' + "9" * 5000 + "}", "line 1: not JSON: Exceeds the limit"),
        ("a.json", "[]", "the file has no captions"),
        ("a.jsonl", '{"key": "a", "caption": "x"}\n{', "line 2: not JSON"),
        ("a.jsonl", '{"key": "a", "caption": "x"}\n{"caption": "y"}', "line 2: no 'key'; the row has 'caption'"),
        ("a.jsonl", '{"key": "a", "caption": 3}', "line 1: 'caption' is 3, expected a string"),
        ("a.jsonl", '{"key": "a", "caption": "x"}\n{"key": "b", "caption": null}', "line 2: 'caption' is None"),
        (
            "a.jsonl",
            '{"name": "a", "caption": "x"}',
            "no known key column among 'name', 'caption'; name it with --key",
        ),
        (
            "a.jsonl",
            '{"key": "a", "description": "x"}',
            "no known caption column among 'key', 'description'; name it with --caption",
        ),
        ("a.jsonl", '{"key": "a", "error": "gone"}', "the file has no captions, only 1 failures"),
        ("a.csv", "key,caption\na\n", "line 2: the row and the header have different numbers of columns"),
        ("a.csv", b"key,caption\na,\xff\xfe\n", "not UTF-8 text"),
    ],
)
def test_errors_of_files_name_the_file_and_the_reason(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_captions(tmp_path / name)
    assert name in str(error.value)


def test_columns_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("picture,key,words\nx,1,A dog\n")
    assert read_captions(tmp_path / "a.csv", "picture", "words").captions == {"x": ["A dog"]}
    with pytest.raises(
        ValueError, match=r"unknown column 'pictur'; known: picture, key, words\. Did you mean 'picture'"
    ):
        read_captions(tmp_path / "a.csv", "pictur", "words")


# The command


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = main(["score", *map(str, argv)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def jsonl(path: Path, rows: dict[str, Any], key: str = "key") -> Path:
    names = {True: "caption", False: "captions"}
    path.write_text(
        "".join(json.dumps({key: name, names[isinstance(text, str)]: text}) + "\n" for name, text in rows.items())
    )
    return path


ONLY = ["--metric", "bleu", "--metric", "cider", "--tokenizer", "python"]


def test_the_table_and_the_json_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = jsonl(tmp_path / "p.jsonl", PREDICTIONS), jsonl(tmp_path / "r.jsonl", REFERENCES)
    status, out, err = run(capsys, *files, *ONLY, "--json")
    result = json.loads(out)
    assert status == 0 and not err and len(out.splitlines()) == 1
    direct = score_captions(PREDICTIONS, REFERENCES, ["bleu", "cider"], "python")
    assert result["scores"] == direct.scores and result["images"] == 4 and result["matched_by"] == "keys"
    assert result["tokenizer"].startswith("built-in, without Java") and result["not_computed"] == {}
    status, out, _ = run(capsys, *files, *ONLY)
    assert status == 0
    for name, score in direct.scores.items():
        assert re.search(rf"^{name} +{score:.4f}$", out, re.MULTILINE)
    assert "4 images, matched by keys" in out and "words: built-in, without Java" in out


def test_keys_in_only_one_file_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = {**{key: text for key, text in PREDICTIONS.items() if key != "3"}, "x1": "A", "x2": "B"}
    file = jsonl(tmp_path / "p.jsonl", predictions)
    with file.open("a") as out_file:
        out_file.write('{"key": "9", "error": "gone"}\n')
    references = {**REFERENCES, **{f"r{n}": ["C"] for n in range(7)}}
    status, out, err = run(capsys, file, jsonl(tmp_path / "r.jsonl", references), *ONLY, "--json")
    result = json.loads(out)
    assert status == 1 and result["images"] == 3
    assert result["references_without_a_caption"] == {"count": 8, "first": ["3", "r0", "r1", "r2", "r3"]}
    assert result["captions_without_a_reference"] == {"count": 2, "first": ["x1", "x2"]}
    assert result["failed_predictions"] == {"count": 1, "first": ["9"]}
    assert "share4v: references without a caption: 8, the first 5 are 3, r0, r1, r2, r3" in err
    assert "share4v: captions without a reference: 2, x1, x2" in err
    kept = [key for key in PREDICTIONS if key != "3"]
    direct = score_captions(
        {k: PREDICTIONS[k] for k in kept}, {k: REFERENCES[k] for k in kept}, ["bleu", "cider"], "python"
    )
    assert result["scores"] == direct.scores


def test_coco_ids_and_file_names_are_matched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = write(tmp_path / "coco", "coco", [("a", "A dog."), ("b", "A cat."), ("a", "The dog.")])
    for rows, by in (
        ({"1": "A dog", "2": "A cat"}, "keys"),
        ({"a.jpg": "A dog", "b.jpg": "A cat"}, "file names"),
        ({"x/a.jpg": "A dog", "x/b.jpg": "A cat"}, "file names without folders"),
        ({"x/a": "A dog", "x/b": "A cat"}, "file names without folders and endings"),
    ):
        status, out, _ = run(capsys, jsonl(tmp_path / "p.jsonl", rows), references, *ONLY, "--json")
        assert status == 0 and json.loads(out)["matched_by"] == by
        assert json.loads(out)["scores"]["BLEU-1"] == pytest.approx(1, rel=1e-6)
    twice = jsonl(tmp_path / "p.jsonl", {"x/a.png": "A dog", "y/a.png": "A cat"})
    status, _, err = run(capsys, twice, references, *ONLY)
    assert (
        status == 2
        and "'x/a.png' and 'y/a.png' are both 'a' when compared by file names without folders and endings" in err
    )


def test_per_image_scores_are_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = jsonl(tmp_path / "p.jsonl", PREDICTIONS), jsonl(tmp_path / "r.jsonl", REFERENCES)
    assert run(capsys, *files, *ONLY, "--per-image", tmp_path / "each.jsonl")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    direct = score_captions(PREDICTIONS, REFERENCES, ["bleu", "cider"], "python")
    assert rows == [{"key": key, **own} for key, own in direct.per_image.items()]


def test_columns_can_be_named_for_both_files_or_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = jsonl(tmp_path / "p.jsonl", PREDICTIONS, "photo"), jsonl(tmp_path / "r.jsonl", REFERENCES, "picture")
    assert run(capsys, *files, *ONLY)[0] == 2
    assert run(capsys, *files, *ONLY, "--key", "photo")[0] == 2
    assert run(capsys, *files, *ONLY, "--key", "photo", "--key", "picture")[0] == 0
    status, _, err = run(capsys, *files, "--key", "a", "--key", "b", "--key", "c")
    assert status == 2 and "--key is given 3 times: give it once for both files, or once for each" in err


def test_usage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    good = jsonl(tmp_path / "r.jsonl", REFERENCES)
    assert run(capsys, tmp_path / "none.jsonl", good)[0] == 2
    status, _, err = run(capsys, jsonl(tmp_path / "p.jsonl", {"u": "A", "v": "B"}), good, *ONLY)
    assert (
        status == 2
        and "the files have no key in common" in err
        and "'u', 'v', ..." in err
        and "'1', '2', '3', ..." in err
    )
    status, _, err = run(capsys, jsonl(tmp_path / "p.jsonl", {"1": ["A", "B"]}), good, *ONLY)
    assert status == 2 and "'1' has 2 captions, but only one per image can be scored" in err
    monkeypatch.setattr(metrics_module, "find_spec", lambda name: None)
    status, _, err = run(capsys, jsonl(tmp_path / "p.jsonl", PREDICTIONS), good, *ONLY)
    assert status == 2 and "pip install 'mindone-share4v[score]'" in err


def test_an_unavailable_metric_sets_status_1(no_java: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = jsonl(tmp_path / "p.jsonl", PREDICTIONS), jsonl(tmp_path / "r.jsonl", REFERENCES)
    status, out, err = run(capsys, *files, "--metric", "meteor", "--metric", "bleu")
    assert status == 1 and re.search(r"^METEOR +not computed$", out, re.MULTILINE) and "BLEU-4" in out
    assert "share4v: METEOR not computed: Java is not installed" in err


def test_output_of_scorers_does_not_mix_with_the_result(
    java: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def compute(given: Any, made: Any) -> Any:
        sys.stdout.write("printed by Python\n")
        os.write(1, b"printed by a program\n")  # as a child process does
        return 0.5, [{"All": {"f": 0.5}} for _ in made]

    replace_spice(monkeypatch, compute)
    files = jsonl(tmp_path / "p.jsonl", PREDICTIONS), jsonl(tmp_path / "r.jsonl", REFERENCES)
    status, out, err = run(capfd, *files, "--metric", "spice", "--json")
    assert status == 0 and json.loads(out)["scores"] == {"SPICE": 0.5}
    assert "printed by Python" in err and "printed by a program" in err
