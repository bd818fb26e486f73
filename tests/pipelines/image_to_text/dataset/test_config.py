"""Settings from a file: TOML, and the job.json of an earlier job; the command line comes before them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.jobs import write_photos

from mindone.pipelines.image_to_text import caption_dataset, read_config
from mindone.pipelines.image_to_text.dataset.api import describe_job
from mindone.pipelines.image_to_text.dataset.keywords import KEYWORDS
from mindone_share4v.arguments.caption_dataset import add_arguments
from mindone_share4v.cli import main
from mindone_share4v.parser import Parser

JOBS: list[dict[str, Any]] = [
    {},
    {"style": ["tags", "one-sentence"], "captions": 2, "seed": 5, "temperature": 0.5, "top_p": 0.9},
    {"prompt": ["What is {stem}?", "Why?"], "every_prompt": True, "max_new_tokens": 9, "stop": ["###"]},
    {"style": "detailed", "prompt": "And what else?", "strip": ["Here"], "strip_openings": True, "forbid": ["dog"]},
    {"require": ["cat"], "min_words": 2, "max_words": 30, "max_sentences": 2, "attempts": 2, "on_fault": "fail"},
    {"template": "sks, {caption}", "begin_with": "A", "existing": "append", "shard_size": 7, "seconds": True},
    {"frames": 4, "frame_grid": True, "include": ["*.png"], "exclude": ["b*"], "image_root": "root"},
    {"frames": 2, "encoding": "gbk", "same_name": "first", "caption_root": "texts", "image_column": "i"},
    {"model": "sharegpt4v-7b", "dtype": "int4", "vision_tower": "tower", "revision": "v2", "conversation": "plain"},
    {"schema": {"type": "object"}, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_p": 0.1},
    {"format": ["txt", "jsonl"], "out": "captions"},
    {"out": None},
    {
        "max_words": 30,
        "forbid": ["dog"],
        "texts": {
            "long": {"style": "detailed", "template": "sks, {caption}", "fit": ["clip:77"]},
            "brief": {"prompt": "Shorten: {long}", "image": False, "max_words": 12, "forbid": [], "temperature": 0.5},
            "asked": {},
        },
    },
]


pytestmark = pytest.mark.usefixtures("echo_executor")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_photos(tmp_path / "photos", 2)


@pytest.mark.parametrize("name", ["out.jsonl", "out"])
def test_a_finished_job_is_not_captioned_again_because_job_json_has_absolute_paths(photos: Path, name: str) -> None:
    assert caption_dataset("photos", out=name, limit=1, prompt="A {stem}").captioned == 1
    keywords = read_config(next(photos.parent.glob("out*/**/job.json")))
    assert keywords["inputs"] == [str(photos)]
    assert caption_dataset(**keywords).captioned == 1  # the one beyond the limit
    assert (
        caption_dataset(**keywords).captioned == caption_dataset("photos", out=name, prompt="A {stem}").captioned == 0
    )


def toml(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("keywords", JOBS)
def test_a_job_is_described_again_by_its_own_file(tmp_path: Path, keywords: dict[str, Any]) -> None:
    values = {"out": str(tmp_path / "out.jsonl"), **keywords}
    description = describe_job(["photos", "more"], values)
    (tmp_path / "job.json").write_text(json.dumps(description, sort_keys=True))
    found = read_config(tmp_path / "job.json")
    assert describe_job(found.pop("inputs"), found) == description


def test_the_file_of_a_job_resumes_it_and_starts_others(photos: Path) -> None:
    caption_dataset(photos, out="a.jsonl", prompt="What is {stem}?", template="sks, {caption}")
    job = Path("a.jsonl.share4v", "job.json")
    assert caption_dataset(**read_config(job)).captioned == 0  # the same job, which is done
    assert main(["caption-dataset", "--config", str(job), "--out", "b.jsonl"]) == 0
    assert Path("b.jsonl").read_bytes() == Path("a.jsonl").read_bytes()
    assert main(["caption-dataset", "--config", str(job), "--out", "c.jsonl", "--style", "tags", "photos/0.png"]) == 0
    [row] = map(json.loads, Path("c.jsonl").read_text().splitlines())
    assert "What is" not in row["caption"] and row["caption"].startswith("sks, List the objects")


def test_toml_sets_what_the_command_line_does_not(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = 'inputs = ["photos"]\nout = "toml.jsonl"\nprompt = "Red?"\n'
    settings += "captions = 2\nbatch-size = 4\nstrip_openings = true\n"
    config = toml(Path("job.toml"), settings)
    assert main(["caption-dataset", "--config", "job.toml", "--captions", "1", "--out", "flags.jsonl"]) == 0
    rows = [json.loads(line) for line in Path("flags.jsonl").read_text().splitlines()]
    assert [row["captions"] for row in rows] == [["Red?"], ["Red?"]] and not Path("toml.jsonl").exists()
    assert main(["caption-dataset", "--config", "job.toml"]) == 0
    by_python = caption_dataset(**{**read_config(config), "out": "python.jsonl"})
    assert by_python.captioned == 2 and Path("python.jsonl").read_bytes() == Path("toml.jsonl").read_bytes()
    # A flag that has its default value counts as given.
    toml(config, settings + 'existing = "nonsense"\n')
    assert main(["caption-dataset", "--config", "job.toml", "--out", "d.jsonl", "--existing", "skip"]) == 0
    assert main(["caption-dataset", "--config", "job.toml", "--out", "e.jsonl"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_every_keyword_can_be_set() -> None:
    """The parser tells which arguments are given, and each has a keyword's name."""
    parser = Parser()
    add_arguments(parser)
    given = parser.parse_args(["--batch-size", "8", "--seconds", "--include", "a", "--include", "b", "x"]).given
    assert given == {"batch_size", "seconds", "include", "inputs"}
    again = parser.parse_args([])
    assert again.given == frozenset() and again.batch_size == 8 and again.include == [] and again.inputs == []
    assert set(vars(again)) - {"list_styles", "list_rules", "config", "given", "inputs"} <= set(KEYWORDS)


