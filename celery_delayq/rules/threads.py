"""Threads for what takes long, and for whose end nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread


class Threads:
    """So many threads, which start when they are first needed.

    Not an executor of the standard library: at its end a process waits for those, a fetch's whole timeout.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._started = 0
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()

    def do(self, work: Callable[[], object]) -> None:
        """Have one of them call *work*, which raises nothing. Called by one thread only."""
        self._work.put(work)
        if self._started < self._count:
            self._started += 1
            Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()

    def stop(self) -> None:
        """Do nothing more; what is under way ends by itself."""
        while not self._work.empty():
            self._work.get()
        for _ in range(self._started):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
