"""Commands that write what waits into a file, and read it back."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, BinaryIO

import click
from celery.bin.base import CeleryOption

from celery_delayq.app import DelayQ
from celery_delayq.errors import ImportRefused
from celery_delayq.job import OnConflict
from celery_delayq.transfer import Imported, export_jobs, import_jobs

from .changing import tasks
from .filters import filter_of, filtered
from .group import WrongUse, command, delayq_of, one_line
from .output import Bar, as_json, is_terminal, safe, write
from .reading import json_option


@command("export")
@click.argument("path", metavar="[FILE]", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@filtered
@click.pass_context
def export(ctx: click.Context, path: str, where: dict[str, Any]) -> None:
    """Write what waits to FILE, or to the standard output: a JSON object for each task, on a line of its own.

    The messages are in it byte for byte, so that 'import' can put them back as they were. FILE is replaced when all is
    written. What is being handed over to a broker elsewhere, and dead letters, are not in it; it says how many.
    """
    app = delayq_of(ctx)
    total = app.count(where["queue"], start=where["start"], end=where["end"])
    count = 0
    with Bar("exporting", "stopped after {done} of {total} tasks") as bar, _written(path) as put:
        for lines in export_jobs(app, filter_of(where)):
            put(b"".join(lines))
            count += len(lines)
            bar.progress(count, max(total, count))
    click.echo(f"{tasks(count)} exported", err=True)
    _tell_of_others(app, where["queue"])


def _tell_of_others(app: DelayQ, queue: str | None) -> None:
    """What does not wait, and is in no export."""
    loads = app.stats(*([] if queue is None else [queue]))
    reserved, dead = (sum(getattr(load, state) for load in loads.values()) for state in ("reserved", "dead"))
    if reserved:
        click.echo(f"not in it: {tasks(reserved)} under a lease, being handed over or given back later", err=True)
    if dead:
        click.echo(
            f"not in it: {dead:,} dead {'letter' if dead == 1 else 'letters'}; 'dead retry' lets them wait", err=True
        )


class Behind:
    """Writes to a file in a thread of its own, one piece behind the caller: a slow disk then costs no time of his."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[int] | None = None

    def write(self, data: bytes) -> None:
        """Begin to write *data*; what became of the piece before is told now."""
        self.finish()
        self._last = self._thread.submit(self._file.write, data)

    def finish(self) -> None:
        """Wait for the last piece."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.finish()
            self._file.flush()


@contextmanager
def _written(path: str) -> Iterator[Callable[[bytes], object]]:
    """Writes to what takes the place of *path* when all went well; what is no regular file is written at once."""
    if path == "-":
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    target = os.path.realpath(path)
    special = os.path.exists(target) and not os.path.isfile(target)
    name = target if special else f"{target}.part"
    try:
        file = open(name, "wb")  # noqa: SIM115  # closed below, before it is moved
    except OSError as error:
        raise WrongUse(f"{safe(path)}: {error.strerror}") from None
    try:
        with file, Behind(file) as behind:
            yield behind.write
        if not special:
            os.replace(name, target)
    except BaseException:
        if not special:
            os.unlink(name)
        raise


@command("import")
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--on-conflict",
    type=click.Choice([choice.value for choice in OnConflict]),
    default=OnConflict.ERROR.value,
    show_default=True,
    cls=CeleryOption,
    help="If a task of the same id waits in its queue, but is due at another time or has another message: stop, keep "
    "it, or replace it.",
)
@json_option
@click.pass_context
def import_(ctx: click.Context, file: BinaryIO, on_conflict: str, as_objects: bool) -> None:
    """Put back what 'export' has written to FILE, or the standard input.

    What waits already as it is written there stays as it is: to import twice does no harm, and an import that was
    broken off can be begun anew. What is past is due at once.
    """
    app = delayq_of(ctx)
    if is_terminal(file) and is_terminal(sys.stdin):
        click.echo("reading from the terminal; Ctrl-D ends it", err=True)
    counted = _Counted(file)
    done = Imported()
    try:
        with Bar("importing", "stopped after {done} of {total} bytes; the same command goes on") as bar:

            def progress(so_far: Imported) -> None:
                nonlocal done
                done = so_far
                bar.progress(counted.read, max(counted.size, counted.read))

            done = import_jobs(app, counted, OnConflict(on_conflict), progress)
    except ImportRefused as error:
        hint = "; --on-conflict keep leaves it, --on-conflict replace overwrites it" if error.is_conflict else ""
        before = f"{tasks(done.written)} of the lines before were imported" if done.written else "nothing was imported"
        raise click.ClickException(f"{one_line(error)}{hint} ({before})") from None
    if as_objects:
        write([as_json(asdict(done))])
    else:
        unchanged = f", {done.unchanged:,} waited already" if done.unchanged else ""
        click.echo(f"{tasks(done.written)} imported{unchanged}")


class _Counted:
    """The lines of a file, and how many of its bytes were read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read = 0
        self.size = _size(file)

    def __iter__(self) -> Iterator[bytes]:
        for line in self._file:
            self.read += len(line)
            yield line


def _size(file: BinaryIO) -> int:
    """How many bytes a regular file has; 0 of anything else."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError, AttributeError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
