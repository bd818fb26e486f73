"""A job's report: one HTML page without any connection: counts, charts, what looks odd, and pictures to look at."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..readers import STATE_SUFFIX
from ..state.atomic_files import atomic_write, lines_from
from ..state.records import Item, Picture, item_from_line, printable
from ..state.resume import JOURNAL
from .charts import histogram, median, speed_chart
from .streaming_stats import TopCounts
from .summary import LISTED, Example, Summary, summarize

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

REPORT_NAME = "report.html"
THUMBNAIL = 320  # pixels of the longer side; the page shows half of it, for screens of double density
_NEEDED = ("jinja2", "matplotlib")
_ROWS = 12
_UNUSUAL_ENDS = ("length", "context")


class ReportError(ValueError):
    """There is nothing to report on, or something that a report needs is not installed; the message says what to do."""


def find_state(out: str | Path) -> Path:
    """Return the directory in which a job keeps its journal: OUT itself, OUT/.share4v or OUT.share4v.

    Raises:
        ReportError: none of them has a journal.
    """
    place = Path(out)
    tried = [place, place / STATE_SUFFIX, place.with_name(place.name + STATE_SUFFIX)]
    found = next((one for one in tried if (one / JOURNAL).is_file()), None)
    if found is None:
        raise ReportError(
            f"no {JOURNAL} in {', '.join(map(str, tried))}: give what `share4v caption-dataset` got as --out or "
            "--state, or the folder that it captioned"
        )
    return found


def write_report(
    out: str | Path, html: str | Path | None = None, read: Callable[[Item], Picture] | None = None
) -> tuple[Path, Summary]:
    """Write the report of a job, which may still be at work.

    Args:
        out: the job's output, or its directory of state.
        html: the file to write, by default report.html in the directory of state.
        read: reads an input for its thumbnail, by default as the job does.

    Returns:
        The file, and what was counted.

    Raises:
        ReportError: there is no journal, or matplotlib or Jinja2 is missing.
        ValueError: the journal is damaged.
        OSError: the page cannot be written.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.report.report import write_report
        >>> write_report("captions.jsonl", "report.html")  # doctest: +SKIP
    """
    check_installed()
    state = find_state(out)
    summary = summarize(state)
    pictures = thumbnails(state, [told.number for told in summary.sample.values()], read)
    page = render(summary, pictures, str(out))
    path = state / REPORT_NAME if html is None else Path(html)
    with atomic_write(path) as file:
        file.write(page.encode("utf-8", "replace"))
    return path, summary


def check_installed() -> None:
    """Raise a ReportError where a library is missing that only reports need."""
    for name in _NEEDED:
        try:
            import_module(name)
        except ImportError as error:
            raise ReportError(
                f"a report needs {name} ({error}): install it with pip install 'mindone-share4v[report]'"
            ) from error


def thumbnails(
    state: Path, numbers: Iterable[int], read: Callable[[Item], Picture] | None = None
) -> dict[int, str | None]:
    """Return small pictures of some inputs as data URIs; None for one that cannot be read any more.

    Args:
        state: the job's directory; without its inputs.jsonl there are no pictures.
        numbers: of the inputs.
        read: reads an input.
    """
    from ..readers import read_item

    wanted = sorted(set(numbers))
    made: dict[int, str | None] = dict.fromkeys(wanted)
    listing = state / "inputs.jsonl"
    if not wanted or not listing.is_file():
        return made
    for number, line in enumerate(lines_from(listing)):
        if number > wanted[-1]:
            break
        if number in made:
            made[number] = _thumbnail(line, read or read_item)
    return made


def _thumbnail(line: bytes, read: Callable[[Item], Picture]) -> str | None:
    from mindone.models.share4v.processing.image_loading import load_image

    try:
        image: PILImage = load_image(read(item_from_line(line)).frames[0])
    except (ValueError, OSError, MemoryError, IndexError):  # gone or changed since: the caption is shown without it
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def render(summary: Summary, pictures: Mapping[int, str | None], name: str) -> str:
    """Return the page.

    Args:
        summary: what was counted.
        pictures: data URIs of the sample's pictures by number.
        name: of the job, for the title.
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
    folder = f"{name.rstrip('/')}/"  # sources of a job on one folder all begin with it
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
        charts={
            chart: Markup(svg) for chart, svg in _charts(summary).items()
        },  # drawn here, no text of the data's in it
        pictures=pictures,
        sample=sorted(summary.sample.values(), key=lambda told: told.number),
        openings=_rows(summary.openings),
        prompts=_rows(summary.prompts),
        models=_rows(summary.models),
        notes=_rows(summary.notes),
        ends=_rows(summary.finish_reasons),
        reasons=[(*row, summary.reason_examples.get(row[0], [])) for row in _rows(summary.reasons, LISTED)],
        median_words=median(summary.words) if summary.words else 0,
        cut_off=sum(count for reason, count in summary.finish_reasons.most_common() if reason in _UNUSUAL_ENDS),
        length_limit=_length_limit(summary),
        listed=LISTED,
        settings=list(_flat(summary.settings)),
    )


def _charts(summary: Summary) -> dict[str, str]:
    charts = {}
    if summary.words:
        charts["words"] = histogram(summary.words, "words of a caption", "words")
    if summary.tokens:
        charts["tokens"] = histogram(summary.tokens, "tokens that a caption took", "tokens")
    if any(stretch.tokens for stretch in summary.speed):
        charts["speed"] = speed_chart(summary.speed, summary.run_starts, "speed")
    return charts


def _rows(counts: TopCounts, number: int = _ROWS) -> list[tuple[str, int, float]]:
    """Return the most frequent texts with their counts and their part of all."""
    return [(text, count, count / max(counts.total, 1)) for text, count in counts.most_common(number)]


def _length_limit(summary: Summary) -> int | None:
    captions = summary.settings.get("captions")
    generation = captions.get("generation") if isinstance(captions, Mapping) else None
    limit = generation.get("max_new_tokens") if isinstance(generation, Mapping) else None
    return limit if isinstance(limit, int) else None


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif value not in (None, "", [], ()):
            yield f"{before}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _count(number: int) -> str:
    return f"{number:,}"


def _share(part: float) -> str:
    """Write a part of 1 in percent, never as nothing where there is something."""
    if 0 < part < 0.001:
        return "< 0.1 %"
    return f"{100 * part:.1f} %"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


__all__ = ["ReportError", "Example", "find_state", "render", "thumbnails", "write_report"]
