"""Plots of the figures: what each shows, and how it is drawn. The same points make the same file, byte by byte.

Matplotlib is wanted for the drawing only: what is in a plot, and whether a file shows these points, is known without.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from .report import Series


@dataclass(frozen=True)
class Plot:
    """What a plot shows.

    Attributes:
        title: of what it speaks.
        x, y: what its axes mean, with units.
        x_scale, y_scale: "symlog" is logarithmic, except between -1 and 1.
        x_points: whether the x axis is marked where there are points, and nowhere else.
        bars: a bar for each label, as long as the median of its ``y``, with a whisker from the least to the greatest;
            its ``x`` are not shown.
    """

    title: str
    x: str
    y: str
    x_scale: Literal["linear", "log", "symlog"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    x_points: bool = False
    bars: bool = False


LATE, SHARE, WAITING = "started so late or less (ms)", "share of all tasks (%)", "waiting tasks"
HANDED = "jobs handed over a second"


def _lateness(rate: int) -> Plot:
    return Plot(f"Lateness at {rate} tasks a second", LATE, SHARE, x_scale="log")


#: Plot -> what it shows. A :class:`~benchmarks.report.Series` names one of them.
PLOTS = {
    "lateness-10": _lateness(10),
    "lateness-100": _lateness(100),
    "lateness-500": _lateness(500),
    "memory": Plot("Memory of a worker over waiting tasks", WAITING, "resident memory, with its children (MB)"),
    "unacked": Plot("Kombu's unacked messages over waiting tasks", WAITING, "memory in Redis (MB)"),
    "rate": Plot(
        "Rates over waiting tasks", WAITING, "operations a second", x_scale="log", y_scale="log", x_points=True
    ),
    "dispatchers": Plot("Rate over dispatchers", "dispatchers on one Redis", HANDED, x_scale="log", x_points=True),
    "queues": Plot(
        "Rate over queues", "queues in which jobs are due", "jobs handed over a second", "log", x_points=True
    ),
    "peers-lateness": Plot("Lateness at 100 jobs a second", LATE, SHARE, x_scale="symlog"),
    "peers-burst": Plot("A burst of jobs due at one instant", "until all have started (s)", "", bars=True),
    "peers-memory": Plot("Redis memory of a waiting job", "bytes", "", bars=True),
    "peers-idle": Plot("An idle worker, one job an hour ahead", "Redis commands a second", "", bars=True),
}


@dataclass(frozen=True)
class Style:
    """How a label is drawn, wherever it appears: each differs from the others in more than its colour."""

    color: str
    dash: Any = "-"
    marker: str = "o"


# Okabe and Ito's colours, which those who see less colour can tell apart, without the yellow; one of Tol's; a grey.
BLUE, VERMILLION, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, WINE, GREY = "#E69F00", "#56B4E9", "#000000", "#882255", "#777777"

#: Stands first in every plot.
OURS = "celery_delayq"

STYLES = {
    OURS: Style(BLUE),
    "stock Celery": Style(VERMILLION, "--", "s"),
    "stock Celery, sent when due": Style(BLACK, ":", "^"),
    "celery-redis-plus": Style(GREEN, "-.", "D"),
    "RQ": Style(PINK, (0, (5, 1)), "v"),
    "Dramatiq": Style(ORANGE, (0, (3, 1, 1, 1)), "P"),
    "Huey": Style(SKY, (0, (1, 1)), "X"),
    "arq": Style(GREY, (0, (7, 2)), "<"),
    "BullMQ": Style(WINE, (0, (3, 1, 1, 1, 1, 1)), ">"),
    "put": Style(GREEN, "-", "o"),
    "dispatch of 1,000": Style(VERMILLION, "--", "s"),
    "get": Style(SKY, "-.", "^"),
    "cancel": Style(PINK, ":", "D"),
    "page of 100": Style(BLACK, (0, (5, 1)), "v"),
}
#: For labels that are not known, in their order.
OTHERS = (Style(GREY, "-", "o"), Style(ORANGE, "--", "s"), Style(WINE, "-.", "^"), Style(BLACK, ":", "D"))

#: Lines with more points than this are drawn without marking them.
MARKED = 20

#: Of matplotlib. Text stays text; a white ground, so that a dark page does not swallow the axes.
DRAWN = {
    "svg.hashsalt": "celery_delayq",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "figure.facecolor": "white",
    "figure.figsize": (9.0, 4.5),
    "lines.linewidth": 2.0,
}


def digest(lines: Iterable[Series]) -> str:
    """A short text that other points, or other labels, would change."""
    return hashlib.sha256(json.dumps([line.as_json() for line in lines]).encode()).hexdigest()[:16]


def shows(svg: str, lines: Iterable[Series]) -> bool:
    """Whether *svg*, made by :func:`draw`, was made of these lines."""
    return _mark(lines) in svg


def _mark(lines: Iterable[Series]) -> str:
    return f"<!-- points {digest(lines)} -->"


def draw(plot: Plot, lines: Sequence[Series]) -> str:
    """An SVG of *lines*.

    Raises:
        ImportError: matplotlib is not here; the extra ``bench`` has it.
    """
    import matplotlib as mpl  # noqa: PLC0415  # see above
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context(DRAWN):
        figure = Figure(layout="constrained")
        axes = figure.add_subplot(title=plot.title, xlabel=plot.x, ylabel=plot.y)
        ordered = sorted(lines, key=lambda line: line.label != OURS)
        unknown = iter(OTHERS * len(ordered))
        styles = [STYLES.get(line.label) or next(unknown) for line in ordered]
        if plot.bars:
            _bars(axes, ordered, styles)
        else:
            _lines(axes, plot, ordered, styles)
            figure.legend(loc="outside right upper", frameon=False, handlelength=3.5)
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None, "Title": plot.title})
    svg = "\n".join(line.rstrip() for line in file.getvalue().splitlines())
    return svg.replace("</svg>", f"{_mark(lines)}\n</svg>") + "\n"


def _lines(axes: Any, plot: Plot, lines: Sequence[Series], styles: Sequence[Style]) -> None:
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    for line, style in zip(lines, styles, strict=True):
        marker = style.marker if len(line.x) <= MARKED else ""
        # Not clipped, so that a line at the very edge is seen in its whole width.
        axes.plot(
            line.x, line.y, label=line.label, color=style.color, linestyle=style.dash, marker=marker, clip_on=False
        )
    axes.set_xscale(plot.x_scale)
    axes.set_yscale(plot.y_scale)
    for axis, scale in ((axes.xaxis, plot.x_scale), (axes.yaxis, plot.y_scale)):
        if scale == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(_tick)
    if plot.y_scale == "linear":
        axes.set_ylim(0, 1.06 * max((y for line in lines for y in line.y), default=1) or 1)
    if plot.x_points:
        axes.set_xticks(sorted({x for line in lines for x in line.x}))
    axes.minorticks_off()


def _bars(axes: Any, lines: Sequence[Series], styles: Sequence[Style]) -> None:
    for place, (line, style) in enumerate(zip(lines, styles, strict=True)):
        typical = median(line.y)
        axes.barh(place, typical, color=style.color, height=0.6)
        axes.hlines(place, min(line.y), max(line.y), color=BLACK, linewidth=1.5)
        axes.annotate(_tick(typical), (max(line.y), place), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(lines)), [line.label for line in lines])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(_tick)


def _tick(value: float, _position: int | None = None) -> str:
    """A number as people write it: 0.5, 20, 3,000,000."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
