"""caption_dataset: run a captioning job, new or resumed, from the caller's settings to the finished outputs."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.checkpoint.adapters import adapter_digest
from mindone.models.share4v.load_options import LoadOptions, adapter_weights

from .adoption import adopt_state
from .executors.base import Executor, executor_class
from .executors.msrun_follower import run_follower
from .executors.ranks import Rank, current_rank
from .executors.replicas import replica_count
from .executors.work_queue import remove_queues
from .inference.caption_cache import delete_caption_caches, remove_failed_answers
from .job import CaptionJob, JobState
from .keywords import DatasetOptions, build_options
from .near_equal import find_near_equal
from .options import CaptioningSettings, JobOptions, ModelChoice
from .preflight_checks import check_job, check_start, check_template_variables, needs_start
from .preview import preview_job
from .prompts.plan import PromptPlan
from .readers import InputError, ReaderOptions, list_inputs, split_pattern
from .state.job_description import SettingsChangedError, changed_settings, model_files, with_model_files
from .state.limits import limited, store_limit, stored_limit
from .state.listing import Listing
from .state.paths import INPUTS, JOURNAL, PREVIOUS, RESTARTED, SKIPPED, STATE_SUFFIX
from .state.records import Item, JobError, JobSummary, Record
from .state.regular_files import open_own, own_exists, remove_own
from .state.resume import (
    count_done,
    inputs_changed,
    load_or_create_listing,
    start_next_pass,
    start_over,
)
from .state.skipped import SkippedFiles, SkippedGroup, read_skipped, write_skipped
from .writers import FILE_SUFFIXES, WRITERS, FollowingWriter, format_of, open_writer, written_texts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .keywords import DatasetKeywords

_log = logging.getLogger(__name__)
_SIDECAR_FORMATS = frozenset(("txt", "caption"))
# Options that the first version of job.json lacks, with their defaults: they are stored if they are set, so that a job
# of an older version can be resumed.
_NEWER_READER_OPTIONS = {"encoding": None, "same_name": "extension"}
_DERIVED_READER_OPTIONS = ("own_outputs", "separate_files", "text_names")  # follow from `out` and `formats`

Inputs = str | Path | Sequence[str | Path]


def caption_dataset(
    inputs: Inputs,
    *,
    choice: ModelChoice | None = None,
    plan: PromptPlan | None = None,
    settings: CaptioningSettings | None = None,
    readers: ReaderOptions | None = None,
    options: JobOptions | None = None,
    on_start: Callable[[int, int], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
    on_skipped: Callable[[tuple[SkippedGroup, ...]], None] | None = None,
    on_listing: Callable[[int], None] | None = None,
    **keywords: Unpack[DatasetKeywords],
) -> JobSummary:
    """Caption every input. However a call ends, the same call again resumes the job.

    Settings are plain keyword arguments, named as the flags of `share4v caption-dataset`, or options objects; an object
    replaces all keywords of its line below. Keywords that are None have their defaults.

    - `choice` (ModelChoice): model, vision_tower, dtype, kv_cache_dtype, numa, language_backend, vision_backend,
      conversation, cache_dir, local_files_only, revision, token, subfolder, adapter.
    - `plan` (PromptPlan): style, prompt, prompt_file, captions, every_prompt. By default the style "default".
    - `settings` (CaptioningSettings, and in it TextRules and DownloadOptions): max_new_tokens, min_new_tokens,
      temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty, no_repeat_ngram_size,
      stop, schema (or the path of its file), begin_with, attempts, seed, batch_size, workers, max_image_pixels;
      strip_openings, strip, max_sentences, max_words, min_words, require, forbid; texts (TextSpecs, or as the flag
      --text has them); url_attempts, url_seconds, url_bytes, url_per_host, url_private, user_agent_token,
      disallowed_header_directives.
    - `readers` (ReaderOptions): include, exclude, image_root, image_column, caption_column, key_column, caption_root,
      frames, frame_grid, encoding, same_name.
    - `options` (JobOptions, and in it WriterOptions and ExecutorOptions): out, format, existing, on_fault, overwrite,
      engine, state, restart, retry_failed, adopt, limit, near_equal, dry_run; shard_size, seconds, template, fit;
      replicas, actors, cpus; endpoint, api_key_env, max_in_flight, image_size, request_timeout, request_fields.

    Args:
        inputs: folders, images, videos, lists of paths, tables, WebDataset shards, or directories of Hugging Face data
            sets.
        choice, plan, settings, readers, options: options objects, in place of keywords.
        on_start: called once with the number of inputs that are done already and the number of all inputs.
        on_record: called with every finished record.
        on_skipped: called once, before anything is captioned, with what the inputs contain that will not be.
        on_listing: called with the number of inputs so far while they are listed, or while their list is read that an
            earlier run wrote, which may happen more than once; a list may have gigabytes.
        **keywords: see `keywords.DatasetKeywords`.

    Returns:
        Counts of the whole job; under msrun, in ranks other than 0, of the rank's share. With `dry_run`, what the job
        would do, as `preview`.

    Raises:
        TypeError: a keyword is unknown.
        ValueError: a setting is wrong, or is given by a keyword and by an options object.
        SettingsChangedError: the job has records, or answers, that were made with other settings.
        JobError: another process works on the job, its state was not made here by a job of this user (see `adopt`), or
            msrun's rank 0 has ended.
        InputError: the inputs cannot be listed.
        OSError: a file cannot be read or written; the job's progress is kept.

    Example:
        >>> from mindone.pipelines.image_to_text import caption_dataset
        >>> caption_dataset("photo.jpg", out="captions.jsonl", style="detailed", batch_size=8)
        JobSummary(inputs=1, captioned=1, kept=0, failed=0, seconds=..., tokens=..., left_out=(), ...)
    """
    given = build_options(keywords, choice=choice, plan=plan, settings=settings, readers=readers, options=options)
    paths, job = _completed(inputs, given)
    return _run(paths, job, on_start or _ignore, on_record or _ignore, on_skipped or _ignore, on_listing or _ignore)


def _completed(inputs: Inputs, given: DatasetOptions) -> tuple[list[str], DatasetOptions]:
    """Return the inputs as paths, and the options with what follows from the output."""
    paths = [os.fspath(path) for path in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    formats = given.options.formats or (format_of(given.options.out),)
    job = replace(
        given,
        options=replace(
            given.options,
            formats=formats,
            writers=replace(given.options.writers, on_fault=given.options.on_fault),
        ),
        readers=replace(
            _readers_beside_output(given.readers, given.options.out, formats),
            text_names=given.options.writers.texts[1:],
        ),
    )
    return paths, job


def describe_job(inputs: Inputs, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description that a job with these keywords stores as job.json; errors as of `caption_dataset`."""
    return _description(*_completed(inputs, build_options(keywords)))


