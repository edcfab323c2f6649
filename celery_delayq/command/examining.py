"""``celery delayq doctor``: what can go wrong, told with what to do about it."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

import click
from celery.bin.base import CeleryOption

from celery_delayq.doctor import Finding, Level

from .group import command, delayq_of
from .output import as_json, is_terminal, safe, write
from .reading import json_option

COLOURS = {Level.OK: "green", Level.UNKNOWN: "cyan", Level.WARNING: "yellow", Level.BROKEN: "red"}

#: Columns before the text: the level, and the name of the check.
MARGIN = 9 + 13


@command("doctor")
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    cls=CeleryOption,
    help="Workers have so long to answer.",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, timeout: float, as_objects: bool) -> None:
    """Look at what can go wrong, and say what to do about it.

    At Redis, at the dispatchers and workers, and at what waits. Exits with 0 if all is well, with 1 if there are
    warnings, with 2 if something is broken.
    """
    found = delayq_of(ctx).doctor(timeout)
    write(map(as_json, map(asdict, found)) if as_objects else _told(found))
    raise click.exceptions.Exit(max(finding.level.exit_code for finding in found))


def _told(found: Sequence[Finding]) -> Iterator[str]:
    colour = is_terminal(sys.stdout)
    width = max(shutil.get_terminal_size().columns, 60) if colour else None
    for finding in found:
        level = f"{finding.level.value:9}"
        head = (click.style(level, COLOURS[finding.level]) if colour else level) + f"{finding.check:13}"
        fix = [f"fix: {finding.fix}"] if finding.fix else []
        for line in _wrapped([finding.text, *fix], width):
            yield head + line
            head = " " * MARGIN
    counts = Counter(finding.level for finding in found)
    yield ""
    yield ", ".join(f"{counts[level]} {level.value}" for level in Level if counts[level])


def _wrapped(texts: Iterable[str], width: int | None) -> Iterator[str]:
    for text in map(safe, texts):
        if width is None:
            yield text
        else:
            yield from textwrap.wrap(text, width - MARGIN, break_long_words=False, break_on_hyphens=False) or [""]
