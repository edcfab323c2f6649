"""Where it must stand: the lines of the README's short table, and which rows of the benchmarks make them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .report import HEAD, Row, markdown


@dataclass(frozen=True)
class Chosen:
    """Which rows with a target are meant; ``*`` is anything, such as a count that is another one in a quick run."""

    benchmark: str
    figure: str
    compared: str = "*"

    def of(self, rows: Iterable[Row]) -> list[Row]:
        return [
            row
            for row in rows
            if row.target
            and row.benchmark == self.benchmark
            and fnmatchcase(row.figure, self.figure)
            and fnmatchcase(row.compared, self.compared)
        ]


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        of: what is to be met, for who looks for it here.
        chosen: the rows that are shown, in this order.
    """

    of: str
    chosen: tuple[Chosen, ...]

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Those among *rows* that make this line."""
        return [row for one in self.chosen for row in one.of(rows)]


TARGETS = (
    Target("rate of apply_async", (Chosen("publish", "apply_async(countdown=*"),)),
    Target("rate of apply_many", (Chosen("bulk", "apply_many of *", "native, one by one*"),)),
    Target(
        "lateness",
        tuple(
            Chosen("lateness", f"p{percent}, ms, {pool} pool, 100 tasks a second")
            for pool in ("threads", "prefork")
            for percent in (50, 99)
        ),
    ),
    Target("rate of a burst", (Chosen("burst", "jobs a second to the ready list*"),)),
    Target("memory of a worker", (Chosen("memory", "growth of a worker, MB*"),)),
    Target("memory of Redis", (Chosen("storage", "bytes of Redis memory for each of * waiting tasks"),)),
    Target("idle commands", (Chosen("fleet", "commands a second, 50 *, idle"),)),
    Target(
        "cost over waiting tasks",
        (
            Chosen("scaling", "put one, us by the caller's clock"),
            Chosen("scaling", "get one by its id, us by the caller's clock"),
            Chosen("scaling", "cancel one by its id, us by the caller's clock"),
        ),
    ),
)


def short_table(rows: Sequence[Row]) -> str:
    """The lines of all targets as a Markdown table; one that was not measured says so."""
    return markdown([HEAD, *(_line(target, target.rows(rows)) for target in TARGETS)])


def _line(target: Target, rows: Sequence[Row]) -> tuple[str, ...]:
    if not rows:
        return target.chosen[0].benchmark, f"{target.of}: not measured", "", "", "", "", ""
    return tuple(map(_cell, zip(*(row.cells() for row in rows), strict=True)))


def _cell(values: tuple[str, ...]) -> str:
    """One below the other; what is the same for all, once."""
    return values[0] if len(set(values)) == 1 else "<br>".join(values)
