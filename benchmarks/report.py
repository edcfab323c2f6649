"""Results as rows, and rows as a Markdown table or JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Spread:
    """Values of one figure from several rounds: their median, and how far they lie apart."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.greatest:.2f})"


@dataclass(frozen=True)
class Row:
    """One measured thing.

    Attributes:
        benchmark: its module.
        figure: what was measured, with its unit.
        ours: the value with celery_delayq.
        compared: the value that it is compared with, and what that is.
        ratio: ours to the other, over the rounds; None where there is nothing to divide.
        target: what it should be; "" for a row that only informs.
        met: whether it is; None where there is no target.
    """

    benchmark: str
    figure: str
    ours: str
    compared: str
    ratio: Spread | None = None
    target: str = ""
    met: bool | None = None

    def as_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Series:
    """One line of a plot.

    Attributes:
        plot: which plot it belongs to; a key of :data:`benchmarks.plots.PLOTS`.
        label: what the line stands for.
        x, y: its points.
    """

    plot: str
    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    def as_json(self) -> dict[str, object]:
        return asdict(self)


#: What a benchmark returns.
Results = Sequence[Row | Series]


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which *percent* of all *values* lie."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def table(rows: Iterable[Row]) -> str:
    """*rows* as a Markdown table that can also be read as it is."""
    verdicts = {True: "met", False: "NOT MET", None: ""}
    lines = [("benchmark", "measured", "ours", "compared with", "ratio: median (min to max)", "target", "verdict")]
    lines += [
        (row.benchmark, row.figure, row.ours, row.compared, str(row.ratio or ""), row.target, verdicts[row.met])
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *body = (
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([head, rule, *body])
