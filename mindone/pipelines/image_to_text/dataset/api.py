"""caption_dataset: a job from what a caller says to its outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .executors.base import executor_class
from .executors.msrun_follower import run_follower
from .executors.ranks import Rank, current_rank
from .executors.work_queue import remove_queues
from .inference.caption_cache import delete_caption_caches
from .job import CaptionJob, JobState
from .options import CaptioningSettings, JobOptions, ModelChoice
from .prompts.plan import PromptPlan
from .readers import InputError, ReaderOptions, list_inputs, split_pattern
from .state.listing import Listing
from .state.paths import INPUTS, JOURNAL, PREVIOUS, RESTARTED, STATE_SUFFIX
from .state.records import Item, JobError, JobSummary, Record
from .state.resume import (
    count_done,
    finish_interrupted_start,
    inputs_changed,
    load_or_create_listing,
    start_next_pass,
    start_over,
)
from .writers import FILE_SUFFIXES, check_outputs, format_of, open_writer

SIDECARS = frozenset(("txt", "caption"))


def caption_dataset(
    inputs: str | Path | Sequence[str | Path],
    choice: ModelChoice | None = None,
    plan: PromptPlan | None = None,
    settings: CaptioningSettings | None = None,
    readers: ReaderOptions | None = None,
    options: JobOptions | None = None,
    on_start: Callable[[int, int], None] = lambda done, total: None,
    on_record: Callable[[Record], None] = lambda record: None,
) -> JobSummary:
    """Caption every input; the same call again goes on where an earlier one was ended, however it was.

    Args:
        inputs: folders, pictures, videos, lists, tables, WebDataset shards, Hugging Face data sets on disk.
        choice: the model; by default sharegpt4v-tiny.
        plan: what is asked; by default the style "default".
        settings: how captions are made.
        readers: how inputs are found.
        options: where results go, and what works.
        on_start: told how many inputs are done already, and how many there are.
        on_record: told of every record as it is done.

    Returns:
        Counts of the whole job; under msrun, in another process than the first, of its share.

    Raises:
        JobError: another process works on the job, its settings changed, or msrun's first process has ended.
        InputError: the inputs cannot be listed.
        ValueError: a setting is wrong.
        OSError: a file cannot be read or written; what was done stays.

    Example:
        >>> from mindone.pipelines.image_to_text import caption_dataset
        >>> from mindone.pipelines.image_to_text.dataset.api import JobOptions
        >>> caption_dataset("photos", options=JobOptions(out="captions.jsonl"))  # doctest: +SKIP
        JobSummary(inputs=3, captioned=3, kept=0, failed=0, seconds=1.2, tokens=117)
    """
    places = [os.fspath(one) for one in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    choice, settings = choice or ModelChoice(), settings or CaptioningSettings()
    plan, readers, options = plan or PromptPlan.from_options(), readers or ReaderOptions(), options or JobOptions()
    formats = options.formats or (format_of(options.out),)
    readers = _beside_output(readers, options.out, formats)
    for prompt in plan.prompts:  # what is wrong is told before anything is written
        settings.of_style(prompt.style)
    list_inputs(places, readers)
    rank, directory = current_rank(), _state_directory(places, options)
    engine = _engine_name(options, rank)
    executor = executor_class(engine)
    check_outputs(formats, options.out, places)
    if engine == "msrun" and rank is not None and (rank.number or rank.is_scheduler):
        return run_follower(choice=choice, settings=settings, state=directory, rank=rank)
    description = _description(places, choice, plan, settings, readers, options, formats)
    with JobState(directory, description if not options.restart else None) as state:
        listing = _inputs(state, lambda: list_inputs(places, readers), options, description)
        remove_queues(state.directory)
        on_start(count_done(directory), len(listing))
        writers = [open_writer(name, options.out, options.writers, state.directory) for name in formats]
        job = CaptionJob(
            state=state,
            listing=listing,
            plan=plan,
            existing=options.existing,
            writers=writers,
            on_record=on_record,
        )
        return job.run(
            lambda: executor(choice=choice, settings=settings, options=options.executor, state=state.directory)
        )


def _description(
    places: Sequence[str],
    choice: ModelChoice,
    plan: PromptPlan,
    settings: CaptioningSettings,
    readers: ReaderOptions,
    options: JobOptions,
    formats: Sequence[str],
) -> dict[str, Any]:
    """What decides a job's results; a job that goes on must have the same. What decides its speed is left out."""
    made = asdict(settings)
    for name in ("batch_size", "workers"):
        del made[name]
    model = {name: value for name, value in asdict(choice).items() if name not in ("cache_dir", "local_files_only")}
    return {
        "inputs": [str(Path(place).absolute()) for place in places],
        "sources": asdict(readers),
        "model": model,
        "prompts": plan.to_json(),
        "captions": made,
        "out": None if options.out is None else str(Path(options.out).absolute()),
        "formats": list(formats),
        "sinks": asdict(options.writers),
        "existing": options.existing,
    }


