"""What a journal says of a job as a whole, read line by line in memory that does not grow with it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..rules.repetition import find_repetition
from ..rules.words import count_words
from ..state.atomic_files import count_lines, lines_from
from ..state.existing_captions import KEPT_EXISTING
from ..state.records import Record, from_line
from ..state.speed_log import SPEED_LOG_NAME, SpeedSample, read_speed_log
from .streaming_stats import DuplicateCounter, LowestRanked, TopCounts, stable_hash

SAMPLE, EXTREMES, LISTED = 24, 5, 50
_OPENING_WORDS = 3
MOST_WORDS, MOST_TOKENS = 2000, 4096  # longer captions are counted as so long
_STRETCHES = 400
_NUMBERS, _FIRST_NUMBER = re.compile(r"\d+"), re.compile(r"^\d+")
_FIRST_BYTES = re.compile(r"\((?:[0-9a-f]{2}[ ,]*)+(?:\.{3})?\)")  # of a file that is no picture
_NOTE_VALUE = re.compile(r"(\s*\(.*\)|:\s.*)$", re.DOTALL)  # what is this caption's own


@dataclass(frozen=True)
class Example:
    """A caption or a failure as the report shows it."""

    number: int
    key: str
    source: str
    text: str
    prompt: str = ""
    remark: str = ""


@dataclass
class Summary:
    """Counts of a job, and examples.

    Attributes:
        inputs: how many the job has; None where they were not listed.
        done, captioned, kept, failed: records so far; those with new captions, with an existing one, with an error.
        captions: captions that were made.
        empty: of these, without a word.
        seconds: from the speed log, all runs together.
        words, tokens: how many captions have so many.
        speed: stretches of about equal length, runs one after another.
        runs: how often the job was begun; 0 where nothing was noted.
    """

    inputs: int | None = None
    done: int = 0
    captioned: int = 0
    kept: int = 0
    failed: int = 0
    captions: int = 0
    empty: int = 0
    generated_tokens: int = 0
    loops: int = 0
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
    same_pictures: DuplicateCounter = field(default_factory=DuplicateCounter)
    looping: LowestRanked[Example] = field(default_factory=lambda: LowestRanked(LISTED))
    sample: LowestRanked[Example] = field(default_factory=lambda: LowestRanked(SAMPLE))
    shortest: LowestRanked[Example] = field(default_factory=lambda: LowestRanked(EXTREMES))
    longest: LowestRanked[Example] = field(default_factory=lambda: LowestRanked(EXTREMES))
    speed: list[SpeedSample] = field(default_factory=list)
    seconds: float = 0.0
    run_starts: list[float] = field(default_factory=list)
    begun: float | None = None
    ended: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Count one record."""
        self.done += 1
        if record.sha256:
            self.same_pictures.add(record.sha256, record.source)
        if record.error is not None:
            self._add_failure(record)
            return
        is_kept = KEPT_EXISTING in record.notes
        self.kept += is_kept
        self.captioned += not is_kept
        self.generated_tokens += sum(record.tokens)
        if record.model:
            self.models.add(f"{record.model}, {record.dtype}" if record.dtype else record.model)
        for reason in record.finish_reasons:
            self.finish_reasons.add(reason)
        for tokens in record.tokens:
            self.tokens[min(tokens, MOST_TOKENS)] += 1
        for prompt in record.prompts:
            self.prompts.add(prompt)
        for note in record.notes:
            self.notes.add(_FIRST_NUMBER.sub("#", _NOTE_VALUE.sub("", note)) or note)
        for place, caption in enumerate(record.captions):
            self._add_caption(record, place, caption)

    def _add_caption(self, record: Record, place: int, caption: str) -> None:
        self.captions += 1
        count = count_words(caption)
        self.words[min(count, MOST_WORDS)] += 1
        self.empty += not count
        prompt = record.prompts[place] if place < len(record.prompts) else ""
        told = Example(record.number, record.key, record.source, caption, prompt, "; ".join(record.notes))
        rank = stable_hash(f"{record.key}\0{place}")
        self.sample.add(rank, told)
        self.shortest.add(count, told)
        self.longest.add(-count, told)
        words = caption.split(None, _OPENING_WORDS)[:_OPENING_WORDS]
        if words:
            self.openings.add(" ".join(words).rstrip(".,:;").lower())
            self.same_captions.add(caption, record.source, record.sha256 or "")
        loop = find_repetition(caption)
        if loop is not None:
            self.loops += 1
            remark = f"{loop.repeats:g} times: {loop.unit[:200]}"
            self.looping.add(rank, Example(record.number, record.key, record.source, caption, prompt, remark))

    def _add_failure(self, record: Record) -> None:
        self.failed += 1
        error = record.error or ""
        reason = _common_reason(record)
        self.reasons.add(reason)
        examples = self.reason_examples.setdefault(reason, [])
        if len(examples) < 3:
            examples.append(Example(record.number, record.key, record.source, error))
        if len(self.reason_examples) > 2000:  # the rarest have no examples then
            known = {text for text, _ in self.reasons.most_common(200)}
            self.reason_examples = {text: told for text, told in self.reason_examples.items() if text in known}

    def add_speed(self, stretches: Iterable[SpeedSample]) -> None:
        """Put a speed log together into stretches of about equal length."""
        width = 1.0
        kept: list[SpeedSample] = []
        for one in stretches:
            self.begun = one.at if self.begun is None else self.begun
            self.ended = one.at
            if not one.seconds:
                self.run_starts.append(self.seconds)
                continue
            self.seconds += one.seconds
            _join(kept, one, width)
            while len(kept) > _STRETCHES:
                width *= 2
                before, kept = kept, []
                for stretch in before:
                    _join(kept, stretch, width)
        self.speed = kept


