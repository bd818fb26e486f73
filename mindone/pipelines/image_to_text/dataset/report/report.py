"""The report of a job: one self-contained HTML page with counts, charts, unusual captions, and a sample of images."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..state.atomic_files import atomic_write, count_lines, lines_from
from ..state.paths import INPUTS, JOURNAL, STATE_SUFFIX
from ..state.records import Item, Picture, item_from_line, printable
from ..state.regular_files import check_directory, own_exists
from ..state.signature import is_listing_signed
from .charts import histogram, median, speed_chart
from .streaming_stats import TopCounts
from .summary import MAX_LISTED, Summary, summarize

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

REPORT_NAME = "report.html"
THUMBNAIL = 320  # pixels of the longer side; twice the displayed size, for high-density screens
_REQUIRED_PACKAGES = ("jinja2", "matplotlib")
_TABLE_ROWS = 12
_UNUSUAL_ENDS = ("length", "context")


class ReportError(ValueError):
    """There is no job to report on, or a package that reports need is not installed; the message says what to do."""


def find_state(out: str | os.PathLike[str], names: Sequence[str] = (JOURNAL,)) -> Path:
    """Return the state directory of a job: OUT itself, OUT/.share4v or OUT.share4v.

    Args:
        out: as in `write_report`.
        names: files of which a state directory has at least one.

    Raises:
        ReportError: none of them contains such a file, or it is a link.
    """
    path = Path(out)
    tried = [path, path / STATE_SUFFIX, path.with_name(path.name + STATE_SUFFIX)]
    found = next((directory for directory in tried if any(own_exists(directory / name) for name in names)), None)
    if found is None:
        raise ReportError(
            f"no {names[0]} in {', '.join(map(str, tried))}: give the --out or --state of "
            "`share4v caption-dataset`, or the folder that it captioned"
        )
    if found is not path:  # a link that the caller names is followed; one in a folder is not
        try:
            check_directory(found)
        except OSError as error:
            raise ReportError(f"{found}: {error.strerror}; give the directory itself") from error
    return found


def write_report(
    out: str | Path,
    html: str | Path | None = None,
    read: Callable[[Item], Picture] | None = None,
    trigger: str | None = None,
) -> tuple[Path, Summary]:
    """Write the report of a job, which may be running.

    Args:
        out: output of the job, or its state directory.
        html: file to write; by default report.html in the state directory.
        read: reads an input for its thumbnail; by default as the job does.
        trigger: word or phrase that every caption should have; the page shows where it is missing.

    Returns:
        The file, and the summary of the job.

    Raises:
        ReportError: there is no journal, or matplotlib or Jinja2 is not installed.
        ValueError: the journal is damaged, or the trigger has no letters.
        OSError: the page cannot be written.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.report.report import write_report
        >>> write_report("captions.jsonl", "report.html")  # doctest: +SKIP
    """
    check_installed()
    state = find_state(out)
    summary = summarize(state, trigger)
    pictures = thumbnails(state, [example.number for example in summary.sample.values()], read)
    page = render(summary, pictures, str(out))
    path = state / REPORT_NAME if html is None else Path(html)
    with atomic_write(path) as file:
        file.write(page.encode("utf-8", "replace"))
    return path, summary


def check_installed() -> None:
    """Raise a ReportError if a package that only reports need is not installed."""
    for name in _REQUIRED_PACKAGES:
        try:
            import_module(name)
        except ImportError as error:
            raise ReportError(
                f"a report needs {name} ({error}): install it with pip install 'mindone-share4v[report]'"
            ) from error


def thumbnails(
    state: Path, numbers: Iterable[int], read: Callable[[Item], Picture] | None = None
) -> dict[int, str | None]:
    """Return thumbnails of some inputs as data URIs; None for an input that can no longer be read.

    Nothing is downloaded. Of a job that this user did not run here, there are no thumbnails: its listing could name any
    file.

    Args:
        state: state directory of the job; without inputs.jsonl there are no thumbnails.
        numbers: numbers of the inputs.
        read: reads an input.
    """
    from ..readers import Reader

    uris: dict[int, str | None] = dict.fromkeys(numbers)
    listing = state / INPUTS
    if not uris or not own_exists(listing):
        return uris
    digest = hashlib.sha256()
    count_lines(listing, digest)
    if not is_listing_signed(state, digest.digest()):
        return uris
    last, read = max(uris), read or Reader(downloads=None).read
    for number, line in enumerate(lines_from(listing)):
        if number > last:
            break
        if number in uris:
            uris[number] = _thumbnail(line, read)
    return uris


def _thumbnail(line: bytes, read: Callable[[Item], Picture]) -> str | None:
    from mindone.models.share4v.processing.image_loading import load_image

    try:
        image: PILImage = load_image(read(item_from_line(line)).frames[0])
    except (ValueError, OSError, MemoryError, IndexError):  # deleted or changed since: the caption is shown without it
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def render(summary: Summary, pictures: Mapping[int, str | None], name: str) -> str:
    """Return the page.

    Args:
        summary: summary of the job.
        pictures: input number -> data URI of its thumbnail.
        name: name of the job, for the title.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    folder = f"{name.rstrip('/')}/"  # common prefix of the sources of a job on one folder
    environment.filters.update(
        count=_count,
        share=_share,
        duration=_duration,
        moment=_moment,
        short=lambda source: source.removeprefix(folder),
    )
    return environment.get_template("report.html.j2").render(
        name=name,
        summary=summary,
        charts={chart: Markup(svg) for chart, svg in _charts(summary).items()},  # contain no text from the data
        pictures=pictures,
        sample=sorted(summary.sample.values(), key=lambda example: example.number),
        openings=_rows(summary.openings),
        prompts=_rows(summary.prompts),
        models=_rows(summary.models),
        notes=_rows(summary.notes, total=summary.captions),
        ends=_rows(summary.finish_reasons),
        reasons=[(*row, summary.reason_examples.get(row[0], [])) for row in _rows(summary.reasons, MAX_LISTED)],
        median_words=median(summary.words) if summary.words else 0,
        cut_off=sum(count for reason, count in summary.finish_reasons.most_common() if reason in _UNUSUAL_ENDS),
        length_limit=_length_limit(summary),
        max_listed=MAX_LISTED,
        settings=list(_flatten(summary.settings)),
        audit=summary.audit.to_json(_TABLE_ROWS),
    )


