"""The flat keyword arguments of `caption_dataset`, and the options objects that they make.

A keyword has the name of the command line's flag and of the field that it sets; the fields are documented in their
dataclasses. The few keywords that are named differently are in `_FIELDS`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from mindone.models.share4v.load_options import LoadArguments
from mindone.models.share4v.suggestions import unknown

from .options import CaptioningSettings, ExecutorOptions, JobOptions, ModelChoice, NamedText
from .prompts.plan import PromptPlan
from .prompts.schema_file import read_schema_file
from .prompts.variables import variables_of
from .readers import ReaderOptions
from .readers.downloads import DownloadOptions
from .rules.text_rules import TextRules
from .text_specs import TextSpec, read_texts
from .writers import WriterOptions


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """All options of one call of `caption_dataset`, which takes each of them under the same name."""

    choice: ModelChoice = field(default_factory=ModelChoice)
    plan: PromptPlan = field(default_factory=PromptPlan.from_options)
    settings: CaptioningSettings = field(default_factory=CaptioningSettings)
    readers: ReaderOptions = field(default_factory=ReaderOptions)
    options: JobOptions = field(default_factory=JobOptions)


_Texts = str | tuple[str, ...] | list[str]  # one text, or several


class ModelKeywords(LoadArguments, total=False):
    """Keywords for ModelChoice."""

    model: str | Path
    conversation: str | None


class PromptKeywords(TypedDict, total=False):
    """Keywords for PromptPlan.from_options: its `styles`, `prompts`, `files`, `captions` and `every`."""

    style: _Texts
    prompt: _Texts
    prompt_file: str | Path | tuple[str | Path, ...] | list[str | Path]
    captions: int
    every_prompt: bool


class CaptioningKeywords(TypedDict, total=False):
    """Keywords for CaptioningSettings."""

    max_new_tokens: int | None
    min_new_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    repetition_penalty: float
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    stop: _Texts
    schema: Mapping[str, Any] | str | Path | None
    begin_with: str
    attempts: int
    seed: int
    batch_size: int
    workers: int
    max_image_pixels: int | None


class TextKeywords(TypedDict, total=False):
    """Named texts: TextSpecs, `NAME:STYLE` or `NAME:PROMPT`, or tables of settings by name."""

    texts: str | TextSpec | Sequence[str | TextSpec] | Mapping[str, Any] | None


class RuleKeywords(TypedDict, total=False):
    """Keywords for TextRules; `strip`, `require` and `forbid` are `openings`, `required_words`, `forbidden_words`."""

    strip_openings: bool
    strip: _Texts
    max_sentences: int | None
    max_words: int | None
    min_words: int
    require: _Texts
    forbid: _Texts


class DownloadKeywords(TypedDict, total=False):
    """Keywords for DownloadOptions."""

    url_attempts: int
    url_seconds: float
    url_bytes: int
    url_per_host: int
    url_private: bool
    user_agent_token: str
    disallowed_header_directives: _Texts


class ReaderKeywords(TypedDict, total=False):
    """Keywords for ReaderOptions.

    `frames` above 1 takes that many frames of each video, evenly spaced; `frame_grid` combines them into one image.
    """

    include: _Texts
    exclude: _Texts
    image_root: str | Path | None
    image_column: str | None
    caption_column: str | None
    key_column: str | None
    caption_root: str | Path | None
    frames: int
    frame_grid: bool
    encoding: str | None
    same_name: str


class JobKeywords(TypedDict, total=False):
    """Keywords for JobOptions; `format` is `formats`."""

    out: str | Path | None
    format: _Texts
    existing: str
    on_fault: str
    overwrite: bool
    engine: str | None
    state: str | Path | None
    restart: bool
    retry_failed: bool
    adopt: bool
    limit: int | None
    near_equal: str | None
    dry_run: bool


class WriterKeywords(TypedDict, total=False):
    """Keywords for WriterOptions."""

    shard_size: int
    seconds: bool
    template: str | None
    fit: _Texts


class ExecutorKeywords(TypedDict, total=False):
    """Keywords for ExecutorOptions; `endpoint` is `endpoints`, and `request_fields` may be JSON."""

    replicas: int | str
    actors: int
    cpus: int
    endpoint: _Texts
    api_key_env: str | None
    max_in_flight: int
    image_size: int
    request_timeout: float
    request_fields: Mapping[str, Any] | str


class DatasetKeywords(
    ModelKeywords,
    PromptKeywords,
    CaptioningKeywords,
    TextKeywords,
    RuleKeywords,
    DownloadKeywords,
    ReaderKeywords,
    JobKeywords,
    WriterKeywords,
    ExecutorKeywords,
    total=False,
):
    """The flat keyword arguments of `caption_dataset`."""


KEYWORDS: tuple[str, ...] = tuple(DatasetKeywords.__annotations__)
# Options object -> its keywords. An object replaces all of its keywords.
_KEYWORDS_OF: dict[str, tuple[type, ...]] = {
    "choice": (ModelKeywords,),
    "plan": (PromptKeywords,),
    "settings": (CaptioningKeywords, RuleKeywords, DownloadKeywords),
    "readers": (ReaderKeywords,),
    "options": (JobKeywords, WriterKeywords, ExecutorKeywords),
}
# Keyword -> field, if their names differ.
_FIELDS = {
    "style": "styles",
    "prompt": "prompts",
    "prompt_file": "files",
    "every_prompt": "every",
    "strip": "openings",
    "require": "required_words",
    "forbid": "forbidden_words",
    "format": "formats",
    "endpoint": "endpoints",
}
_SEVERAL = (
    *("style", "prompt", "prompt_file", "stop", "strip", "require", "forbid", "include", "exclude", "format"),
    *("endpoint", "disallowed_header_directives", "fit"),
)


def build_options(
    keywords: Mapping[str, Any],
    *,
    choice: ModelChoice | None = None,
    plan: PromptPlan | None = None,
    settings: CaptioningSettings | None = None,
    readers: ReaderOptions | None = None,
    options: JobOptions | None = None,
) -> DatasetOptions:
    """Make all options from flat keywords and options objects; a keyword that is None has its default.

    Raises:
        TypeError: a keyword is unknown; the message has the closest name.
        ValueError: a keyword and the options object that sets the same are both given, or a value is out of range.
        OSError: a prompt file or the file of a schema cannot be read.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.keywords import build_options
        >>> build_options({"style": "tags", "batch_size": 16}).settings.batch_size
        16
    """
    objects = {"choice": choice, "plan": plan, "settings": settings, "readers": readers, "options": options}
    values = {name: _plain(name, value) for name, value in keywords.items() if value is not None}
    if isinstance(values.get("schema"), str):
        values["schema"] = read_schema_file(values["schema"])
    if isinstance(values.get("request_fields"), str):
        values["request_fields"] = _json_object("request_fields", values["request_fields"])
    _check_keywords([*keywords], [name for name, given in objects.items() if given is not None], [*values])
    rules = TextRules(**_fields(values, RuleKeywords))
    downloads = download_options(values)
    writers = WriterOptions(**_fields(values, WriterKeywords))
    executor = ExecutorOptions(**_fields(values, ExecutorKeywords))
    made = DatasetOptions(
        choice=choice or ModelChoice(**_fields(values, ModelKeywords)),
        plan=plan or PromptPlan.from_options(**_fields(values, PromptKeywords), seed=values.get("seed", 0)),
        settings=settings
        or CaptioningSettings(**_fields(values, CaptioningKeywords), rules=rules, downloads=downloads),
        readers=readers or _reader_options(_fields(values, ReaderKeywords)),
        options=options or JobOptions(**_fields(values, JobKeywords), writers=writers, executor=executor),
    )
    return _with_texts(made, read_texts(values.get("texts") or ()))


def download_options(values: Mapping[str, Any]) -> DownloadOptions:
    """Return how images at URLs are downloaded, from keywords among others; one that is None has its default.

    Raises:
        ValueError: a value is out of range.
    """
    given = {name: _plain(name, value) for name, value in values.items() if value is not None}
    return DownloadOptions(**_fields(given, DownloadKeywords))


def _with_texts(job: DatasetOptions, specs: Sequence[TextSpec]) -> DatasetOptions:
    """Return a job's options with named texts, each of which has the job's settings where it has none of its own."""
    if not specs:
        return job
    if job.options.existing in ("append", "prepend"):
        raise ValueError(
            f"existing (--existing) {job.options.existing} and texts (--text) cannot be combined: an existing caption "
            "is one text, and it is not known which; use skip or overwrite"
        )
    if job.plan.count > 1:
        raise ValueError(
            "texts (--text) and several captions of each input cannot be combined, since a named text has one: leave "
            "captions and every_prompt out, and name further texts"
        )
    texts = tuple(_named_text(spec, job) for spec in specs)
    for index, text in enumerate(texts):
        earlier = {one.name for one in texts[:index]}
        if not text.sees_image and not all(variables_of(prompt.text) & earlier for prompt in text.plan.prompts):
            raise ValueError(
                f"texts: {text.name} does not see the image, so its prompt must contain an earlier text: "
                f"{', '.join(f'{{{name}}}' for name in sorted(earlier)) or 'there is none before it'}"
            )
    templates = {text.name: text.template for text in texts if text.template is not None}
    writers = replace(
        job.options.writers,
        texts=tuple(text.name for text in texts),
        text_templates=templates,
        text_fits={text.name: text.fit for text in texts if text.fit is not None},
    )
    return replace(
        job,
        settings=replace(job.settings, texts=texts),
        options=replace(job.options, writers=writers),
    )


def _named_text(spec: TextSpec, job: DatasetOptions) -> NamedText:
    values = {name: _plain(name, value) for name, value in spec.given.items()}
    if isinstance(values.get("schema"), str):
        values["schema"] = read_schema_file(values["schema"])
    try:
        rules = replace(job.settings.rules, **_fields(values, RuleKeywords))
        settings = replace(job.settings, texts=(), rules=rules, **_fields(values, CaptioningKeywords))
        asked = _fields(values, PromptKeywords)
        plan = PromptPlan.from_options(**asked, seed=settings.seed) if asked else replace(job.plan, seed=settings.seed)
    except ValueError as error:
        raise ValueError(f"texts: {spec.name}: {error}") from error
    return NamedText(
        name=spec.name,
        plan=plan,
        settings=settings,
        sees_image=spec.image,
        template=spec.template,
        fit=values.get("fit"),
    )


def _check_keywords(keywords: Sequence[str], objects: Sequence[str], given: Sequence[str]) -> None:
    for name in keywords:
        if name not in KEYWORDS:
            raise TypeError(unknown("keyword argument of caption_dataset", name, KEYWORDS))
    for parameter in objects:
        own = [name for group in _KEYWORDS_OF[parameter] for name in group.__annotations__]
        for name in given:
            if name in own:
                raise ValueError(
                    f"{name} and {parameter} are both given, but {parameter} sets {_FIELDS.get(name, name)} too: set "
                    f"it in {parameter}, or leave {parameter} out and use keyword arguments only"
                )


def _plain(name: str, value: Any) -> Any:
    """Return a keyword's value as its dataclass stores it: paths as text, and several values as a tuple."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if name not in _SEVERAL:
        return value
    if name == "disallowed_header_directives" and isinstance(value, str):  # "noai,noindex"; "" for none
        value = [one.strip() for one in value.lower().split(",") if one.strip()]
    several = (value,) if isinstance(value, str) else tuple(map(os.fspath, value))
    return tuple(dict.fromkeys(several)) if name in ("format", "endpoint") else several


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{name} must be a JSON object such as {{"top_k": 20}}, got {text!r}: {error}') from None
    if not isinstance(found, dict):
        raise ValueError(f'{name} must be a JSON object such as {{"top_k": 20}}, got {text!r}')
    return found


def _fields(values: Mapping[str, Any], keywords: type) -> dict[str, Any]:
    """Return the values of one group of keywords by the names of their fields."""
    return {_FIELDS.get(name, name): values[name] for name in keywords.__annotations__ if name in values}


def _reader_options(values: dict[str, Any]) -> ReaderOptions:
    frames, grid = values.pop("frames", 1), values.pop("frame_grid", False)
    if not isinstance(frames, int) or frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames!r}")
    mode = "grid" if grid else "even" if frames > 1 else "middle"
    return ReaderOptions(**values, frames=frames if frames > 1 else None, frame_mode=mode)
