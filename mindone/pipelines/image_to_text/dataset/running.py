"""caption_dataset: a job from what a caller says to its outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .captions import MODES
from .engines import EngineOptions, engine_class
from .files import count_lines
from .job import CaptionJob, JobError, JobState, JobSummary
from .listing import Listing
from .msrun_share import take_share
from .prompting import PromptPlan
from .ranks import current_rank
from .records import Item, Record
from .seen import forget_seen
from .shares import clear
from .sinks import SinkOptions, format_of, open_sink
from .sources import SourceOptions, open_source
from .worker import CaptioningSettings, ModelChoice

STATE = ".share4v"
SIDECARS = frozenset(("txt", "caption"))


@dataclass(frozen=True)
class JobOptions:
    """Where a job's results go, and what works on it.

    Attributes:
        out: file or directory of the result; None puts a .txt beside each picture.
        formats: names of outputs; by default what the ending of `out` says.
        existing: what becomes of captions that are there: "skip", "overwrite", "append" or "prepend".
        sinks: settings of the outputs.
        engine: "local", "ray" or "msrun"; None is "msrun" in a process that msrun started, else "local".
        cluster: what the engine "ray" asks for.
        state: the job's own directory; by default beside the output.
        restart: forget what an earlier run did.
        retry_failed: once more for the inputs that failed; the other records stand.
    """

    out: str | None = None
    formats: tuple[str, ...] = ()
    existing: str = "skip"
    sinks: SinkOptions = field(default_factory=SinkOptions)
    engine: str | None = None
    cluster: EngineOptions = field(default_factory=EngineOptions)
    state: str | None = None
    restart: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if self.existing not in MODES:
            raise ValueError(f"existing must be one of {', '.join(MODES)}, got {self.existing!r}")


def caption_dataset(
    inputs: str | Path | Sequence[str | Path],
    choice: ModelChoice | None = None,
    plan: PromptPlan | None = None,
    settings: CaptioningSettings | None = None,
    sources: SourceOptions | None = None,
    options: JobOptions | None = None,
    begun: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[Record], None] = lambda record: None,
) -> JobSummary:
    """Caption every input; the same call again goes on where an earlier one was ended, however it was.

    Args:
        inputs: folders, pictures, videos, lists, tables, WebDataset shards, Hugging Face data sets on disk.
        choice: the model; by default sharegpt4v-tiny.
        plan: what is asked; by default the style "default".
        settings: how captions are made.
        sources: how inputs are found.
        options: where results go, and what works.
        begun: told how many inputs are done already, and how many there are.
        watch: told of every record as it is done.

    Returns:
        Counts of the whole job; under msrun, in another process than the first, of its share.

    Raises:
        JobError: another process works on the job, its settings changed, or msrun's first process has ended.
        InputError: the inputs cannot be listed.
        ValueError: a setting is wrong.
        OSError: a file cannot be read or written; what was done stays.

    Example:
        >>> from mindone.pipelines.image_to_text import caption_dataset
        >>> from mindone.pipelines.image_to_text.dataset.running import JobOptions
        >>> caption_dataset("photos", options=JobOptions(out="captions.jsonl"))  # doctest: +SKIP
        JobSummary(inputs=3, captioned=3, kept=0, failed=0, seconds=1.2, tokens=117)
    """
    places = [os.fspath(one) for one in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    choice, plan, settings = (
        choice or ModelChoice(),
        plan or PromptPlan.from_options(),
        settings or CaptioningSettings(),
    )
    sources, options = sources or SourceOptions(), options or JobOptions()
    formats = options.formats or (format_of(options.out),)
    if options.out is not None:
        _check_output(options.out, places)
        if sources.caption_root is None and SIDECARS.intersection(formats):
            sources = replace(sources, caption_root=options.out)  # where captions go is where there may be some
    open_source(places, sources)  # what is not there is told before anything is written
    rank, directory = current_rank(), _state_directory(places, options)
    engine = options.engine or ("local" if rank is None else "msrun")
    wanted = engine_class(engine)
    if engine == "msrun" and rank is not None and (rank.number or rank.is_scheduler):
        return take_share(directory, rank, choice, settings)
    description = _description(places, choice, plan, settings, sources, options, formats)

    def found() -> Iterator[Item]:
        return open_source(places, sources)

    with JobState(directory, description if not options.restart else None) as state:
        if options.restart:
            state.forget()
            forget_seen(state.directory)  # other settings make other captions of the same pictures
        elif options.retry_failed:
            state.retry_failed()
        clear(state.directory)
        state.describe(description)
        listing = _current_listing(state, found, options)
        journal = state.path("journal.jsonl")
        begun(count_lines(journal) if journal.exists() else 0, len(listing))
        outputs = [open_sink(name, options.out, options.sinks, state.directory) for name in formats]
        job = CaptionJob(state, listing, plan, options.existing, outputs, watch)
        return job.run(lambda: wanted(choice, settings, options.cluster, state.directory))


def _description(
    places: Sequence[str],
    choice: ModelChoice,
    plan: PromptPlan,
    settings: CaptioningSettings,
    sources: SourceOptions,
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
        "sources": asdict(sources),
        "model": model,
        "prompts": plan.to_json(),
        "captions": made,
        "out": None if options.out is None else str(Path(options.out).absolute()),
        "formats": list(formats),
        "sinks": asdict(options.sinks),
        "existing": options.existing,
    }


def _check_output(out: str, places: Sequence[str]) -> None:
    """Refuse to write over an input."""
    if Path(out).is_file() and any(Path(place).exists() and Path(out).samefile(place) for place in places):
        raise ValueError(f"{out} is both an input and the output: choose another name for the result")


def _state_directory(places: Sequence[str], options: JobOptions) -> Path:
    if options.state is not None:
        return Path(options.state)
    if options.out is not None:
        out = Path(options.out)
        return out.with_name(out.name + STATE) if out.suffix and not out.is_dir() else out / STATE
    first = Path(places[0])
    if len(places) == 1 and first.is_dir():
        return first / STATE
    if len(places) == 1 and first.is_file():
        return first.with_name(first.name + STATE)
    raise ValueError("several inputs, and no --out: say with --state where the job keeps its journal")


def _current_listing(state: JobState, found: Callable[[], Iterator[Item]], options: JobOptions) -> Listing:
    """Return the inputs: those of a job that is under way, or what is there now."""
    listing, journal = state.listing(found), state.path("journal.jsonl")
    if not journal.exists() or count_lines(journal) < len(listing) or _same_inputs(listing, found()):
        return listing
    if options.existing in ("append", "prepend"):
        raise JobError(
            f"this job is done, and its inputs have changed since. To {options.existing} captions to all of them anew, "
            "give --restart; to caption the new ones alone, name them"
        )
    state.forget()
    return state.listing(found)


def _same_inputs(listing: Listing, found: Iterator[Item]) -> bool:
    """Whether what is there now is what was listed; captions that this job wrote do not count."""
    for held in listing.items():
        item = next(found, None)
        if item is None or replace(item, caption=None) != replace(held, caption=None):
            return False
    return next(found, None) is None
