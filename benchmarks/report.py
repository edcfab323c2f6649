"""Results as rows, and rows as a Markdown table or JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: The head of a table of rows, and the words in it for a target that is met, is not, or is none.
HEAD = ("benchmark", "measured", "ours", "compared with", "ratio: median (min to max)", "target", "verdict")
VERDICTS = {True: "met", False: "NOT MET", None: ""}


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

    def cells(self) -> tuple[str, ...]:
        """As a line of the table, under :data:`HEAD`."""
        verdict = VERDICTS[self.met]
        return self.benchmark, self.figure, self.ours, self.compared, str(self.ratio or ""), self.target, verdict

    def as_json(self) -> dict[str, object]:
        ratio = self.ratio and {name: _short(value) for name, value in asdict(self.ratio).items()}
        return {**asdict(self), "ratio": ratio}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Row:
        ratio = found["ratio"]
        return cls(**{**found, "ratio": None if ratio is None else Spread(**ratio)})


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
        x, y = ([_short(value) for value in values] for values in (self.x, self.y))
        return {"plot": self.plot, "label": self.label, "x": x, "y": y}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Series:
        return cls(found["plot"], found["label"], tuple(found["x"]), tuple(found["y"]))


#: What a benchmark returns.
Results = Sequence[Row | Series]


def _short(value: float) -> float:
    """To six digits, which are more than anybody can measure."""
    return float(f"{value:.6g}")


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which *percent* of all *values* lie."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def cumulative(values: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The line of a distribution, from 0.5 % to 99.9 %: *values*, and the share (%) that lies below each."""
    cuts = statistics.quantiles(values, n=1000, method="inclusive")
    shares = (5, *range(10, 1000, 10), 995, 999)
    return tuple(cuts[share - 1] for share in shares), tuple(share / 10 for share in shares)


def table(rows: Iterable[Row]) -> str:
    """*rows* as a Markdown table that can also be read as it is."""
    return markdown([HEAD, *(row.cells() for row in rows)], padded=True)


def markdown(lines: Sequence[Sequence[str]], *, padded: bool = False) -> str:
    """A Markdown table, its head first.

    Args:
        padded: with columns as wide as they must be, for who reads it as it is.
    """
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(map(len, column)) if padded else 0 for column in zip(*escaped, strict=True)]
    head, *body = (
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in escaped
    )
    rule = "| " + " | ".join("-" * max(3, width) for width in widths) + " |"
    return "\n".join([head, rule, *body])
