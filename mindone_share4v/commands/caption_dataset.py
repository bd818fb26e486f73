"""`share4v caption-dataset`: run a captioning job with the options of the command line, and report its progress."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.display import shell_name

from ..printing import memory_message, one_line, print_error, print_text
from ..signals import INTERRUPTED, raise_interrupt, signal_handler
from ..status_line import STATUS
from .common import flag_of, print_unused_sampling, usage_error, with_flags
from .dataset_summary import preview_lines, summary_lines
from .exit_status import DONE, SOME_FAILED

if TYPE_CHECKING:
    from tqdm import tqdm

    from mindone.pipelines.image_to_text.dataset.keywords import DatasetOptions
    from mindone.pipelines.image_to_text.dataset.state.records import JobSummary, Record
    from mindone.pipelines.image_to_text.dataset.state.skipped import SkippedGroup

STOPPED = 3  # exit status: the same command resumes the job
_OF_ENDPOINTS = ("api_key_env", "max_in_flight", "image_size", "request_timeout", "request_fields")
# What --list-rules prints: flag -> what the rule does to a caption.
_RULES = {
    "--strip-openings": 'removes openings such as "The image shows"',
    "--strip TEXT": "removes the opening TEXT",
    "--max-sentences N": "removes sentences after the first N",
    "--max-words N": "removes sentences that do not fit; a longer first sentence breaks the rule",
    "--min-words N": "breaks the rule if it has fewer words",
    "--require WORD": "breaks the rule without WORD",
    "--forbid WORD": "WORD is not generated; breaks the rule with WORD",
    "always": "breaks a rule if a passage is repeated without end; an empty caption fails",
    "--attempts N": "a caption that breaks a rule is generated again, with other settings, up to N times in all",
    "--on-fault keep, fail": "what happens to the best attempt if all of them break a rule",
}
_SHOWN_FAILURES = 20  # failed.jsonl lists the others


def run(arguments: Namespace) -> int:
    """Caption the data set and return the exit status."""
    from tqdm import tqdm

    from mindone.models.share4v.hub import HubError
    from mindone.pipelines.image_to_text.dataset.api import caption_dataset
    from mindone.pipelines.image_to_text.dataset.state.journal import JournalError

    try:
        arguments = _with_config(arguments)
    except (ValueError, OSError) as error:
        return usage_error(arguments, error)
    if arguments.list_styles:
        return _list_styles()
    if arguments.list_rules:
        return _list_rules()
    STATUS.clear()
    no_bar = not sys.stderr.isatty() or arguments.dry_run
    with tqdm(unit="image", desc="listing", dynamic_ncols=True, smoothing=0, leave=True, disable=no_bar) as bar:
        progress, job = Progress(bar, arguments), None
        try:
            job = _job(arguments)
            with signal_handler(raise_interrupt):  # so that the job can write its last records to disk
                summary = caption_dataset(
                    arguments.inputs,
                    choice=job.choice,
                    plan=job.plan,
                    settings=job.settings,
                    readers=job.readers,
                    options=job.options,
                    on_start=progress.on_start,
                    on_record=progress.on_record,
                    on_listing=progress.on_listing,
                    on_skipped=lambda groups: _print_skipped(arguments, groups),
                )
        except KeyboardInterrupt:
            print_error("interrupted; the same command resumes the job")
            return INTERRUPTED
        except ImportError as error:
            return usage_error(arguments, error)
        except MemoryError as error:
            if job is None:
                raise
            print_error(f"stopped: {memory_message(error)}; the same command resumes the job")
            return STOPPED
        except (ValueError, RuntimeError, OSError, FloatingPointError) as error:
            is_usage_error = isinstance(error, (ValueError, FileNotFoundError, HubError)) and not isinstance(
                error, JournalError
            )
            if job is None or (is_usage_error and not progress.has_records):
                return usage_error(arguments, error)
            print_error(f"stopped: {_reason(arguments, error)}")
            return STOPPED
    if summary.preview is not None:
        for line in preview_lines(summary):
            print_text(one_line(with_flags(arguments, line), keep_indentation=True))
        return DONE
    return _finish(summary, arguments)


def _reason(arguments: Namespace, error: Exception) -> str:
    """Return why a job stopped, with the names of flags."""
    from mindone.pipelines.image_to_text.dataset.state.job_description import SettingsChangedError

    if isinstance(error, SettingsChangedError):
        return error.explain(_shown_name)
    return with_flags(arguments, str(error))


def _print_skipped(arguments: Namespace, groups: Sequence[SkippedGroup]) -> None:
    """Print what the inputs contain that is not captioned, one line for each reason, and what to do about it."""
    for group in groups:
        print_error(one_line(with_flags(arguments, group.line())))


def _shown_name(argument: str) -> str:
    """Return how the command line names an argument of `caption_dataset`."""
    if argument.startswith("texts."):
        _, name, setting = argument.split(".", 2)
        return f"{setting} of --text {name}"
    return "INPUT" if argument == "inputs" else flag_of(argument)


def _finish(summary: JobSummary, arguments: Namespace) -> int:
    """Print the summary of a completed job and return the exit status."""
    from mindone.pipelines.image_to_text.dataset.executors.ranks import current_rank

    for reason in summary.left_out:
        print_error(one_line(f"left out of the output: {with_flags(arguments, reason)}"))
    for line in summary_lines(summary, arguments.inputs, arguments.out, arguments.limit, arguments.on_fault):
        print_error(one_line(with_flags(arguments, line)))
    if current_rank() is not None:
        return DONE  # msrun treats any other status as a crash and kills the other processes
    return SOME_FAILED if summary.failed or summary.left_out else DONE


def _with_config(arguments: Namespace) -> Namespace:
    """Return the arguments with the settings of --config that the command line does not have.

    Raises:
        ValueError: the file cannot be used.
        OSError: it cannot be read.
    """
    if arguments.config is None:
        return arguments
    from mindone.pipelines.image_to_text.dataset.config import read_config

    settings = read_config(arguments.config, arguments.given)
    if isinstance(settings.get("inputs"), str):
        settings["inputs"] = [settings["inputs"]]
    return Namespace(**{**vars(arguments), **settings})


def _job(arguments: Namespace) -> DatasetOptions:
    """Return the options for `caption_dataset`, made from its keyword arguments of the flags' names.

    Raises:
        ValueError: a value is outside its range, or a name is unknown.
        OSError: a prompt file cannot be read.
    """
    from mindone.pipelines.image_to_text.dataset.keywords import KEYWORDS, build_options

    if not arguments.inputs:
        raise ValueError("no INPUT is given: name a folder, images, a list, a table or shards")
    job = build_options({name: getattr(arguments, name, None) for name in KEYWORDS})
    print_unused_sampling(arguments)
    if job.plan.repeats and not job.settings.temperature > 0:
        print_error(
            "note: each image is asked the same question more than once, and without a --temperature above 0 the "
            "answers are the same too"
        )
    unused = [flag_of(name) for name in ("actors", "cpus") if getattr(arguments, name) is not None]
    if unused and arguments.engine != "ray":
        print_error(f"note: {' and '.join(unused)} have no effect without --engine ray")
    if arguments.replicas is not None and arguments.engine not in (None, "replicas"):
        print_error(f"note: --replicas has no effect with --engine {arguments.engine}")
    unused = [flag_of(name) for name in _OF_ENDPOINTS if getattr(arguments, name) is not None]
    if unused and arguments.engine != "http":
        print_error(f"note: {' and '.join(unused)} have no effect without --engine http")
    return job


def _list_styles() -> int:
    from mindone.pipelines.image_to_text.dataset.prompts.styles import STYLES

    for style in STYLES.values():
        print_text(f"{style.name}: {style.description}\n    {style.prompt}")
    return DONE


def _list_rules() -> int:
    from mindone.pipelines.image_to_text.dataset.rules.phrase_lists import MARK, PHRASE_LISTS

    for flag, description in _RULES.items():
        print_text(f"{flag}: {description}")
    for row in PHRASE_LISTS.values():
        print_text(f"--forbid {MARK}{row.name}: {row.description}; (a|b) is a choice, and [a] may be missing")
        for phrase in row.phrases:
            print_text(f"    {phrase}")
    return DONE


class Progress:
    """Shows a progress bar on a terminal, otherwise a line every minute; and a line for each of the first failures.

    Records that were kept from an earlier pass count as done, but not towards the speed.

    Attributes:
        has_records: whether the job has produced a record; from then on, errors are no usage errors.
    """

    LINE_SECONDS = 60.0  # between two progress lines

    def __init__(self, bar: tqdm[Any], arguments: Namespace | None = None) -> None:
        self.bar = bar
        self.arguments = arguments or Namespace()
        self.has_records = False
        self.done = self.total = self.made = self.tokens = self.failures = 0
        self.last_line = time.monotonic()

    def on_listing(self, count: int) -> None:
        """Called with the number of inputs that are listed so far; it starts again when they are read again."""
        if not self.bar.disable:
            if count < self.bar.n:
                self.bar.reset()
            self.bar.update(count - self.bar.n)
        elif time.monotonic() - self.last_line >= self.LINE_SECONDS:
            self.last_line = time.monotonic()
            print_error(f"listing: {count} inputs so far")

    def on_start(self, done: int, total: int) -> None:
        """Called once, when the inputs are listed."""
        self.done = done
        self.total = total
        self.start = self.last_line = time.monotonic()
        self.bar.set_description_str("", refresh=False)
        self.bar.set_postfix_str(f"loading {getattr(self.arguments, 'model', 'the model')}", refresh=False)
        self.bar.reset(total)
        self.bar.initial = done  # the bar's rate is that of this run
        self.bar.update(done)
        if done:
            print_error(f"resuming after {done} of {total} inputs")

    def on_record(self, record: Record) -> None:
        """Called for every record."""
        self.has_records = True
        self.done += 1
        if record.stands:
            self.bar.initial += 1
        else:
            self._count(record)
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.last_line >= self.LINE_SECONDS:
            self._print_line()

    def _count(self, record: Record) -> None:
        self.made += 1
        self.tokens += record.new_tokens
        self.bar.set_postfix_str(f"{self.tokens / self._elapsed():.0f} tokens/s", refresh=False)
        if record.error is not None:
            self.failures += 1
            if self.failures <= _SHOWN_FAILURES:
                self.bar.clear()
                print_error(one_line(f"{shell_name(record.source)}: {with_flags(self.arguments, record.error)}"))
            elif self.failures == _SHOWN_FAILURES + 1:
                print_error("more inputs failed; failed.jsonl will list all of them when the job is done")

    def _print_line(self) -> None:
        self.last_line = time.monotonic()
        line = f"{self.done} of {self.total} inputs"
        if self.made:
            rate = self.made / self._elapsed()
            line += f", {rate:.2f} per second, {self.bar.format_interval((self.total - self.done) / rate)} left"
        print_error(line)

    def _elapsed(self) -> float:
        return max(time.monotonic() - self.start, 1e-9)