def _beside_output(readers: ReaderOptions, out: str | None, formats: Sequence[str]) -> ReaderOptions:
    """Where captions go is where there may be some; what the job itself writes into a folder is none of its inputs."""
    if out is None:
        return readers
    place = str(Path(out).absolute())
    root = place if readers.caption_root is None and SIDECARS.intersection(formats) else readers.caption_root
    return replace(readers, caption_root=root, ignored=(*readers.ignored, place))


def _engine_name(options: JobOptions, rank: Rank | None) -> str:
    if options.engine == "msrun" and rank is None:
        raise ValueError("the engine 'msrun' is for processes that msrun starts; leave --engine out, or use 'ray'")
    return options.engine or ("local" if rank is None else "msrun")


def _state_directory(places: Sequence[str], options: JobOptions) -> Path:
    if options.state is not None:
        return Path(options.state)
    if options.out is not None:
        out = Path(options.out)
        is_file = out.suffix.lower() in FILE_SUFFIXES and not out.is_dir()
        return out.with_name(out.name + STATE_SUFFIX) if is_file else out / STATE_SUFFIX
    first = Path(split_pattern(places[0])[0])
    if len(places) == 1 and first.is_dir():
        return first / STATE_SUFFIX
    if len(places) == 1 and first.is_file():
        return first.with_name(first.name + STATE_SUFFIX)
    raise ValueError("several inputs, and no --out: say with --state where the job keeps its journal")


def _inputs(
    state: JobState, found: Callable[[], Iterator[Item]], options: JobOptions, description: dict[str, Any]
) -> Listing:
    """Return the job's inputs, listed anew where a pass over them begins.

    Raises:
        JobError: inputs that have captions are gone.
        InputError: there are none.
    """
    directory, restarted = state.directory, state.path(RESTARTED)
    finish_interrupted_start(directory)
    if options.restart and not (restarted.exists() and state.is_described_by(description)):
        if not state.is_described_by(description):
            delete_caption_caches(directory)  # other settings make other captions of the same pictures
        start_over(directory, found)
        state.describe(description)
        restarted.touch()
    state.describe(description)
    listing = load_or_create_listing(directory, found)
    is_whole = count_done(directory) == len(listing)  # which is counted already
    is_begun = state.path(JOURNAL).exists() and (is_whole or not state.path(PREVIOUS).exists())
    if is_begun and (options.retry_failed or (is_whole and inputs_changed(listing, found))):
        _refuse_where_gone(start_next_pass(directory, found, options.retry_failed))
        listing = Listing(state.path(INPUTS))
    if not len(listing):
        state.path(INPUTS).unlink()
        raise InputError("there are no pictures among the inputs: check the paths, and --include and --exclude")
    return listing


def _refuse_where_gone(gone: Sequence[Item]) -> None:
    if gone:
        many = "a hundred or more" if len(gone) >= 100 else str(len(gone))
        raise JobError(
            f"{many} inputs that have captions are gone, the first: {gone[0].source}. Nothing was changed. Is a disk "
            "missing? If they are to be left out, run the command once with --restart; captions of equal pictures with "
            "equal settings are not made again"
        )
