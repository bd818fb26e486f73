"""Charts of a report as SVG, drawn with matplotlib; they use the CSS colors of the page, so they follow its theme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..state.speed_log import SpeedSample

# matplotlib does not support CSS variables: it draws in these colors, which are then replaced by variables of the page.
_ACCENT, _SECOND, _TEXT, _LINES = "#a10001", "#a10002", "#a10003", "#a10004"
_VARIABLES = {_ACCENT: "var(--accent)", _SECOND: "var(--second)", _TEXT: "var(--muted)", _LINES: "var(--line)"}
_SIZE, _WIDE = (6.2, 2.7), (12.6, 2.7)  # inches of 72 points; the page scales them
_MAX_BARS = 40
_UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # keep text as text, in the font of the page
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _LINES,
    "axes.labelcolor": _TEXT,
    "axes.axisbelow": True,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "text.color": _TEXT,
    "grid.color": _LINES,
    "grid.linewidth": 0.6,
}
_PROLOG = re.compile(r"^.*?(?=<svg)", re.DOTALL)
# Metadata contains URLs, a style sheet would apply to the whole page, and the page sets sizes and fonts.
_REMOVED = re.compile(
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|font-family: [^;\"]*; ?", re.DOTALL
)
_SIZE_ATTRIBUTES = re.compile(r'(?<=[ ])(?:width|height)="[\d.]+pt" ?')


def histogram(counts: Mapping[int, int], label: str, name: str) -> str:
    """Draw a histogram of caption lengths, with a line at the median.

    Args:
        counts: length -> number of captions; not empty.
        label: label of the horizontal axis.
        name: name of the chart, unique in the page.
    """
    figure, axes = _figure()
    low, high = min(counts), max(counts)
    width = max(1, math.ceil((high - low + 1) / _MAX_BARS))  # lengths per bar
    bars: dict[int, int] = {}
    for length, count in counts.items():
        start = low + (length - low) // width * width
        bars[start] = bars.get(start, 0) + count
    axes.bar([start + width / 2 for start in bars], list(bars.values()), width * 0.9, color=_ACCENT)
    median_length = median(counts)
    axes.axvline(median_length + 0.5, color=_SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"median {median_length}",
        (median_length + 0.5, 1),
        xytext=(4, 2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=_SECOND,
    )
    axes.set_xlim(low - width * 0.3, max(low + width * (max(bars) - low) // width + width, low + 5) + width * 0.3)
    axes.set_xlabel(label)
    axes.set_ylabel("captions")
    _use_integer_ticks(axes)
    return _svg(figure, name, f"histogram: {label}, median {median_length}")


def median(counts: Mapping[int, int]) -> int:
    """Return the median of a histogram of lengths.

    Example:
        >>> median({3: 1, 5: 2})
        5
    """
    remaining = sum(counts.values()) // 2
    for length in sorted(counts):
        remaining -= counts[length]
        if remaining < 0:
            return length
    raise ValueError("the median of an empty histogram is undefined")


def speed_chart(samples: Sequence[SpeedSample], run_starts: Sequence[float], name: str) -> str:
    """Draw tokens per second over the working time of a job; dashed lines mark where it was started again.

    Args:
        samples: samples of the speed log; not empty.
        run_starts: working time in seconds before each run.
        name: name of the chart, unique in the page.
    """
    total = sum(sample.seconds for sample in samples)
    unit, scale = next((unit, scale) for unit, scale in _UNITS if total >= 2 * scale or scale == 1)
    figure, axes = _figure(_WIDE)
    edges = [0.0]
    for sample in samples:
        edges.append(edges[-1] + sample.seconds / scale)
    rates = [sample.tokens / sample.seconds for sample in samples]
    axes.stairs(rates, edges, fill=True, color=_ACCENT, alpha=0.18)
    axes.stairs(rates, edges, color=_ACCENT, linewidth=1.4, baseline=None)
    for start in run_starts:
        if start > 0:
            axes.axvline(start / scale, color=_SECOND, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, max(*rates, 1) * 1.08)
    axes.set_xlabel(f"working time in {unit}")
    axes.set_ylabel("tokens per second")
    return _svg(figure, name, f"tokens per second over {edges[-1]:.1f} {unit}")


def _figure(size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="y")
        axes.tick_params(length=0)
    return figure, axes


def _use_integer_ticks(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an <svg> element without prolog and metadata, with unique ids and the colors of the page."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = _SIZE_ATTRIBUTES.sub("", _REMOVED.sub("", _PROLOG.sub("", text.getvalue())))
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
