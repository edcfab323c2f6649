"""What can be seen while the demo runs: something on a terminal, nothing elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TextIO

from . import DemoError
from .figures import Progress


class View(Protocol):
    """Shows the demo's progress for as long as its block lasts."""

    def open(self) -> AbstractContextManager[object]:
        """Begin; the block's end is the view's."""

    def say(self, text: str) -> None:
        """Show what goes on before anything can be counted."""

    def show(self, progress: Progress) -> None:
        """Show one moment."""


class NoView:
    """Shows nothing: for ``--json``, and where the output is no terminal."""

    def open(self) -> AbstractContextManager[object]:
        return nullcontext()

    def say(self, text: str) -> None:
        """Stay silent."""

    def show(self, progress: Progress) -> None:
        """Stay silent."""


def make_view(output: TextIO, *, quiet: bool) -> View:
    """The view that suits *output*.

    Raises:
        DemoError: it is a terminal, and rich is not installed.
    """
    if quiet or not output.isatty():
        return NoView()
    try:
        from .live import LiveView  # noqa: PLC0415  # rich is an optional extra
    except ModuleNotFoundError:
        raise DemoError(
            'the live view needs rich: pip install "celery-delayq[demo]", or use --json, which does without'
        ) from None
    return LiveView()