def _ignore(*arguments: object) -> None:
    """Default callback."""


def _run(
    paths: Sequence[str],
    job: DatasetOptions,
    on_start: Callable[[int, int], None],
    on_record: Callable[[Record], None],
    on_skipped: Callable[[tuple[SkippedGroup, ...]], None],
    on_listing: Callable[[int], None],
) -> JobSummary:
    options = job.options
    list_inputs(paths, job.readers)  # an input that does not exist is reported before anything else about the paths
    rank, directory = current_rank(), _state_directory(paths, options)
    engine = _engine_name(job, rank)
    check_job(paths, job, directory, engine)  # report all errors before anything is written
    executor = executor_class(engine)
    is_follower = engine == "msrun" and rank is not None and (rank.number or rank.is_scheduler)
    if is_follower and rank is not None and not options.dry_run:
        return run_follower(choice=job.choice, settings=job.settings, state=directory, rank=rank)
    files = _model_files(job, engine)
    description = with_model_files(_description(paths, job), files)
    check_template_variables(paths, job)
    if needs_start(directory, options.restart):
        check_start(paths, job, engine)

    def list_all() -> Iterator[Item]:
        return list_inputs(paths, job.readers)

    def adopt(state: JobState) -> None:
        adopt_state(state, limited(list_all, options.limit, None), description)

    expected = None if options.restart else description
    entered = JobState(directory, expected, adopt if options.adopt else None, options.retry_failed, on_listing)
    if options.dry_run:
        entered.inspect()
        return _previewed(paths, job, directory, on_listing)
    with entered as state:
        description = _with_stored_files(state, description, options.restart)
        listing = _listing(state, lambda: _listed(paths, job.readers, state), options, description)
        _store_description(state, description)
        remove_queues(state.directory)
        on_skipped(read_skipped(state.path(SKIPPED)))
        on_start(count_done(directory), len(listing))
        captioning = CaptionJob(
            state=state,
            listing=listing,
            plan=job.plan,
            existing=options.existing,
            writers=_open_writers(job, state.directory),
            on_record=on_record,
            begin_with=job.settings.begin_with,
            wording=options.writers.wording,
            on_fault=options.on_fault,
            find_near_equal=find_near_equal(options.near_equal, state.directory, job.settings),
            texts=job.settings.texts,
        )
        made = partial(executor, choice=job.choice, settings=job.settings, options=options.executor)
        return captioning.run(lambda: _checked(made(state=state.directory), state, description, files, job, engine))


