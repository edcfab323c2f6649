"""The demo on a terminal. The only module that needs rich."""

from __future__ import annotations

from contextlib import AbstractContextManager

from rich.live import Live
from rich.table import Table
from rich.text import Text

from .figures import Progress, percentile

#: Cells of a bar.
BAR_WIDTH = 48


class LiveView:
    """A few lines that are drawn again and again in the same place."""

    def __init__(self) -> None:
        self._live = Live(auto_refresh=False)

    def open(self) -> AbstractContextManager[object]:
        return self._live

    def say(self, text: str) -> None:
        self._live.update(f"[dim]{text}[/]", refresh=True)

    def show(self, progress: Progress) -> None:
        self._live.update(_drawn(progress), refresh=True)


def _drawn(progress: Progress) -> Table:
    counts = {
        "waiting in Redis": (progress.waiting, "yellow"),
        "handed over": (progress.ready, "magenta"),
        "run": (progress.ran, "green"),
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right", width=6)
    table.add_column()
    for name, (count, colour) in counts.items():
        table.add_row(name, str(count), Text("█" * _cells(count, progress.expected), style=colour))
    p50, largest = percentile(progress.latenesses_ms, 0.5), percentile(progress.latenesses_ms, 1)
    late = "nothing was due yet" if p50 is None else f"p50 {p50:.1f} ms, max {largest:.1f} ms"
    table.add_row("lateness so far", "", late)
    table.add_row("time", f"{progress.seconds:.1f} s")
    return table


def _cells(count: int, whole: int) -> int:
    """Cells for *count* of *whole*; at least one for anything above nothing."""
    return min(BAR_WIDTH, -(-count * BAR_WIDTH // max(whole, 1)))
