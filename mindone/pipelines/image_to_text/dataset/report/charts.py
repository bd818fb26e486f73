"""Charts of a report as SVG, drawn by matplotlib; their colours are the page's, so they follow its light or dark."""

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

# matplotlib knows no CSS: it draws in these colours, and each becomes a variable of the page.
_ACCENT, _SECOND, _TEXT, _LINES = "#a10001", "#a10002", "#a10003", "#a10004"
_VARIABLES = {_ACCENT: "var(--accent)", _SECOND: "var(--second)", _TEXT: "var(--muted)", _LINES: "var(--line)"}
_SIZE, _WIDE = (6.2, 2.7), (12.6, 2.7)  # inches at 72 points; the page scales them
_MOST_BARS = 40
_UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
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
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
# Metadata name addresses, the style sheet would hold for the whole page, and sizes and fonts are the page's affair.
_NOT_WANTED = re.compile(
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|font-family: [^;\"]*; ?", re.DOTALL
)
_SIZE_ATTRIBUTES = re.compile(r'(?<=[ ])(?:width|height)="[\d.]+pt" ?')


def histogram(counts: Mapping[int, int], label: str, name: str) -> str:
    """Draw how many captions have so many of something, with a line at the median.

    Args:
        counts: length -> captions; not empty.
        label: of the horizontal axis.
        name: of the chart, unique in the page.
    """
    figure, axes = _figure()
    low, high = min(counts), max(counts)
    width = max(1, math.ceil((high - low + 1) / _MOST_BARS))
    bars: dict[int, int] = {}
    for length, count in counts.items():
        start = low + (length - low) // width * width
        bars[start] = bars.get(start, 0) + count
    axes.bar([start + width / 2 for start in bars], list(bars.values()), width * 0.9, color=_ACCENT)
    middle = median(counts)
    axes.axvline(middle + 0.5, color=_SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"median {middle}",
        (middle + 0.5, 1),
        xytext=(4, 2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=_SECOND,
    )
    axes.set_xlim(low - width * 0.3, max(low + width * (max(bars) - low) // width + width, low + 5) + width * 0.3)
    axes.set_xlabel(label)
    axes.set_ylabel("captions")
    _whole_numbers(axes)
    return _svg(figure, name, f"histogram: {label}, median {middle}")


def median(counts: Mapping[int, int]) -> int:
    """Return the median of lengths that come so often.

    Example:
        >>> median({3: 1, 5: 2})
        5
    """
    left = sum(counts.values()) // 2
    for length in sorted(counts):
        left -= counts[length]
        if left < 0:
            return length
    raise ValueError("there is nothing to take the median of")


def speed_chart(stretches: Sequence[SpeedSample], run_starts: Sequence[float], name: str) -> str:
    """Draw tokens per second over the time in which the job was at work; dashed lines are where it was begun again.

    Args:
        stretches: not empty.
        run_starts: seconds of work before each run.
        name: of the chart, unique in the page.
    """
    total = sum(one.seconds for one in stretches)
    unit, scale = next((unit, scale) for unit, scale in _UNITS if total >= 2 * scale or scale == 1)
    figure, axes = _figure(_WIDE)
    borders = [0.0]
    for one in stretches:
        borders.append(borders[-1] + one.seconds / scale)
    rates = [one.tokens / one.seconds for one in stretches]
    axes.stairs(rates, borders, fill=True, color=_ACCENT, alpha=0.18)
    axes.stairs(rates, borders, color=_ACCENT, linewidth=1.4, baseline=None)
    for start in run_starts:
        if start > 0:
            axes.axvline(start / scale, color=_SECOND, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, borders[-1])
    axes.set_ylim(0, max(*rates, 1) * 1.08)
    axes.set_xlabel(f"{unit} of work")
    axes.set_ylabel("tokens per second")
    return _svg(figure, name, f"tokens per second over {borders[-1]:.1f} {unit} of work")


def _figure(size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="y")
        axes.tick_params(length=0)
    return figure, axes


def _whole_numbers(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an <svg> to put in a page: no prolog, no metadata, ids of its own, the page's colours."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = _SIZE_ATTRIBUTES.sub("", _NOT_WANTED.sub("", _HEAD.sub("", text.getvalue())))
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
