"""Summary of a job: one pass over its journal, in memory that does not grow with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audit import CaptionAudit
from ..audit.near_images import NearEqualImages, NearImages
from ..rules.repetition import find_repetition
from ..rules.retries import breaks_rules
from ..rules.words import count_words
from ..state.atomic_files import count_lines, lines_from
from ..state.bounded_reading import read_json
from ..state.existing_captions import KEPT_EXISTING
from ..state.paths import INPUTS, JOB, JOURNAL, SKIPPED, SPEED_LOG, TOKEN_COUNTS
from ..state.records import Record, record_from_line
from ..state.regular_files import own_exists
from ..state.skipped import SkippedGroup, read_skipped
from ..state.speed_log import SpeedSample, read_speed_log
from ..state.token_counts import BudgetCounts, read_token_counts
from ..writers.stored_finisher import own_description, stored_finisher
from .match_scores import MatchScores, read_match_scores
from .streaming_stats import DuplicateCounter, LowestRanked, TopCounts, stable_hash

SAMPLE_SIZE, EXTREMES, MAX_LISTED = 24, 5, 50
MAX_WORDS, MAX_TOKENS = 2000, 4096  # longer captions are counted with these lengths
_OPENING_WORDS = 3
_MAX_SPEED_SAMPLES = 400
_EXAMPLES_PER_REASON = 3
_MAX_REASONS_WITH_EXAMPLES, _REASONS_TO_KEEP = 2000, 200
_NUMBERS, _FIRST_NUMBER = re.compile(r"\d+"), re.compile(r"^\d+")
_HEX_DUMP = re.compile(r"\((?:[0-9a-f]{2}[ ,]*)+(?:\.{3})?\)")  # first bytes of a file that is not an image
_NOTE_DETAIL = re.compile(r"(\s*\(.*\)|:\s.*)$", re.DOTALL)  # the part of a note that differs between captions


@dataclass(frozen=True)
class Example:
    """A caption or a failure to show in the report."""

    number: int
    key: str
    source: str
    text: str
    prompt: str = ""
    remark: str = ""


@dataclass
class Summary:
    """Statistics of a job, and examples.

    Attributes:
        inputs: number of inputs of the job; None if they are not listed.
        done, captioned, kept, failed: number of records so far; with new captions, with an existing caption, with an
            error.
        captions: number of captions.
        empty: number of captions without words.
        generated_tokens: number of tokens of all captions.
        usage: requests and tokens that the records cost at endpoints, as in Record.
        repetitive: number of captions with degenerate repetition.
        breaking_rules, rejected: number of inputs whose captions break a rule after all attempts; of those, the ones
            whose captions were not written.
        words, tokens: length -> number of captions.
        finish_reasons, notes, models, prompts, openings, reasons: counts; `reasons` are those of failures.
        reason_examples: reason -> failures.
        same_captions: identical captions of different images.
        same_images: inputs with identical bytes.
        repetitive_examples, sample, shortest, longest: captions to show.
        speed: samples of about equal length, of all runs in order.
        seconds: working time of all runs.
        run_starts: working time before each run; empty if there is no speed log.
        started, ended: seconds since 1970, or None.
        settings: contents of job.json.
        skipped: what the inputs contain that the job does not caption.
        audit: words, phrases and near-duplicates of the captions.
        near_images: near-equal images; None until all records were added.
        hashes: collects the hashes of images.
        budgets: token budget -> lengths of the captions in its tokens; known once the outputs are complete.
        reviewed: verdict -> number of inputs whose captions are those of a review, or were rejected in one.
        remarks: what outputs have and the captions here lack, such as a budget whose tokenizer is not here.
        match: scores of `share4v match`; None if there are none.
    """

    inputs: int | None = None
    done: int = 0
    captioned: int = 0
    kept: int = 0
    failed: int = 0
    captions: int = 0
    empty: int = 0
    generated_tokens: int = 0
    usage: Counter[str] = field(default_factory=Counter)
    repetitive: int = 0
    breaking_rules: int = 0
    rejected: int = 0
    words: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    finish_reasons: TopCounts = field(default_factory=lambda: TopCounts(100))
    notes: TopCounts = field(default_factory=lambda: TopCounts(500))
    models: TopCounts = field(default_factory=lambda: TopCounts(100))
    prompts: TopCounts = field(default_factory=lambda: TopCounts(500))
    openings: TopCounts = field(default_factory=lambda: TopCounts(20_000))
    reasons: TopCounts = field(default_factory=lambda: TopCounts(500))
    reason_examples: dict[str, list[Example]] = field(default_factory=dict)
    same_captions: DuplicateCounter = field(default_factory=DuplicateCounter)
    same_images: DuplicateCounter = field(default_factory=DuplicateCounter)
    repetitive_examples: LowestRanked[Example] = field(default_factory=lambda: LowestRanked(MAX_LISTED))
    sample: LowestRanked[Example] = field(default_factory=lambda: LowestRanked(SAMPLE_SIZE))
    shortest: LowestRanked[Example] = field(default_factory=lambda: LowestRanked(EXTREMES))
    longest: LowestRanked[Example] = field(default_factory=lambda: LowestRanked(EXTREMES))
    speed: list[SpeedSample] = field(default_factory=list)
    seconds: float = 0.0
    run_starts: list[float] = field(default_factory=list)
    started: float | None = None
    ended: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[SkippedGroup, ...] = ()
    audit: CaptionAudit = field(default_factory=CaptionAudit)
    near_images: NearEqualImages | None = None
    hashes: NearImages | None = None
    budgets: Mapping[str, BudgetCounts] = field(default_factory=dict)
    reviewed: Counter[str] = field(default_factory=Counter)
    remarks: tuple[str, ...] = ()
    match: MatchScores | None = None

    def add(self, record: Record) -> None:
        """Count one record."""
        self.done += 1
        self.usage.update(record.usage)
        if record.sha256:
            self.same_images.add(record.sha256, record.source)
        self.rejected += bool(record.rejected)
        if record.image_hash and self.hashes is not None:
            self.hashes.add(record.image_hash, record.source)
        if record.error is not None:
            self.breaking_rules += bool(record.rejected)
            self._add_failure(record)
            return
        is_kept = KEPT_EXISTING in record.notes
        self.kept += is_kept
        self.breaking_rules += not is_kept and breaks_rules(record.notes)
        self.captioned += not is_kept
        self.generated_tokens += sum(record.tokens)
        if record.model:
            self.models.add(f"{record.model}, {record.dtype}" if record.dtype else record.model)
        for reason in record.finish_reasons:
            self.finish_reasons.add(reason)
        for tokens in record.tokens:
            self.tokens[min(tokens, MAX_TOKENS)] += 1
        for prompt in record.prompts:
            self.prompts.add(prompt)
        for note in record.notes:
            self.notes.add(_FIRST_NUMBER.sub("#", _NOTE_DETAIL.sub("", note)) or note)
        for index, caption in enumerate(record.captions):
            self._add_caption(record, index, caption)

    def _add_caption(self, record: Record, index: int, caption: str) -> None:
        self.captions += 1
        self.audit.add(caption, record.source)
        count = count_words(caption)
        self.words[min(count, MAX_WORDS)] += 1
        self.empty += not count
        prompt = record.prompts[index] if index < len(record.prompts) else ""
        example = Example(record.number, record.key, record.source, caption, prompt, "; ".join(record.notes))
        rank = stable_hash(f"{record.key}\0{index}")
        self.sample.add(rank, example)
        self.shortest.add(count, example)
        self.longest.add(-count, example)
        words = caption.split(None, _OPENING_WORDS)[:_OPENING_WORDS]
        if words:
            self.openings.add(" ".join(words).rstrip(".,:;").lower())
            self.same_captions.add(caption, record.source, record.sha256 or "")
        repetition = find_repetition(caption)
        if repetition is not None:
            self.repetitive += 1
            remark = f"{repetition.repeats:g} times: {repetition.unit[:200]}"
            example = Example(record.number, record.key, record.source, caption, prompt, remark)
            self.repetitive_examples.add(rank, example)

    def _add_failure(self, record: Record) -> None:
        self.failed += 1
        reason = common_reason(record)
        self.reasons.add(reason)
        examples = self.reason_examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES_PER_REASON:
            examples.append(Example(record.number, record.key, record.source, record.error or ""))
        if len(self.reason_examples) > _MAX_REASONS_WITH_EXAMPLES:  # drop the examples of rare reasons
            frequent = {text for text, _ in self.reasons.most_common(_REASONS_TO_KEEP)}
            self.reason_examples = {text: shown for text, shown in self.reason_examples.items() if text in frequent}

    def add_speed(self, samples: Iterable[SpeedSample]) -> None:
        """Add a speed log, merging samples until at most _MAX_SPEED_SAMPLES of about equal length remain."""
        width = 1.0  # minimum length of a merged sample in seconds
        merged: list[SpeedSample] = []
        for sample in samples:
            self.started = sample.at if self.started is None else self.started
            self.ended = sample.at
            if not sample.seconds:
                self.run_starts.append(self.seconds)
                continue
            self.seconds += sample.seconds
            _append_or_merge(merged, sample, width)
            while len(merged) > _MAX_SPEED_SAMPLES:
                width *= 2
                shorter, merged = merged, []
                for one in shorter:
                    _append_or_merge(merged, one, width)
        self.speed = merged


def summarize(state: Path, trigger: str | None = None) -> Summary:
    """Summarize the state directory of a job: journal.jsonl, and inputs.jsonl, speed.jsonl and job.json if they exist.

    Captions are those of the outputs: as people reviewed them, in the job's template and budgets. The job may be
    running: an incomplete last line is ignored.

    Args:
        state: the state directory.
        trigger: word or phrase that every caption should have.

    Raises:
        FileNotFoundError: there is no journal.
        ValueError: a line of the journal cannot be read, and the message names it; or the trigger has no letters.
    """
    hashes = NearImages()
    summary = Summary(audit=CaptionAudit(trigger), hashes=hashes)
    if own_exists(state / INPUTS):
        summary.inputs = count_lines(state / INPUTS)
    if own_exists(state / JOB):
        settings = read_json(state / JOB)
        summary.settings = settings if isinstance(settings, dict) else {}
    summary.skipped = read_skipped(state / SKIPPED)
    summary.budgets = read_token_counts(state / TOKEN_COUNTS)
    stored = stored_finisher(state)
    reviews, summary.remarks = stored.finisher.reviews, stored.left_out
    with summary.audit as audit, closing(hashes), closing(reviews):
        for record in read_records(state / JOURNAL):
            review = reviews.get(record)
            if review is not None and review.apply(record) is not record:
                summary.reviewed[review.verdict] += 1
            summary.add(stored.finisher.finish(record))
        _ = audit.near_duplicates  # while its temporary files exist
        summary.near_images = hashes.find()
    summary.add_speed(read_speed_log(state / SPEED_LOG))
    summary.match = read_match_scores(own_description(state))
    return summary


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a journal that may be growing; an incomplete last line is ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line cannot be read.
    """
    for number, line in enumerate(lines_from(path), 1):
        try:
            yield record_from_line(line)
        except (ValueError, TypeError) as error:
            if not line.endswith(b"\n"):
                return
            raise ValueError(f"{path}, line {number}: not a record ({error}); the journal is damaged there") from error


def _append_or_merge(samples: list[SpeedSample], new: SpeedSample, width: float) -> None:
    """Append a sample, or merge it with the last one if that is shorter than `width` seconds."""
    if samples and samples[-1].seconds < width:
        last = samples.pop()
        new = SpeedSample(new.at, last.seconds + new.seconds, last.records + new.records, last.tokens + new.tokens)
    samples.append(new)


def common_reason(record: Record) -> str:
    """Return the reason of a failure without names and numbers, so that equal reasons are counted together."""
    reason = record.error or ""
    for name in (record.source, record.key):
        reason = reason.replace(name, "...") if name else reason
    return _NUMBERS.sub("#", _HEX_DUMP.sub("(...)", " ".join(reason.split())))[:300]
