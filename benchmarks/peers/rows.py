"""What was measured of ours and of one other, as rows and lines of a plot that explain themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.report import Row, Series, Spread, percentile

from .counts import Counts
from .deployment import PAYLOAD_BYTES
from .environment import Runtime
from .ours import OURS
from .system import System
from .turns import AHEAD, RATE, Turn

#: How early (ms) a job may seem that was told in whole milliseconds.
ROUNDING_MS = 1.0

#: Of which shares (%) of the jobs a plot tells the lateness.
SHARES = (*(half / 2 for half in range(1, 200)), 99.9)


def about(system: System, runtime: Runtime) -> list[Row]:
    """What it is, how it is set, and what it cannot do."""
    rows = [_told("is", system, runtime.versions)]
    rows += [_told("is set so", system, setting) for setting in system.settings]
    return rows + [_told("cannot", system, lack) for lack in system.cannot]


def skipped(system: System, reason: object) -> Row:
    """For one that cannot be had here."""
    return _told("SKIPPED", system, str(reason))


def failed(system: System, reason: object) -> Row:
    """For one that should have been measured: the hole in the table must not go unseen."""
    return Row("peers", "FAILED", "", f"{system.name}: {reason}", met=False)


def timed(peer: System, ours: Sequence[Turn], theirs: Sequence[Turn], burst: int) -> list[Row]:
    """Lateness and burst, from turns that alternated."""
    earliest = [min(it.late[0] for it in side) for side in (ours, theirs)]
    early = -earliest[1] > ROUNDING_MS
    rows = []
    for percent in (50, 99):
        figure = f"p{percent} of start less due time (ms), {RATE} jobs a second, each put {AHEAD:g} s ahead"
        sides = [[percentile(it.late, percent) for it in side] for side in (ours, theirs)]
        # Who starts half of its jobs before their time has no lateness to divide by.
        rows.append(_less_is_better(peer, figure, *sides, remark="; but early" if early else "", divide=not early))
    rows.append(Row("peers", "the earliest start of all (ms): below zero is early", *_pair(peer, *earliest)))
    figure = f"ms until {burst:,} jobs due at one instant are ready"
    ready = [[it.burst.ready * 1000 for it in side if it.burst.ready is not None] for side in (ours, theirs)]
    if ready[1]:
        rows.append(_less_is_better(peer, figure, *ready))
    else:
        rows.append(Row("peers", figure, str(Spread.of(ready[0])), f"{peer.name}: cannot be told from outside"))
    figure = f"s until {burst:,} jobs due at one instant have all started"
    sides = [[it.burst.run for it in side] for side in (ours, theirs)]
    row = _less_is_better(peer, figure, *sides)
    left = [max(it.burst.missing for it in side) for side in (ours, theirs)]
    return [*rows, replace(row, ours=row.ours + _left(left[0]), compared=row.compared + _left(left[1]))]


def counted(peer: System, ours: Counts, theirs: Counts, waiting: int, jobs: int, patience: float) -> list[Row]:
    """Memory, idle commands, and what a SIGKILL does, of one time."""
    memory = f"bytes of Redis memory a waiting job with {PAYLOAD_BYTES} bytes of arguments, of {waiting:,}"
    idle = "Redis commands a second by one idle worker, one job waits"
    kill = f"SIGKILL of the worker amid {jobs} jobs: lost (not run in {patience:.0f} s); run twice; until the last"
    return [
        _less_is_better(peer, memory, [ours.memory], [theirs.memory]),
        _less_is_better(peer, idle, [ours.idle], [theirs.idle]),
        Row("peers", kill, str(ours.survival), f"{peer.name} {theirs.survival}"),
    ]


def timed_lines(system: System, turns: Sequence[Turn]) -> list[Series]:
    """How many jobs of all streams had started, over the time since they were due; and the bursts."""
    late = sorted(late for it in turns for late in it.late)
    points = tuple(late[int(len(late) * share / 100)] for share in SHARES)
    return [
        Series("peers-lateness", system.name, points, SHARES),
        _bar("peers-burst", system, [it.burst.run for it in turns]),
    ]


def counted_lines(system: System, counts: Counts) -> list[Series]:
    """Memory and idle commands."""
    return [_bar("peers-memory", system, [counts.memory]), _bar("peers-idle", system, [counts.idle])]


def _bar(plot: str, system: System, values: Sequence[float]) -> Series:
    return Series(plot, system.name, tuple(map(float, range(len(values)))), tuple(values))


def _told(figure: str, system: System, text: str) -> Row:
    return Row("peers", figure, text, "") if system is OURS else Row("peers", figure, "", f"{system.name}: {text}")


def _left(missing: int) -> str:
    return f"; up to {missing:,} had not even then" if missing else ""


def _pair(peer: System, ours: float, theirs: float) -> tuple[str, str]:
    return f"{ours:.2f}", f"{peer.name} {theirs:.2f}"


def _less_is_better(
    peer: System, figure: str, ours: list[float], theirs: list[float], *, remark: str = "", divide: bool = True
) -> Row:
    ratio = Spread.of(a / b for a, b in zip(ours, theirs, strict=True)) if divide and min(theirs) > 0 else None
    better = " (better)" if ratio is not None and ratio.least > 1 else ""
    return Row("peers", figure, str(Spread.of(ours)), f"{peer.name} {Spread.of(theirs)}{better}{remark}", ratio)