def test_tables_of_toml_are_named_texts(photos: Path) -> None:
    tables = """
        [texts.long]
        prompt = "A long one about {stem}"
        [texts.short]
        prompt = "Shorten: {long}"
        image = false
        max-words = 12
        """
    toml(Path("job.toml"), f'inputs = "photos"\nout = "a.jsonl"\n{tables}')
    description = describe_job(
        "photos", {key: value for key, value in read_config("job.toml").items() if key != "inputs"}
    )
    assert list(description["texts"]) == ["long", "short"]
    assert description["texts"]["short"]["captions"]["rules"]["max_words"] == 12
    toml(Path("job.toml"), 'inputs = "photos"\n[texts.short]\nmax-wrods = 12\n')
    assert main(["caption-dataset", "--config", "job.toml", "--out", "b.jsonl"]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise = 4", r"unknown setting in .*job.toml 'batch_sise'.*batch_size"),
        ("batch-size = '4'", r"job.toml: batch_size must be a whole number, got '4' \(a str\)"),
        ("seconds = 1", "seconds must be true or false, got 1"),
        ("seed = true", "seed must be a whole number, got True"),
        ("style = ['tags', 3]", r"style must be a text or a list of texts, got \['tags', 3\]"),
        ("temperature = 'hot'", "temperature must be a number"),
        ("inputs = 3", "inputs must be a text or a list of texts"),
        ("batch-size = 1\nbatch_size = 2", "batch_size is set twice"),
        ("[captions]\nx = 1", "captions must be a whole number"),
        ("[texts.short]\nmax-words = '12'", r"texts.short.max_words must be a whole number, got '12'"),
        ("batch-size 4", "not TOML"),
        ("\n\n" + ".".join(["a"] * 50_000) + " = 1", r"job.toml, line 3: a key of more than 64 parts"),
        (
            "x = {" + " . ".join(['"a b"', "c", "'d'"] * 5_000) + " = 1}",
            r"job.toml, line 1: a key of more than 64 parts",
        ),
        (".".join([r'"\""', r'"\\"', r'"\\\"."'] * 700) + " = 1", r"job.toml, line 1: a key of more than 64 parts"),
        ("seed = 1\nseed = 2", "not TOML"),
    ],
)
def test_mistakes_in_toml(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(toml(tmp_path / "job.toml", text))
    assert main(["caption-dataset", "photos", "--config", str(tmp_path / "job.toml")]) == 2
    assert "share4v: error: " in capsys.readouterr().err


def test_what_is_no_file_of_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected an object of settings, got a list"):
        read_config(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"sources": 1, "captions": 2, "sinks": 3}')
    with pytest.raises(ValueError, match="not the settings of a job"):
        read_config(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"style": "tags"}')
    assert read_config(tmp_path / "a.json") == {"style": "tags"}
    (tmp_path / "a.toml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not TOML"):
        read_config(tmp_path / "a.toml")
    assert main(["caption-dataset", "photos", "--config", str(tmp_path / "none.toml")]) == 2
    assert "none.toml: there is no such file of settings" in capsys.readouterr().err


def test_settings_that_no_keyword_sets_are_named(tmp_path: Path) -> None:
    description = describe_job(["photos"], {"out": str(tmp_path / "a.jsonl")})
    for section, name, value in (("rules", "as_tags", True), ("sinks", "folder", "/data"), ("new", "x", 3)):
        changed = json.loads(json.dumps(description))
        place = changed["captions"]["rules"] if section == "rules" else changed.setdefault(section, {})
        place[name] = value
        (tmp_path / "job.json").write_text(json.dumps(changed))
        shown = "new" if section == "new" else name
        with pytest.raises(ValueError, match=rf"settings that no flag or keyword sets, .*\({shown}\)"):
            read_config(tmp_path / "job.json")


def test_weights_of_prompts_come_from_their_file(tmp_path: Path) -> None:
    prompts = toml(tmp_path / "prompts.txt", "3 | What?\nWhy?\n")
    description = describe_job(["photos"], {"out": str(tmp_path / "a.jsonl"), "prompt_file": prompts})
    (tmp_path / "job.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="its prompts have weights"):
        read_config(tmp_path / "job.json")
    found = read_config(tmp_path / "job.json", ["prompt_file"])
    assert describe_job(found.pop("inputs"), {**found, "prompt_file": prompts}) == description
