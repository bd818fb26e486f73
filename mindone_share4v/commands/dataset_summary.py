"""What `share4v caption-dataset` prints about a job: the summary at its end, and the preview of a dry run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from .common import count_of

if TYPE_CHECKING:
    from mindone.pipelines.image_to_text.dataset.state.records import InputPreview, JobSummary

# What a dry run says about an action of InputPreview: with one input, with several.
_ACTIONS = {
    "caption": ("1 input would be captioned", "{} inputs would be captioned"),
    "retry": ("1 input that failed would be captioned again", "{} inputs that failed would be captioned again"),
    "keep": ("1 input keeps its caption (see --existing)", "{} inputs keep their captions (see --existing)"),
    "done": ("1 input has a result of an earlier run", "{} inputs have results of an earlier run"),
    "fail": ("1 input would fail", "{} inputs would fail"),
}


def summary_lines(
    summary: JobSummary, inputs: Sequence[str], out: str | None, limit: int | None, on_fault: str = "keep"
) -> Iterator[str]:
    """Yield the lines about a job that has ended: its counts, what was skipped, and what to look at next."""
    seconds = max(summary.seconds, 1e-9)
    counted = count_of(summary.inputs, "input") + (" in this process" if summary.is_share else "")
    yield (
        f"{counted}: {summary.captioned} captioned in {seconds:.0f} s "
        f"({summary.captioned / seconds:.2f} per second, {summary.tokens / seconds:.0f} tokens per second), "
        f"{summary.kept} kept, {summary.failed} failed"
    )
    if summary.is_share:
        return
    if summary.usage:
        yield (
            f"cost of these results: {summary.usage['prompt_tokens']:,} prompt tokens and "
            f"{summary.usage['completion_tokens']:,} completion tokens in {summary.usage['requests']:,} requests"
        )
    yield from (group.line(with_advice=False) for group in summary.skipped)
    if summary.breaking_rules:
        yield (
            f"{count_of(summary.breaking_rules, 'input')} with captions that break a rule after all attempts; "
            + (
                "--on-fault keep has written them, and their notes in the journal and in the report name it"
                if on_fault == "keep"
                else "--on-fault fail has not written them, failed.jsonl has them with the rule; to accept them, use "
                "the same command with --retry-failed and other rules, or with --on-fault keep"
            )
        )
    if summary.failed:
        failed = quote(str(Path(summary.state) / "failed.jsonl"))
        yield f"why inputs failed: {failed}; the same command with --retry-failed tries only these again"
    if limit is not None and summary.inputs >= limit:
        yield f"--limit {limit}: further inputs are untouched; the same command without --limit continues with them"
    where = "beside the images" if out is None else f"in {quote(out)}"
    # `share4v report` finds the state directory of an output or of one folder.
    job = out or (inputs[0] if len(inputs) == 1 and Path(inputs[0]).is_dir() else summary.state)
    yield f"the captions are {where}; to look at them: share4v report {quote(job)}"


def preview_lines(summary: JobSummary) -> Iterator[str]:
    """Yield the lines about a dry run."""
    preview = summary.preview
    if preview is None:
        return
    yield "dry run: nothing was written, no image was opened and no model was loaded"
    for action, (one, several) in _ACTIONS.items():
        count = preview.actions.get(action, 0)
        if count:
            yield one if count == 1 else several.format(count)
    yield from (group.line() for group in summary.skipped)
    if preview.actions.get("caption") or preview.actions.get("retry"):
        yield f"would write {', '.join(preview.outputs)}; the job's journal is in {summary.state}"
    yield from preview.unknown
    if preview.first:
        yield f"the first {len(preview.first)} inputs:" if len(preview.first) < summary.inputs else "the inputs:"
    for shown in preview.first:
        yield f"  {shown.source}: {_planned(shown)}"


def _planned(shown: InputPreview) -> str:
    if shown.action in ("caption", "retry"):
        begins = f", beginning with {shown.beginning!r}" if shown.beginning else ""
        return " | ".join(shown.prompts) + begins
    if shown.action == "keep":
        return "keeps its caption"
    if shown.action == "fail":
        return f"would fail: {shown.error}"
    return "is done" if shown.error is None else f"failed before (--retry-failed tries it again): {shown.error}"