def _model_files(job: DatasetOptions, engine: str) -> dict[str, str]:
    """Return what the model's files contain, by part, of those that are on this machine."""
    if engine == "http":
        return {}
    from mindone.models.share4v.checkpoint.fingerprint import checkpoint_digests

    digests = checkpoint_digests(job.choice.model, LoadOptions.pick(asdict(job.choice)))
    return {part: f"files with the digest {digest}" for part, digest in digests.items()}


def _with_stored_files(state: JobState, description: dict[str, Any], is_restarted: bool) -> dict[str, Any]:
    """Return a description with what is stored about files of the model that are not on this machine yet.

    What cannot be compared is said: the state of an older version says nothing about the files.
    """
    stored, now = {} if is_restarted else state.stored_model_files(), model_files(description)
    if not is_restarted and count_done(state.directory):
        for part in sorted({*now} - {*stored}):
            _log.warning(
                "whether %s has the files of the earlier run is unknown: its settings do not say what they contained",
                part,
            )
    return with_model_files(description, {**stored, **now})


def _checked(
    made: Executor,
    state: JobState,
    description: dict[str, Any],
    known: dict[str, str],
    job: DatasetOptions,
    engine: str,
) -> Executor:
    """Return an executor, after comparing the files that its model has now with those of the earlier run.

    Args:
        made: the executor; it may have downloaded its model.
        state: of the job; what the files contain is stored.
        description: the job's settings, with what is stored about the files.
        known: what was known about the files before.
        job, engine: the options.

    Raises:
        SettingsChangedError: the files are others.
    """
    files = _model_files(job, engine)
    if files != known:
        loaded = with_model_files(description, {**model_files(description), **files})
        changes = changed_settings(description, loaded)
        if changes:
            raise SettingsChangedError(state.directory, count_done(state.directory), changes, job.options.existing)
        _store_description(state, loaded)
    return made


def _open_writers(job: DatasetOptions, directory: Path) -> list[FollowingWriter]:
    options = replace(job.options.writers, downloads=job.settings.downloads)
    return [open_writer(name, job.options.out, options, directory) for name in job.options.formats]


def _previewed(
    paths: Sequence[str], job: DatasetOptions, directory: Path, on_listing: Callable[[int], None]
) -> JobSummary:
    """Return what the job would do, and write nothing."""
    skipped = SkippedFiles()
    known = None if job.options.restart else directory
    listed = limited(lambda: _counted(list_inputs(paths, job.readers, skipped), on_listing), job.options.limit, known)
    return replace(preview_job(listed, job, directory), skipped=skipped.groups())


