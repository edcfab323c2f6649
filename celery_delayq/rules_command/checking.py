"""``celery-delayq rules check``; and how the other commands read files."""

from __future__ import annotations

from collections.abc import Sequence

import click

from celery_delayq.command.output import as_json, safe, write
from celery_delayq.rules import InvalidRules, Rules, load


def run(files: Sequence[str], *, as_objects: bool) -> int:
    """Check all *files*; 0 if they can be used, else 2."""
    faulty = 0
    for file in files:
        try:
            rules = load(file)
        except InvalidRules as error:
            faulty += 1
            if as_objects:
                faults = [{"place": fault.place, "reason": fault.reason} for fault in error.faults]
                write([as_json({"file": file, "faults": faults})])
            _tell(error)
            continue
        numbers = {"watchers": len(rules.watchers), "rules": sum(len(watcher.rules) for watcher in rules.watchers)}
        if as_objects:
            write([as_json({"file": file, **numbers, "faults": []})])
        else:
            write([f"{safe(file)}: {', '.join(_counted(number, what) for what, number in numbers.items())}"])
    return 2 if faulty else 0


def loaded(files: Sequence[str]) -> list[Rules]:
    """The rules in all of them; or the end of the program, with all that is wrong on stderr.

    Raises:
        click.exceptions.Exit: 2.
    """
    found, faulty = [], False
    for file in files:
        try:
            found.append(load(file))
        except InvalidRules as error:
            faulty = True
            _tell(error)
    if faulty:
        raise click.exceptions.Exit(2)
    return found


def _tell(error: InvalidRules) -> None:
    for fault in error.faults:
        click.echo(safe(f"Error: {fault}"), err=True)


def _counted(number: int, what: str) -> str:
    return f"{number} {what if number != 1 else what[:-1]}"
