"""The coming load, drawn: for each queue a row of bars, one for each step of time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from .output import cut, safe
from .when import tell_length

#: Lines that the highest bar takes.
HEIGHT = 2

#: A bar's top, from nothing to full; and what stands where a bar has no height. Each for a terminal that has no blocks,
#: too.
BLOCKS, NOTHING = " ▁▂▃▄▅▆▇█", "·"
PLAIN_BLOCKS, PLAIN_NOTHING = " .:|", "_"

#: No bar is wider.
WIDEST = 2

Steps = Sequence[tuple[datetime, Mapping[str, int]]]


@dataclass(frozen=True)
class Chart:
    """What one chart shows: its title, its beginning and end, and how long a bar stands for."""

    title: str
    start: datetime
    end: datetime
    step: timedelta


def chart_lines(chart: Chart, steps: Steps, width: int) -> Iterator[str]:
    """The lines of a chart that is at most *width* columns wide; all bars in one scale."""
    totals: dict[str, int] = {}
    for _, loads in steps:
        for queue, count in loads.items():
            totals[queue] = totals.get(queue, 0) + count
    title = chart.title or f"by {tell_length(chart.step.total_seconds())}"
    span = f"{_clock(chart.start)} to {_clock(chart.end)} UTC"
    yield f"{title}: {span}{'' if totals else ': nothing'}"
    if not totals:
        return
    most = max(count for _, loads in steps for count in loads.values())
    room = max(width - 2, 10)
    for first in range(0, len(steps), room):
        part = steps[first : first + room]
        broad = max(1, min(WIDEST, room // len(part)))
        for queue in sorted(totals):
            counts = [loads.get(queue, 0) for _, loads in part]
            if first == 0:
                yield cut(cut(safe(queue), max(width - 48, 12)) + _summary(totals[queue], queue, steps, chart), width)
            elif any(counts):
                yield cut(safe(queue), width)
            if any(counts):
                yield from _bars(counts, most, broad)
        yield _axis([at for at, _ in part], broad, room, chart)


def _summary(total: int, queue: str, steps: Steps, chart: Chart) -> str:
    most, begin = max((loads.get(queue, 0), -number) for number, (_, loads) in enumerate(steps))
    at = _clock(steps[-begin][0], chart.end - chart.start > timedelta(days=1))
    return f": {total:,} {'task' if total == 1 else 'tasks'}, at most {most:,} from {at} on"


def _bars(counts: Sequence[int], most: int, broad: int) -> Iterator[str]:
    blocks, nothing = (BLOCKS, NOTHING) if _has_blocks() else (PLAIN_BLOCKS, PLAIN_NOTHING)
    full = len(blocks) - 1
    heights = [-(-count * HEIGHT * full // most) for count in counts]  # rounded up: what is there is seen
    for floor in range((HEIGHT - 1) * full, -1, -full):
        line = (blocks[min(max(height - floor, 0), full)] for height in heights)
        if floor == 0:
            line = (char if height else nothing for char, height in zip(line, heights, strict=True))
        drawn = ("  " + "".join(char * broad for char in line)).rstrip()
        if drawn:
            yield drawn


def _axis(times: Sequence[datetime], broad: int, room: int, chart: Chart) -> str:
    with_date = chart.end - chart.start > timedelta(days=1)
    every = -(-(len(_clock(times[0], with_date)) + 2) // broad)
    every = next((handy for handy in (5, 6, 10, 12, 15, 20, 30) if handy >= every), every)
    line = ""
    for number in range(0, len(times), every):
        label = _clock(times[number], with_date)
        if number * broad + len(label) <= room:
            line = line.ljust(number * broad) + label
    return "  " + line


def _clock(moment: datetime, with_date: bool = True) -> str:
    return moment.strftime("%Y-%m-%d %H:%M" if with_date else "%H:%M")


def _has_blocks() -> bool:
    try:
        (BLOCKS + NOTHING).encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
