"""What the commands write: tables and bars for people, a JSON object a line for machines.

What comes out of Redis may be anything. Nothing of it reaches a terminal as a control character.
"""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice
from types import TracebackType
from typing import Any

import click

#: Rows by which a table finds its widths; what comes behind them has to fit.
SAMPLE = 100

#: Lines that are written at once.
CHUNK = 100

#: Columns of a table on a terminal: none is wider; none is narrowed below; for one that is never narrowed no more room
#: is made.
WIDEST, NARROWEST, USUAL = 200, 8, 40

#: The exit code after Ctrl-C: 128 + SIGINT.
STOPPED = 130


def safe(text: str) -> str:
    """*text* with whatever does not print written as Python writes it: no escape sequence, line break or change of
    direction gets through.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def columns_of(text: str) -> int:
    """How many columns of a terminal printable *text* takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def cut(text: str, width: int) -> str:
    """*text*, with an ellipsis for what does not fit into *width* columns."""
    if columns_of(text) <= width:
        return text
    kept, used = [], 1
    for char in text:
        used += columns_of(char)
        if used > width:
            break
        kept.append(char)
    return "".join(kept) + "…"


def write(lines: Iterable[str]) -> None:
    """Write *lines*, many at once, in whatever encoding the output has."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    waiting = iter(lines)
    while chunk := list(islice(waiting, CHUNK)):
        click.echo("\n".join(chunk).encode(encoding, "backslashreplace").decode(encoding))


def is_terminal(stream: Any) -> bool:
    """Whether a person may be looking."""
    return bool(getattr(stream, "isatty", bool)())


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        right: whether its cells stand at the right, as numbers do.
        narrows: whether it may be cut to make the table fit the terminal. One that may not is wrapped by it.
    """

    title: str
    right: bool = False
    narrows: bool = False


class Table:
    """Rows in columns, written as they come: widths are those of the first rows.

    On a terminal what is too long is cut; elsewhere nothing is.
    """

    def __init__(self, *columns: Column) -> None:
        self._columns = columns
        self._terminal = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None

    def lines(self, rows: Iterable[Sequence[str]]) -> Iterator[str]:
        """The lines: none if there is no row."""
        waiting = (tuple(map(safe, row)) for row in rows)
        sample = list(islice(waiting, SAMPLE))
        if not sample:
            return
        titles = tuple(column.title for column in self._columns)
        widths = self._fitted([max(map(columns_of, cells)) for cells in zip(titles, *sample, strict=True)])
        head = self._line(titles, widths)
        yield click.style(head, bold=True) if self._terminal else head
        for row in chain(sample, waiting):
            yield self._line(row, widths)

    def _fitted(self, widths: list[int]) -> list[int]:
        if self._terminal is None:
            return widths
        room = self._terminal - 2 * (len(widths) - 1)
        widths = [min(width, WIDEST) for width in widths]
        while (
            sum(
                width if column.narrows else min(width, USUAL)
                for width, column in zip(widths, self._columns, strict=True)
            )
            > room
        ):
            wide = max(
                (number for number, column in enumerate(self._columns) if column.narrows), key=widths.__getitem__
            )
            if widths[wide] <= NARROWEST:
                break
            widths[wide] -= 1
        return widths

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        line = []
        for cell, width, column in zip(cells, widths, self._columns, strict=True):
            text = cell if self._terminal is None else cut(cell, width)
            space = " " * (width - columns_of(text))
            line.append(space + text if column.right else text + space)
        return "  ".join(line).rstrip()


def as_json(fields: Mapping[str, Any]) -> str:
    """One object on one line: times in ISO 8601, lengths of time in seconds, ASCII only."""
    return json.dumps(fields, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


class Stopped(click.ClickException):
    """Ctrl-C in the middle of long work."""

    exit_code = STOPPED

    def show(self, file: Any = None) -> None:
        """Say it; it is no error."""
        click.echo(self.format_message(), err=True, file=file)


class Bar:
    """A progress bar for long work, on a terminal only; and a last word if it is stopped.

    Args:
        label: what is done.
        stopped: what Ctrl-C leaves behind, with ``{done}`` and ``{total}``.
    """

    def __init__(self, label: str, stopped: str) -> None:
        self._label, self._stopped = label, stopped
        self._done, self._total = 0, 0
        self._bar: Any = None

    def progress(self, done: int, total: int) -> None:
        """Show how far it is; the *progress* of :meth:`DelayQ.cancel_where` and others."""
        before, self._done, self._total = self._done, done, total
        if self._bar is None and is_terminal(sys.stderr):
            self._bar = click.progressbar(length=total, label=self._label, file=sys.stderr, show_pos=True)
            self._bar.__enter__()
        if self._bar is not None:
            self._bar.length = total
            self._bar.update(done - before)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            done, total = f"{self._done:,}", f"{self._total:,}"
            raise Stopped(self._stopped.format(done=done, total=total)) from None
