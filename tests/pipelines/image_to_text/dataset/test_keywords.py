"""`caption_dataset` called with keywords, with options objects, and from the command line: the same job each time."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
from helpers.pictures import encoded, scene

from mindone.pipelines.image_to_text.dataset.api import caption_dataset
from mindone.pipelines.image_to_text.dataset.keywords import KEYWORDS, DatasetOptions, build_options
from mindone.pipelines.image_to_text.dataset.options import (
    CaptioningSettings,
    ExecutorOptions,
    JobOptions,
    ModelChoice,
)
from mindone.pipelines.image_to_text.dataset.prompts.plan import PromptPlan
from mindone.pipelines.image_to_text.dataset.readers import ReaderOptions
from mindone.pipelines.image_to_text.dataset.readers.downloads import DownloadOptions
from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules
from mindone.pipelines.image_to_text.dataset.writers import WriterOptions
from mindone_share4v.arguments.caption_dataset import add_arguments
from mindone_share4v.cli import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encoded(scene(number)))
    return folder


def test_keywords_options_and_command_line_write_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name / "captions.jsonl" for name in ("keywords", "options", "command", "defaults")]
    by_keywords = caption_dataset(
        photos, out=outs[0], style="one-sentence", max_new_tokens=6, temperature=0.5, seed=4, strip="The", batch_size=2
    )
    by_options = caption_dataset(
        photos,
        plan=PromptPlan.from_options(styles=["one-sentence"], seed=4),
        settings=CaptioningSettings(
            max_new_tokens=6, temperature=0.5, seed=4, rules=TextRules(openings=("The",)), batch_size=2
        ),
        options=JobOptions(out=str(outs[1])),
    )
    flags = ["--style", "one-sentence", "--max-new-tokens", "6", "--temperature", "0.5", "--seed", "4"]
    command = ["caption-dataset", str(photos), "--out", str(outs[2]), *flags, "--strip", "The", "--batch-size", "2"]
    assert main(command) == 0
    assert by_keywords.captioned == by_options.captioned == 3
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()
    assert description(outs[0]) == description(outs[1]) == description(outs[2])
    caption_dataset(photos, out=outs[3])
    assert outs[3].read_bytes() != outs[0].read_bytes()


def description(out: Path) -> dict[str, Any]:
    """The job's settings, as they are compared when it resumes, without the path of the output."""
    stored: dict[str, Any] = json.loads(out.with_name(f"{out.name}.share4v").joinpath("job.json").read_text())
    assert stored.pop("out") == str(out) and stored["sources"].pop("ignored") == [str(out)]
    return stored


def test_keywords_and_flags_have_the_same_names() -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    flags = set(vars(parser.parse_args([]))) - {"inputs", "list_styles", "list_rules", "config", "given"}
    assert flags == set(KEYWORDS) - {"token"}  # on the command line HF_TOKEN has it