def _store_description(state: JobState, description: dict[str, Any]) -> None:
    """Store and sign the settings, which may differ from the stored ones where the records remain valid."""
    state.update_description(description)
    state.sign_description(description)


def _counted(items: Iterable[Item], on_listing: Callable[[int], None]) -> Iterator[Item]:
    for count, item in enumerate(items, 1):
        on_listing(count)
        yield item


def _listed(paths: Sequence[str], readers: ReaderOptions, state: JobState) -> Iterator[Item]:
    """List the inputs, and store what was skipped once all of them are listed."""
    skipped = SkippedFiles()
    try:
        yield from _counted(list_inputs(paths, readers, skipped), state.on_listing)
    except GeneratorExit:  # a limit ends the listing early
        write_skipped(state.path(SKIPPED), skipped.groups())
        raise
    write_skipped(state.path(SKIPPED), skipped.groups())


def _description(paths: Sequence[str], job: DatasetOptions) -> dict[str, Any]:
    """Return all settings that affect the results, as JSON values; a job can only be resumed with the same.

    Settings that affect only the speed are left out. The names are those in job.json since its first version.
    """
    settings, options = job.settings, job.options
    model = {**job.choice.description, **_content_of_adapters(job.choice)}
    if options.engine == "http":  # another implementation of the model; where it is does not matter
        executor = options.executor
        served = {"image_size": executor.image_size, "request_fields": dict(executor.request_fields)}
        model = {"model": model["model"], "engine": "http", **served}
    return {
        "inputs": [str(Path(path).absolute()) for path in paths],
        "sources": {
            name: value
            for name, value in asdict(job.readers).items()
            if name not in _DERIVED_READER_OPTIONS and _NEWER_READER_OPTIONS.get(name, ...) != value
        },
        "model": {name: str(value) if isinstance(value, Path) else value for name, value in model.items()},
        "prompts": job.plan.to_json(),
        "captions": {
            "generation": settings.generation,
            "rules": asdict(settings.rules),
            "beginning": settings.begin_with,
            "attempts": settings.attempts,
            "seed": settings.seed,
            **({} if options.on_fault == "keep" else {"on_fault": options.on_fault}),
        },
        **({"texts": {text.name: text.description for text in settings.texts}} if settings.texts else {}),
        "out": None if options.out is None else str(Path(options.out).absolute()),
        "formats": list(options.formats),
        "sinks": options.writers.description,
        "existing": options.existing,
        **({} if options.near_equal is None else {"near_equal": options.near_equal}),
    }


def _content_of_adapters(choice: ModelChoice) -> dict[str, list[str]]:
    """Return what the adapters' files contain: one that was trained again in place gives other captions.

    Actors of Ray may have an adapter where this machine has none.
    """
    digests = [adapter_digest(directory) for directory in adapter_weights(choice.adapter)]
    stated = [f"files with the digest {one}" if one else "without files on this machine" for one in digests]
    return {"adapter_files": stated} if stated else {}


def _readers_beside_output(readers: ReaderOptions, out: str | None, formats: Sequence[str]) -> ReaderOptions:
    """Look for existing captions where sidecars will be written, and ignore the job's own files in input folders."""
    if out is None:
        return replace(readers, separate_files=True)
    path = str(Path(out).absolute())
    writes_sidecars = not _SIDECAR_FORMATS.isdisjoint(formats)
    caption_root = path if readers.caption_root is None and writes_sidecars else readers.caption_root
    rows = [WRITERS[name] for name in formats if name in WRITERS]
    own = [(path, pattern) for row in rows if (pattern := row.pattern or row.file_name)]
    return replace(
        readers,
        caption_root=caption_root,
        ignored=(*readers.ignored, path),
        own_outputs=((str(Path(path).parent), glob.escape(Path(path).name)), *own),
    )


