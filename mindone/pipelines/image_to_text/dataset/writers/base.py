"""What every writer works with: its options, its target, and the Writer interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from mindone.models.share4v.display import shell_name

from ..prompts.caption_template import check_template
from ..readers.downloads import DEFAULT_DOWNLOADS, DownloadOptions
from ..rules.token_budget import TokenBudget, check_budgets
from ..state.journal import read_pairs
from ..state.listing import Listing
from ..state.records import Item, Record
from ..state.reviews import Reviews
from .finishing import Finisher, OutputRecord, Wording, texts_on_disk
from .formats import WriterRow, output_path

# What a writer has on disk, as JSON values; "records" is the number of the next record that it needs.
Progress = Mapping[str, Any]
_MAX_LEFT_OUT = 100
_NEWER = ("template", "fit", "texts", "text_templates", "text_fits")  # options that the first version of job.json lacks


@dataclass(frozen=True, kw_only=True)
class WriterOptions:
    """How outputs are written.

    Attributes:
        shard_size: records per Parquet part; samples per WebDataset shard, unless it follows a shard of the input.
        seconds: record how long each input took, which differs from run to run.
        folder: root of the relative paths in Open-Sora's files; default: the innermost folder that holds all inputs.
        template: what is written in place of every caption that the model wrote, such as "sks, {caption}"; may contain
            variables, as prompts may. A job with another template writes its outputs again, without the model.
        fit: token budgets of the encoders that will read the captions, each as NAME_OR_DIR:N: a directory with a
            tokenizer's files, or its name on the hub, and the maximum number of tokens, special tokens and template
            included. Whole sentences are dropped from the end of a caption until it fits into all of them. The tokens
            are in the records, and those of the first budget in Open-Sora's CSV, as `text_len`.
        downloads: how images at URLs are downloaded for outputs that contain them; follows from the job's settings.
        texts: names of the texts of each input, in a job with named texts; `caption_dataset` sets it.
        on_fault: what to do with captions that do not fit into a budget; `caption_dataset` sets it.
        text_templates, text_fits: name of a text -> its `template` and `fit`, where they are not those above.

    Raises:
        ValueError: shard_size is less than 1, the template does not contain {caption}, or a budget cannot be read.
    """

    shard_size: int = 10_000
    seconds: bool = False
    folder: str | None = None
    template: str | None = None
    fit: tuple[str, ...] = ()
    downloads: DownloadOptions = DEFAULT_DOWNLOADS
    texts: tuple[str, ...] = ()
    text_templates: Mapping[str, str] = field(default_factory=dict, hash=False)
    text_fits: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    on_fault: str = "keep"

    def __post_init__(self) -> None:
        if not isinstance(self.shard_size, int) or self.shard_size < 1:
            raise ValueError(f"shard_size must be an integer of at least 1, got {self.shard_size!r}")
        if self.template is not None:
            check_template(self.template)
        for template in self.text_templates.values():
            check_template(template)
        # Lists, if they come from job.json.
        object.__setattr__(self, "texts", tuple(self.texts))
        object.__setattr__(self, "fit", tuple(self.fit))
        object.__setattr__(self, "text_fits", {name: tuple(fit) for name, fit in self.text_fits.items()})
        for fit in (self.fit, *self.text_fits.values()):
            check_budgets([TokenBudget.parse(one) for one in fit])

    @property
    def description(self) -> dict[str, Any]:
        """The options as a job's description has them; those that were added later only if they are set."""
        values = asdict(self)
        del values["downloads"], values["on_fault"]
        return {name: value for name, value in values.items() if value or name not in _NEWER}

    @property
    def has_budgets(self) -> bool:
        """Whether a text has a token budget."""
        return bool(self.fit) or any(self.text_fits.values())

    @property
    def wording(self) -> Wording:
        """What is done to a caption when it is written."""
        named = {
            name: Wording(self.text_templates.get(name, self.template), self.text_fits.get(name, self.fit))
            for name in self.texts
        }
        base = Wording(self.template, self.fit)
        own = tuple((name, one) for name, one in named.items() if one != base)
        return replace(base, texts=own, fails=self.has_budgets and self.on_fault == "fail")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a writer is constructed with.

    Attributes:
        row: the writer's row in WRITERS.
        out: the output file or directory, or None.
        options: how it is written.
        listing: the job's inputs.
        journal: path of the job's journal.
        progress: what the writer had on disk when the job was interrupted; None to start from the first record.
        stale: what it had on disk before the job was restarted from the beginning, if it was, or before captions were
            reviewed.
        reviews: what people decided about the captions.
        reviewed: bytes of the reviews that are in what the writer had on disk.
        wordings: wordings of the captions that it had on disk.
    """

    row: WriterRow
    out: str | None
    options: WriterOptions
    listing: Listing
    journal: Path
    progress: Progress | None = None
    stale: Progress | None = None
    reviews: Reviews
    reviewed: int = 0
    wordings: tuple[Wording, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether `out` is the path of an output file, not of a directory."""
        path = self.path()
        return bool(self.row.suffix) and path.suffix.lower() == self.row.suffix and not path.is_dir()

    def path(self) -> Path:
        """Return `out`.

        Raises:
            ValueError: there is no `out`, or it is a file of another format.
        """
        if self.out is None:
            raise ValueError(f"out (--out) must be a file or a directory for the format {self.row.name!r}")
        return output_path(self.row, self.out)

    def file(self) -> Path:
        """Return the path of the output file: `out`, or the format's default name in the directory `out`."""
        path = self.path()
        return path if self.is_file else path / self.row.file_name

    def pairs(self) -> Iterator[tuple[Item, OutputRecord]]:
        """Yield all inputs with their records as outputs have them; errors as in `read_pairs`."""
        finisher = self.finisher
        for item, record in read_pairs(self.journal, self.listing):
            yield item, finisher.finish(record)

    @property
    def finisher(self) -> Finisher:
        """Makes what outputs have from the journal's records."""
        return Finisher(self.reviews, self.options.wording)

    def is_changed(self, record: Record) -> bool:
        """Return whether a record was reviewed after the writer wrote what it has on disk."""
        offset = self.reviews.offset(record)
        return offset is not None and offset >= self.reviewed

    @property
    def has_new_wording(self) -> bool:
        """Whether captions on disk may have another template or other budgets."""
        return any(wording != self.options.wording for wording in self.wordings)

    def known_texts(self, record: OutputRecord) -> Iterator[tuple[str, ...]]:
        """Yield the captions that the job or a review gave an input; an output with others was edited by a person."""
        reviewed = (texts for review in self.reviews.history(record) for texts in review.texts())
        yield record.captions
        yield from texts_on_disk(record, [record.recorded, *reviewed], [*self.wordings, self.options.wording])

    def is_decided(self, record: Record) -> bool:
        """Return whether the record's captions are those of a review, whatever the job generated."""
        review = self.reviews.get(record)
        return review is not None and review.verdict in ("regenerated", "accepted", "edited")


class Writer(Protocol):
    """Writes one output format; constructed with a Target.

    Attributes:
        start: number of the first record that it needs. A writer that only works when the job is done starts at the
            end of the listing, and reads `Target.pairs` in `finish`.
        left_out: what could not be written, and why; at most 100 entries.
    """

    start: int
    left_out: list[str]

    def write(self, item: Item, record: OutputRecord) -> None:
        """Write the next record; it need not be on disk before `flush`.

        Raises:
            OSError: for example, the disk is full; the last Progress remains valid.
        """

    def flush(self) -> Progress:
        """Write buffered records to disk, as far as the format allows, and return what is on disk."""

    def finish(self) -> Progress:
        """Rename all files to their final names; the last call."""


def note_left_out(left_out: list[str], item: Item, reason: str) -> None:
    """Add an input that could not be written; only the first 100 are listed."""
    if len(left_out) < _MAX_LEFT_OUT:
        left_out.append(f"{shell_name(item.source)}: {reason}")
