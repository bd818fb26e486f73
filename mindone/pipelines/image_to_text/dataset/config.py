"""Settings of a job from a file: TOML with the names of the command's flags, or the job.json of an earlier job."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from mindone.models.share4v.suggestions import unknown

from .api import describe_job
from .keywords import KEYWORDS, DatasetKeywords
from .prompts.styles import STYLES
from .state.job_description import changed_settings, with_model_files
from .state.regular_files import open_input
from .text_specs import TextSpec

QUESTIONS = ("style", "prompt", "prompt_file")  # each replaces all of them, as together they say what is asked
_MAX_BYTES = 16 * 2**20
_MAX_KEY_PARTS = 64  # of a.b.c = 1
_KEY_PART = rb"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*"""
_DEEP_KEY = re.compile(rb"(?<![A-Za-z0-9_-])(?:" + _KEY_PART + rb"){%d}" % _MAX_KEY_PARTS)
_INPUTS = "inputs"
# Sections of job.json whose names are keywords, but for these.
_SECTIONS = ("", "sources", "model", "captions", "captions.generation", "captions.rules", "sinks")
_RENAMED = {
    "beginning": "begin_with",
    "openings": "strip",
    "required_words": "require",
    "forbidden_words": "forbid",
    "formats": "format",
}
_OF_TEXTS = ("captions", "captions.generation", "captions.rules")  # sections that a named text has too
_NOT_TAKEN = ("captions", "frames", "texts")  # names of sections or of fields that mean something else there


def read_config(path: str | os.PathLike[str], replaced: Collection[str] = ()) -> dict[str, Any]:
    """Read the settings of a job, as keyword arguments of `caption_dataset`, `inputs` among them.

    A TOML file has the names of the command's flags, with `-` or `_`: `batch-size = 4`, `style = ["tags", "short"]`,
    `strip-openings = true`. Paths are relative to the current directory, as on the command line. The job.json in a
    job's state directory sets everything that its results depend on, so that the same job is resumed; with another
    `out` it is a new job with the same settings.

    Args:
        path: a .toml file, or a .json file with the same names or written by a job.
        replaced: keywords that the caller sets itself. They are left out, and one of `style`, `prompt` and
            `prompt_file` replaces all three.

    Raises:
        ValueError: the file cannot be parsed, a name is unknown, a value has the wrong type, or job.json has a setting
            that no keyword sets.
        OSError: the file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from mindone.pipelines.image_to_text import read_config
        >>> file = pathlib.Path(tempfile.mkdtemp(), "job.toml")
        >>> _ = file.write_text('inputs = "photos"\\nstyle = "tags"\\nbatch-size = 4\\n')
        >>> read_config(file)
        {'inputs': 'photos', 'style': 'tags', 'batch_size': 4}
    """
    try:
        with open_input(path) as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"{os.fspath(path)}: there is no such file of settings (config, --config)") from None
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{path}: more than {_MAX_BYTES:,} bytes, so it is no file of settings")
    is_json = Path(path).suffix.lower() == ".json"
    values = _parse_json(path, data) if is_json else _parse_toml(path, data)
    left_out = set(replaced)
    if left_out.intersection(QUESTIONS):
        left_out |= {*QUESTIONS}
    if is_json and {"sources", "captions", "sinks"} <= values.keys():
        return _keywords_of_job(path, values, left_out)
    keywords = _named(path, values)
    for name, value in keywords.items():
        _check_type(path, name, value)
    return {name: value for name, value in keywords.items() if name not in left_out}


