"""``celery-delayq demo``: a Redis and a worker of its own, delayed tasks, and how late each of them was."""

from __future__ import annotations


class DemoError(Exception):
    """The demo could not be shown to its end; the message says why and what to do."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
