"""Dry run: what a job would caption, keep and write; nothing is written, and no model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter

from .keywords import DatasetOptions
from .prompts.variables import fill
from .state.existing_captions import needs_caption
from .state.limits import encoded, note_records
from .state.listing import Listing
from .state.paths import INPUTS, JOURNAL, WRITTEN
from .state.previous_run import WrittenCaptions
from .state.records import InputPreview, Item, JobPreview, JobSummary
from .state.regular_files import own_exists
from .state.temp_table import TempTable
from .writers import WriterRow, writer_row, written_texts

MAX_SHOWN = 10  # inputs in a preview
# What a job with near_equal does, which is not known before it reads the images: mode -> text.
_NEAR_EQUAL = {
    "note": "the records of those that nearly equal an earlier one get a note",
    "once": "those that nearly equal an earlier one get its captions and are not captioned themselves",
}


def preview_job(list_inputs: Callable[[], Iterable[Item]], job: DatasetOptions, directory: Path) -> JobSummary:
    """Return the summary of a job that was not run, with a preview of what it would do.

    Args:
        list_inputs: lists the inputs, up to the limit.
        job: all options; they were checked.
        directory: state directory of the job, which need not exist; its signature was checked.
    """
    started, actions = perf_counter(), Counter[str]()
    first: list[InputPreview] = []
    with ExitStack() as stack:
        records, restore = stack.enter_context(closing(TempTable("error TEXT"))), _unchanged
        if own_exists(directory / INPUTS):
            texts = written_texts(directory)
            written = WrittenCaptions(directory / JOURNAL, Listing(directory / INPUTS), directory / WRITTEN, texts)
            restore = stack.enter_context(closing(written)).restore
        if not job.options.restart:
            note_records(directory, records)
        for item in list_inputs():
            shown = _preview(restore(item), records.get(encoded(item.key)), job)
            actions[shown.action] += 1
            if len(first) < MAX_SHOWN:
                first.append(shown)
    outputs = tuple(_description(writer_row(name), job.options.out) for name in job.options.formats)
    return JobSummary(
        inputs=actions.total(),
        captioned=0,
        kept=0,
        failed=0,
        seconds=perf_counter() - started,
        tokens=0,
        state=str(directory),
        preview=JobPreview(dict(actions), tuple(first), outputs, tuple(_unknown(job, actions))),
    )


def _unknown(job: DatasetOptions, actions: Counter[str]) -> Iterator[str]:
    """Yield what the job would do that is not known without opening the images."""
    mode = job.options.near_equal
    if mode is not None and (actions["caption"] or actions["retry"]):
        yield (
            f"near_equal (--near-equal) {mode}: the job first reads all images and compares them, which a dry run does "
            f"not do; {_NEAR_EQUAL[mode]}"
        )


def _unchanged(item: Item) -> Item:
    return item


def _preview(item: Item, record: tuple[str | None, ...] | None, job: DatasetOptions) -> InputPreview:
    """Return what the job would do with an input; `record` has the error of its record, if it has one."""
    if record is not None and (record[0] is None or not job.options.retry_failed):
        return InputPreview(item.source, "done", error=record[0])
    if not needs_caption(job.options.existing, item.caption):
        return InputPreview(item.source, "keep")
    try:
        prompts = _prompts(item, job)
        beginning = "" if job.settings.texts else fill(job.settings.begin_with, item)  # texts have their own
    except ValueError as error:
        return InputPreview(item.source, "fail", error=str(error))
    return InputPreview(item.source, "caption" if record is None else "retry", prompts, beginning)


def _prompts(item: Item, job: DatasetOptions) -> tuple[str, ...]:
    """Return what an input would be asked; of named texts with their names, and with earlier texts as variables."""
    texts = job.settings.texts
    names = [text.name for text in texts]
    steps = [text.plan.step(item, names[:index]) for index, text in enumerate(texts)]
    begins = [fill(text.settings.begin_with, item) for text in texts]
    named = tuple(
        f"{name}: {step.text}" + (f", beginning with {begin!r}" if begin else "")
        for name, step, begin in zip(names, steps, begins, strict=True)
    )
    return named or job.plan.texts(item)


def _description(row: WriterRow, out: str | None) -> str:
    """Return what a format writes, for people."""
    if out is None:
        return f"a .{row.name} file beside each image"
    if row.writes_sidecars:
        return f"a .{row.name} file for each image in {out}"
    if row.suffix and Path(out).suffix.lower() == row.suffix and not Path(out).is_dir():
        return out
    return str(Path(out) / (row.file_name or row.pattern))