def _charts(summary: Summary) -> dict[str, str]:
    charts = {}
    if summary.words:
        charts["words"] = histogram(summary.words, "words of a caption", "words")
    if summary.tokens:
        charts["tokens"] = histogram(summary.tokens, "tokens of a caption", "tokens")
    if any(sample.tokens for sample in summary.speed):
        charts["speed"] = speed_chart(summary.speed, summary.run_starts, "speed")
    if summary.match is not None:
        charts["match"] = histogram(summary.match.counts, "match: 100 times CLIP's cosine, rounded down", "match")
    for number, (budget, counts) in enumerate(summary.budgets.items()):
        if counts.tokens:
            charts[budget] = histogram(counts.tokens, "tokens of a text, as the encoder counts them", f"budget{number}")
    return charts


def _rows(counts: TopCounts, number: int = _TABLE_ROWS, total: int | None = None) -> list[tuple[str, int, float]]:
    """Return the most frequent texts with their counts and their shares of `total`, by default of all texts."""
    whole = max(counts.total if total is None else total, 1)
    return [(text, count, count / whole) for text, count in counts.most_common(number)]


def _length_limit(summary: Summary) -> int | None:
    captions = summary.settings.get("captions")
    generation = captions.get("generation") if isinstance(captions, Mapping) else None
    limit = generation.get("max_new_tokens") if isinstance(generation, Mapping) else None
    return limit if isinstance(limit, int) else None


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif value not in (None, "", [], ()):
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _count(number: int) -> str:
    return f"{number:,}"


def _share(fraction: float) -> str:
    """Format a fraction in percent; a small positive fraction does not become 0.0 %."""
    if 0 < fraction < 0.001:
        return "< 0.1 %"
    return f"{100 * fraction:.1f} %"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