VALUES: dict[str, Any] = {
    **{"model": Path("models/7b"), "vision_tower": "tower", "dtype": "int4", "kv_cache_dtype": "int8"},
    **{"numa": "interleave"},
    **{"language_backend": "mindspore", "vision_backend": "kernels", "conversation": "plain", "cache_dir": "cache"},
    **{"local_files_only": True, "style": "tags", "prompt": ["What?", "Why?"], "captions": 2, "every_prompt": False},
    **{"max_new_tokens": 9, "min_new_tokens": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": "###"},
    **{"min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": 0.4, "no_repeat_ngram_size": 3},
    **{"revision": "v2", "token": "secret", "subfolder": "inner", "adapter": Path("lora")},
    **{
        "repetition_penalty": 1.2,
        "begin_with": "A",
        "attempts": 2,
        "seed": 3,
        "batch_size": 4,
        "workers": 1,
        "max_image_pixels": 999,
    },
    **{"strip_openings": True, "strip": ["Here"], "max_sentences": 2, "max_words": 30, "min_words": 3},
    **{"require": "cat", "forbid": ("dog", "cow"), "include": "*.png", "exclude": ["b*"], "image_root": "root"},
    **{"image_column": "i", "caption_column": "c", "key_column": "k", "caption_root": Path("texts"), "frames": 4},
    **{
        "frame_grid": True,
        "out": Path("out"),
        "format": ["txt", "jsonl", "txt"],
        "existing": "append",
        "on_fault": "fail",
        "overwrite": True,
    },
    **{
        "engine": "ray",
        "state": "state",
        "restart": True,
        "retry_failed": None,
        "adopt": None,
        "shard_size": 7,
        "seconds": True,
        "template": "sks, {caption}",
        "fit": ["clip:77", "t5:300"],
    },
    **{"endpoint": "http://a/v1", "api_key_env": "KEY", "max_in_flight": 5, "image_size": 640},
    **{"url_attempts": 2, "url_seconds": 4.5, "url_bytes": 1000, "url_per_host": 1, "url_private": True},
    **{"user_agent_token": "mybot", "disallowed_header_directives": "noai, NoIndex"},
    **{"request_timeout": 9.5, "request_fields": '{"top_k": 20}'},
    **{
        "replicas": 4,
        "actors": 2,
        "cpus": 3,
        "encoding": "gbk",
        "same_name": "first",
        "limit": 50,
        "near_equal": "note",
        "dry_run": True,
    },
}


def test_every_keyword_sets_its_field(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("2 | Where?")
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    assert set(VALUES) == set(KEYWORDS) - {"prompt_file", "schema", "texts"}
    for schema in ({"type": "object"}, tmp_path / "schema.json", str(tmp_path / "schema.json")):
        assert build_options({"schema": schema}).settings == CaptioningSettings(schema={"type": "object"})
    assert build_options({**VALUES, "prompt_file": tmp_path / "prompts.txt"}) == DatasetOptions(
        choice=ModelChoice(
            model="models/7b",
            vision_tower="tower",
            dtype="int4",
            kv_cache_dtype="int8",
            numa="interleave",
            language_backend="mindspore",
            vision_backend="kernels",
            conversation="plain",
            cache_dir="cache",
            local_files_only=True,
            revision="v2",
            token="secret",
            subfolder="inner",
            adapter={"lora": 1.0},
        ),
        plan=PromptPlan.from_options(
            styles=["tags"], prompts=["What?", "Why?"], files=[tmp_path / "prompts.txt"], captions=2, seed=3
        ),
        settings=CaptioningSettings(
            max_new_tokens=9,
            min_new_tokens=1,
            temperature=0.5,
            top_p=0.9,
            top_k=5,
            repetition_penalty=1.2,
            min_p=0.1,
            presence_penalty=0.5,
            frequency_penalty=0.4,
            no_repeat_ngram_size=3,
            stop=("###",),
            rules=TextRules(
                strip_openings=True,
                openings=("Here",),
                max_sentences=2,
                max_words=30,
                min_words=3,
                required_words=("cat",),
                forbidden_words=("dog", "cow"),
            ),
            begin_with="A",
            attempts=2,
            seed=3,
            batch_size=4,
            workers=1,
            max_image_pixels=999,
            downloads=DownloadOptions(
                url_attempts=2,
                url_seconds=4.5,
                url_bytes=1000,
                url_per_host=1,
                url_private=True,
                user_agent_token="mybot",
                disallowed_header_directives=("noai", "noindex"),
            ),
        ),
        readers=ReaderOptions(
            encoding="gbk",
            same_name="first",
            include=("*.png",),
            exclude=("b*",),
            image_root="root",
            image_column="i",
            caption_column="c",
            key_column="k",
            caption_root="texts",
            frames=4,
            frame_mode="grid",
        ),
        options=JobOptions(
            out="out",
            formats=("txt", "jsonl"),
            existing="append",
            on_fault="fail",
            overwrite=True,
            writers=WriterOptions(shard_size=7, seconds=True, template="sks, {caption}", fit=("clip:77", "t5:300")),
            engine="ray",
            executor=ExecutorOptions(
                replicas=4,
                actors=2,
                cpus=3,
                endpoints=("http://a/v1",),
                api_key_env="KEY",
                max_in_flight=5,
                image_size=640,
                request_timeout=9.5,
                request_fields={"top_k": 20},
            ),
            state="state",
            restart=True,
            limit=50,
            near_equal="note",
            dry_run=True,
        ),
    )
    assert build_options({"every_prompt": True, "retry_failed": True}).options.retry_failed


def test_without_keywords_the_options_are_the_defaults() -> None:
    assert build_options({}) == build_options(dict.fromkeys(KEYWORDS)) == DatasetOptions()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"stlye": "tags"}, r"unknown keyword argument of caption_dataset 'stlye'.*Did you mean 'style'\?"),
        ({"batchsize": 2}, r"Did you mean 'batch_size'\?"),
    ],
)
def test_an_unknown_keyword_names_the_closest(photos: Path, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        caption_dataset(photos, **keywords)
    assert len(list(photos.iterdir())) == 3


@pytest.mark.parametrize(
    ("keywords", "objects", "message"),
    [
        (
            {"out": "a.jsonl"},
            {"options": JobOptions(out="b.jsonl")},
            "out and options are both given, but options sets",
        ),
        ({"actors": 2}, {"options": JobOptions()}, "actors and options are both given"),
        ({"batch_size": 2}, {"settings": CaptioningSettings()}, "batch_size and settings are both given"),
        ({"require": "cat"}, {"settings": CaptioningSettings()}, "but settings sets required_words too: set it in"),
        ({"dtype": "int8"}, {"choice": ModelChoice()}, "dtype and choice are both given"),
        ({"style": "tags"}, {"plan": PromptPlan.from_options()}, "style and plan are both given"),
        ({"frames": 2}, {"readers": ReaderOptions()}, "frames and readers are both given"),
    ],
)
def test_a_keyword_and_an_object_that_sets_the_same_are_rejected(
    photos: Path, keywords: dict[str, Any], objects: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        caption_dataset(photos, **keywords, **objects)
    assert len(list(photos.iterdir())) == 3


def test_keywords_go_with_objects_that_set_other_things() -> None:
    settings, plan = CaptioningSettings(batch_size=3), PromptPlan.from_options(styles=["tags"])
    built = build_options({"out": "a.jsonl", "seed": 5}, plan=plan)
    assert built.plan is plan and built.settings.seed == 5 and built.options.out == "a.jsonl"
    assert build_options({"model": "m"}, settings=settings).settings is settings


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"attempts": 9}, "attempts must be 1 to 4, got 9"),
        ({"top_p": 3.0, "temperature": 1.0}, "top_p must be"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"existing": "replace"}, "unknown value of existing 'replace'; known: skip"),
        ({"style": "detaild"}, "Did you mean 'detailed'"),
        ({"format": "jsnl", "out": "x"}, "unknown format 'jsnl'.*Did you mean 'jsonl'"),
        ({"engine": "spark"}, "unknown engine 'spark'"),
        ({"schema": {}, "stop": "###"}, "schema and stop cannot be combined: stop would change the JSON; leave it out"),
        ({"schema": {}, "begin_with": "A"}, "schema and begin_with cannot be combined"),
        ({"schema": {}, "strip": "A"}, "schema and strip cannot be combined"),
        ({"schema": {}, "style": "tags"}, "schema and the style 'tags' cannot be combined: the style changes captions"),
        (
            {"schema": {}, "existing": "append"},
            r"schema \(--schema\) and existing \(--existing\) append cannot be combined",
        ),
        ({"schema": {"type": "objec"}}, "schema: .*Invalid type: objec"),
        ({"schema": __file__}, r"schema \(--schema\) must be a JSON file, but .*test_keywords.py is not"),
        ({"shard_size": 0}, "shard_size must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_values_are_reported_before_anything_is_written(
    photos: Path, keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        caption_dataset(photos, **keywords)
    assert len(list(photos.iterdir())) == 3


def test_new_settings_are_described_only_if_they_are_given_and_a_token_never() -> None:
    plain = build_options({})
    assert not {"min_p", "no_repeat_ngram_size"} & set(plain.settings.generation)
    assert not {"token", "revision", "subfolder", "cache_dir", "adapter"} & set(plain.choice.description)
    given = build_options(
        {"min_p": 0.1, "no_repeat_ngram_size": 3, "presence_penalty": 0.5, "revision": "v2", "token": "hf_secret"}
    )
    assert given.settings.generation["no_repeat_ngram_size"] == 3 and given.settings.generation["min_p"] == 0.1
    assert given.choice.description["revision"] == "v2" and given.choice.token == "hf_secret"
    assert "hf_secret" not in str(given.choice.description) + repr(given)