def summarize(state: Path) -> Summary:
    """Read a job's directory: journal.jsonl, and inputs.jsonl, speed.jsonl and job.json where they are there.

    The job may be at work: a last line that is not whole yet is left out.

    Raises:
        FileNotFoundError: there is no journal.
        ValueError: a line of the journal cannot be read; the message names it.
    """
    summary = Summary()
    if (state / "inputs.jsonl").exists():
        summary.inputs = count_lines(state / "inputs.jsonl")
    if (state / "job.json").exists():
        stated = json.loads((state / "job.json").read_text(encoding="utf-8"))
        summary.settings = stated if isinstance(stated, dict) else {}
    for record in read_records(state / "journal.jsonl"):
        summary.add(record)
    summary.add_speed(read_speed_log(state / SPEED_LOG_NAME))
    return summary


def read_records(path: Path) -> Iterator[Record]:
    """Yield a journal's records; one that is being written at this moment is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line cannot be read.
    """
    for number, line in enumerate(lines_from(path), 1):
        try:
            yield from_line(line)
        except (ValueError, TypeError) as error:
            if not line.endswith(b"\n"):
                return
            raise ValueError(f"{path}, line {number}: no record ({error}); the journal is damaged there") from error


def _join(kept: list[SpeedSample], new: SpeedSample, width: float) -> None:
    """Add a stretch to the last one while that is shorter than `width` seconds."""
    if kept and kept[-1].seconds < width:
        last = kept.pop()
        new = SpeedSample(new.at, last.seconds + new.seconds, last.records + new.records, last.tokens + new.tokens)
    kept.append(new)


def _common_reason(record: Record) -> str:
    """Return a failure's reason without what is the input's own, so that equal reasons are counted together."""
    reason = record.error or ""
    for own in (record.source, record.key):
        reason = reason.replace(own, "...") if own else reason
    return _NUMBERS.sub("#", _FIRST_BYTES.sub("(...)", " ".join(reason.split())))[:300]
