"""`share4v caption-dataset`: the command line's arguments become a job."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from .common import DONE, SOME_FAILED, model_options, one_line, print_error, read_settings, usage_error

if TYPE_CHECKING:
    from tqdm import tqdm

    from mindone.pipelines.image_to_text.dataset.api import JobOptions
    from mindone.pipelines.image_to_text.dataset.executors.base import EngineOptions
    from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings, ModelChoice
    from mindone.pipelines.image_to_text.dataset.prompts.plan import PromptPlan
    from mindone.pipelines.image_to_text.dataset.readers import ReaderOptions
    from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules
    from mindone.pipelines.image_to_text.dataset.state.records import Record

STOPPED = 3
_SHOWN_FAILURES = 20  # the others are in failed.jsonl


def run(arguments: Namespace) -> int:
    """Caption the data set and return the exit status."""
    from tqdm import tqdm

    from mindone.pipelines.image_to_text.dataset.api import caption_dataset
    from mindone.pipelines.image_to_text.dataset.executors.ranks import current_rank
    from mindone.pipelines.image_to_text.dataset.state.journal import JournalError

    if arguments.list_styles:
        return _list_styles()
    with tqdm(unit="image", dynamic_ncols=True, smoothing=0, disable=not sys.stderr.isatty()) as bar:
        progress = _Progress(bar)
        try:
            choice, plan, settings, readers, options = _job(arguments)
            summary = caption_dataset(
                arguments.inputs, choice, plan, settings, readers, options, progress.begin, progress.show
            )
        except ImportError as error:
            return usage_error(error)
        except (ValueError, RuntimeError, OSError, FloatingPointError) as error:
            is_wrong_use = isinstance(error, (ValueError, FileNotFoundError)) and not isinstance(error, JournalError)
            if is_wrong_use and not progress.is_begun:
                return usage_error(error)
            print_error(f"stopped: {error}")
            return STOPPED
    for reason in summary.left_out:
        print_error(one_line(f"left out of the output: {reason}"))
    seconds = max(summary.seconds, 1e-9)
    counted = f"{summary.inputs} inputs" + " of this share" * summary.is_share
    print_error(
        f"{counted}: {summary.captioned} captioned in {seconds:.0f} s "
        f"({summary.captioned / seconds:.2f} a second, {summary.tokens / seconds:.0f} tokens a second), "
        f"{summary.kept} kept, {summary.failed} failed"
    )
    if current_rank() is not None:
        return DONE  # any other status msrun takes for a process that broke, and ends its others
    return SOME_FAILED if summary.failed or summary.left_out else DONE


def _job(
    arguments: Namespace,
) -> tuple[ModelChoice, PromptPlan, CaptioningSettings, ReaderOptions, JobOptions]:
    """Return what `caption_dataset` takes behind its inputs.

    Raises:
        ValueError: a value is outside its range, or a name is not known.
        OSError: a prompt file cannot be read.
    """
    from mindone.pipelines.image_to_text.dataset.api import JobOptions
    from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings, ModelChoice
    from mindone.pipelines.image_to_text.dataset.prompts.plan import PromptPlan
    from mindone.pipelines.image_to_text.dataset.writers import SinkOptions

    if not arguments.inputs:
        raise ValueError("no INPUT is given: name a folder, pictures, a list, a table or shards")
    seed = arguments.seed or 0
    files = [arguments.prompt_file] if arguments.prompt_file else []
    plan = PromptPlan.from_options(
        arguments.style or (), arguments.prompt or (), files, arguments.captions, arguments.every_prompt, seed
    )
    generation = read_settings(arguments)
    generation.pop("seed", None)  # each caption has one of its own, which follows from the job's
    if plan.repeats and not generation["do_sample"]:
        print_error(
            "note: a picture is asked the same more than once, and without a --temperature above 0 the answers are the "
            "same too"
        )
    settings = CaptioningSettings(
        generation,
        _rules(arguments),
        arguments.begin_with,
        arguments.attempts,
        seed,
        arguments.batch_size,
        arguments.workers,
    )
    options = JobOptions(
        arguments.out,
        tuple(dict.fromkeys(arguments.format or ())),
        arguments.existing,
        SinkOptions(arguments.shard_size, arguments.seconds),
        arguments.engine,
        _cluster(arguments),
        arguments.state,
        arguments.restart,
        arguments.retry_failed,
    )
    return ModelChoice(**model_options(arguments)), plan, settings, _reader_options(arguments), options


def _rules(arguments: Namespace) -> TextRules:
    from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules

    return TextRules(
        strip_openings=arguments.strip_openings,
        openings=tuple(arguments.strip),
        max_sentences=arguments.max_sentences,
        max_words=arguments.max_words,
        min_words=arguments.min_words,
        required_words=tuple(arguments.require),
        forbidden_words=tuple(arguments.forbid),
    )


def _cluster(arguments: Namespace) -> EngineOptions:
    from mindone.pipelines.image_to_text.dataset.executors.base import EngineOptions

    asked = {name: getattr(arguments, name) for name in ("actors", "cpus") if getattr(arguments, name) is not None}
    if asked and arguments.engine != "ray":
        print_error(f"note: {' and '.join(f'--{name}' for name in asked)} change nothing without --engine ray")
    return EngineOptions(**asked)


def _reader_options(arguments: Namespace) -> ReaderOptions:
    from mindone.pipelines.image_to_text.dataset.readers import ReaderOptions

    if arguments.frames < 1:
        raise ValueError(f"--frames must be at least 1, got {arguments.frames}")
    many = arguments.frames > 1
    return ReaderOptions(
        include=tuple(arguments.include),
        exclude=tuple(arguments.exclude),
        image_root=arguments.image_root,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        key_column=arguments.key_column,
        caption_root=arguments.caption_root,
        frames=arguments.frames if many else None,
        frame_mode="grid" if arguments.frame_grid else "even" if many else "middle",
    )


def _list_styles() -> int:
    from mindone.pipelines.image_to_text.dataset.prompts.styles import STYLES

    for style in STYLES.values():
        print(f"{style.name}: {style.description}\n    {style.prompt}")
    return DONE


class _Progress:
    """The bar at a terminal, else a line now and then; and a line for each of the first failures.

    Records that stand from an earlier pass count as done, and for nothing else.

    Attributes:
        is_begun: whether a record was made, so that what goes wrong from now on is no wrong use any more.
    """

    LINE_SECONDS = 60.0  # between two lines

    def __init__(self, bar: tqdm[Any]) -> None:
        self.bar, self.is_begun = bar, False
        self.done = self.total = self.made = self.tokens = self.failures = 0

    def begin(self, done: int, total: int) -> None:
        """Told once the inputs are listed."""
        self.done, self.total = done, total
        self.begun = self.told = time.monotonic()
        self.bar.reset(total)
        self.bar.initial = done  # the rate is of this run
        self.bar.update(done)
        if done:
            print_error(f"going on behind {done} of {total} inputs")

    def show(self, record: Record) -> None:
        """Told of every record."""
        self.is_begun = True
        self.done += 1
        if record.stands:
            self.bar.initial += 1
        else:
            self._count(record)
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.told >= self.LINE_SECONDS:
            self._tell()

    def _count(self, record: Record) -> None:
        self.made += 1
        self.tokens += sum(record.tokens)
        self.bar.set_postfix_str(f"{self.tokens / self._elapsed():.0f} tokens/s", refresh=False)
        if record.error is not None:
            self.failures += 1
            if self.failures <= _SHOWN_FAILURES:
                self.bar.clear()
                print_error(one_line(f"{record.source}: {record.error}"))
            elif self.failures == _SHOWN_FAILURES + 1:
                print_error("more inputs failed; failed.jsonl will have them all when the job is done")

    def _tell(self) -> None:
        self.told, line = time.monotonic(), f"{self.done} of {self.total} inputs"
        if self.made:
            rate = self.made / self._elapsed()
            line += f", {rate:.2f} a second, {self.bar.format_interval((self.total - self.done) / rate)} left"
        print_error(line)

    def _elapsed(self) -> float:
        return max(time.monotonic() - self.begun, 1e-9)