def _parse_toml(path: str | os.PathLike[str], data: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    # Escapes become as many other characters, so that the quotes that are left are those of strings.
    deep = _DEEP_KEY.search(data.replace(rb"\\", b"**").replace(rb"\"", b"**"))
    if deep is not None:  # the parser's time grows with the square of a key's parts
        line = data.count(b"\n", 0, deep.start()) + 1
        raise ValueError(
            f"{os.fspath(path)}, line {line}: a key of more than {_MAX_KEY_PARTS} parts between dots; settings have "
            "one or two: write it as in batch-size = 4"
        )
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also of text that is not UTF-8
        raise ValueError(f"{os.fspath(path)}: not TOML ({error}): write it as in batch-size = 4") from None


def _parse_json(path: str | os.PathLike[str], data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{os.fspath(path)}: expected an object of settings, got a {type(values).__name__}")
    return values


def _named(path: str | os.PathLike[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by the names of keywords."""
    keywords: dict[str, Any] = {}
    for written, value in values.items():
        name = written.replace("-", "_")
        if name not in (_INPUTS, *KEYWORDS):
            raise ValueError(unknown(f"setting in {os.fspath(path)}", written, (_INPUTS, *KEYWORDS)))
        if name in keywords:
            raise ValueError(f"{os.fspath(path)}: {written} is set twice, with - and with _")
        keywords[name] = _with_underscores(path, value) if name == "texts" and isinstance(value, dict) else value
    return keywords


def _with_underscores(path: str | os.PathLike[str], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of named texts with the names of keywords, after checking the types of their values."""
    types = get_type_hints(TextSpec)
    found: dict[str, Any] = {}
    for text, table in tables.items():
        if not isinstance(table, dict):
            found[text] = table  # its style or prompt alone
            continue
        found[text] = {name.replace("-", "_"): value for name, value in table.items()}
        for name, value in found[text].items():
            if name in types and not _matches(value, types[name]):
                raise ValueError(_wrong_type(path, f"texts.{text}.{name}", types[name], value))
    return found


def _check_type(path: str | os.PathLike[str], name: str, value: Any) -> None:
    expected = _types()[name]
    if not _matches(value, expected):
        raise ValueError(_wrong_type(path, name, expected, value))


def _wrong_type(path: str | os.PathLike[str], name: str, expected: Any, value: Any) -> str:
    kind = type(value).__name__
    return f"{os.fspath(path)}: {name} must be {_described(expected)}, got {value!r:.80} (a {kind})"


@cache
def _types() -> dict[str, Any]:
    """Return the type of every setting."""
    return {_INPUTS: str | list[str], **get_type_hints(DatasetKeywords)}


def _matches(value: Any, expected: Any) -> bool:
    """Return whether a value of TOML or JSON is of the type of a keyword."""
    origin, inside = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType):
        return any(_matches(value, one) for one in inside)
    if origin in (list, tuple):
        return isinstance(value, list) and all(_matches(one, inside[0]) for one in value)
    if origin is not None:
        return isinstance(value, origin) if isinstance(origin, type) else True
    if expected in (int, float):
        return isinstance(value, (int,) if expected is int else (int, float)) and not isinstance(value, bool)
    if expected is Path:
        return isinstance(value, str)
    return isinstance(value, expected) if isinstance(expected, type) else True


def _described(expected: Any) -> str:
    """Return the types of a keyword in words, each once."""
    names = {int: "a whole number", float: "a number", str: "a text", Path: "a text", bool: "true or false"}
    found: dict[str, None] = {}
    for one in get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,):
        if one is not type(None):
            of_list = "a list of texts" if get_origin(one) in (list, tuple) else "a table"
            found[names.get(one, of_list)] = None
    return " or ".join(found)


def _keywords_of_job(path: str | os.PathLike[str], job: Mapping[str, Any], left_out: Collection[str]) -> dict[str, Any]:
    """Return the keywords that lead to the settings of a job, after checking that they do."""
    try:
        keywords: dict[str, Any] = {_INPUTS: [str(one) for one in job[_INPUTS]]}
        for section in _SECTIONS:
            keywords.update(_of_section(_section(job, section)))
        keywords.update(_of_readers(job["sources"], job["out"]))
        questions = _questions(job["prompts"])
        texts = _texts(job)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)}: not the settings of a job ({error!r})") from None
    if questions is None or texts is None:
        if texts is None or not {*QUESTIONS} & {*left_out}:
            raise ValueError(
                f"{os.fspath(path)}: its prompts have weights, which only a file can state: give the prompts too "
                "(prompt_file, --prompt-file)"
            )
    else:
        keywords.update(questions, **({"texts": texts} if texts else {}))
        _check_same(path, job, keywords)
    return {name: value for name, value in keywords.items() if name not in left_out}


def _section(job: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for part in name.split(".") if name else ():
        job = job[part]
    return job


def _of_section(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _with_keywords(values).items() if value not in ("", [])}


def _with_keywords(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a section that are set, by the names of their keywords."""
    named = {_RENAMED.get(name, name): value for name, value in values.items() if value is not None}
    return {name: value for name, value in named.items() if name in KEYWORDS and name not in _NOT_TAKEN}


def _texts(job: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return the tables of a job's named texts, with what differs from the job; None if prompts have weights."""
    tables: dict[str, dict[str, Any]] = {}
    sinks = job["sinks"]
    for name in sinks.get("texts", ()):
        text = job["texts"][name]
        table = tables[name] = {} if text["image"] else {"image": False}
        for section in _OF_TEXTS:
            of_job = _with_keywords(_section(job, section))
            own = _with_keywords(_section(text, section))
            table.update((key, value) for key, value in own.items() if of_job.get(key) != value)
        if text["prompts"]["prompts"] != job["prompts"]["prompts"]:
            questions = _questions(text["prompts"])
            if questions is None:
                return None
            table.update((key, value) for key, value in questions.items() if key in QUESTIONS)
        for key, values in (("template", sinks.get("text_templates", {})), ("fit", sinks.get("text_fits", {}))):
            if name in values:
                table[key] = values[name]
    return tables


def _of_readers(sources: Mapping[str, Any], out: str | None) -> dict[str, Any]:
    """Return the keywords for what readers have under another name, or with a value that follows from `out`."""
    root, frames = sources.get("caption_root"), sources.get("frames")
    found: dict[str, Any] = {"caption_root": None if root == out else root}
    if frames is not None:
        found |= {"frames": frames, "frame_grid": sources.get("frame_mode") == "grid"}
    return found


def _questions(plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the keywords for a job's prompts; None if they have weights, or another order than keywords give."""
    styles = [one["style"] for one in plan["prompts"] if one["style"]]
    texts = [one["text"] for one in plan["prompts"] if not one["style"]]
    as_given = [{"text": STYLES[name].prompt, "weight": 1.0, "style": name} for name in styles if name in STYLES]
    as_given += [{"text": text, "weight": 1.0, "style": None} for text in texts]
    if as_given != plan["prompts"]:
        return None
    every = bool(plan["every"])
    return {
        **({"style": styles} if styles else {}),
        **({"prompt": texts} if texts else {}),
        **({"every_prompt": True} if every else {"captions": plan["captions"]}),
    }


def _check_same(path: str | os.PathLike[str], job: Mapping[str, Any], keywords: Mapping[str, Any]) -> None:
    """Check that the keywords describe the same job."""
    values = dict(keywords)
    inputs: Sequence[str] = values.pop(_INPUTS)
    described = json.loads(json.dumps(describe_job(inputs, values)))
    changes = changed_settings(job, described)
    if with_model_files(described, {}) != with_model_files(job, {}):
        names = ", ".join(change.argument for change in changes) or "some of them"
        raise ValueError(
            f"{os.fspath(path)}: it has settings that no flag or keyword sets, or those of another version ({names}): "
            "write the others into a TOML file"
        )