def _engine_name(job: DatasetOptions, rank: Rank | None) -> str:
    engine = job.options.engine
    if engine == "msrun" and rank is None:
        raise ValueError("the engine 'msrun' needs processes that msrun started: omit engine (--engine), or use 'ray'")
    if engine is not None:
        return engine
    if rank is not None:
        return "msrun"
    return "replicas" if replica_count(job.choice, job.options.executor) > 1 else "local"


def _state_directory(paths: Sequence[str], options: JobOptions) -> Path:
    """Return the absolute path of the job's state directory."""
    if options.state is not None:
        return Path(options.state).resolve()  # a link that the caller names is followed; one in a folder is not
    if options.out is not None:
        out = Path(options.out).absolute()
        is_file = out.suffix.lower() in FILE_SUFFIXES and not out.is_dir()
        return out.with_name(out.name + STATE_SUFFIX) if is_file else out / STATE_SUFFIX
    first = Path(split_pattern(paths[0])[0]).absolute()
    if len(paths) == 1 and first.is_dir():
        return first / STATE_SUFFIX
    if len(paths) == 1 and first.is_file():
        return first.with_name(first.name + STATE_SUFFIX)
    raise ValueError("several inputs and no out (--out): set state (--state) to a directory for the job's journal")


def _listing(
    state: JobState, list_all: Callable[[], Iterator[Item]], options: JobOptions, description: dict[str, Any]
) -> Listing:
    """Return the job's inputs; they are listed again if a new pass over them starts.

    A job without records and answers accepts new settings, and lists its inputs with them. A job with another limit
    lists its inputs again and keeps its records.

    Raises:
        JobError: inputs that have captions are missing.
        InputError: there are no inputs.
    """
    directory, restarted = state.directory, state.path(RESTARTED)
    list_again = limited(list_all, options.limit, directory)
    is_described = state.is_described_by(description)
    if not is_described or (options.restart and not own_exists(restarted)):
        if not is_described:
            delete_caption_caches(directory)  # captions of the same images with other settings
        start_over(directory, limited(list_all, options.limit, None), written_texts(directory))
        store_limit(directory, options.limit)
        state.describe(description)
        if options.restart:
            open_own(restarted, "ab+").close()
    if not own_exists(state.path(INPUTS)):
        store_limit(directory, options.limit)
    listing = load_or_create_listing(directory, list_again, state.on_listing)
    is_complete = count_done(directory) == len(listing)
    is_extended = not is_complete and stored_limit(directory) != options.limit
    has_started = own_exists(state.path(JOURNAL)) and (is_complete or not own_exists(state.path(PREVIOUS)))
    is_changed = options.retry_failed or (is_complete and inputs_changed(listing, list_again))
    if is_extended or (has_started and is_changed):
        retries = options.retry_failed and has_started
        if retries and options.engine == "http":
            remove_failed_answers(directory, options.on_fault == "fail")
        _check_none_missing(start_next_pass(directory, list_again, retries, written_texts(directory)))
        listing = Listing(state.path(INPUTS))
    store_limit(directory, options.limit)
    if not len(listing):
        remove_own(state.path(INPUTS))
        lines = "".join(f"; {group.line()}" for group in read_skipped(state.path(SKIPPED)))
        raise InputError(
            f"the inputs contain no images: check the paths, include and exclude (--include, --exclude){lines}"
        )
    return listing


def _check_none_missing(missing: Sequence[Item]) -> None:
    if missing:
        count = "100 or more" if len(missing) >= 100 else str(len(missing))
        raise JobError(
            f"{count} inputs that have captions no longer exist, the first: {missing[0].source}. Nothing was changed. "
            "If a disk is not mounted, mount it. To leave these inputs out, run the job once with restart (--restart); "
            "captions of the same images with the same settings are reused"
        )
