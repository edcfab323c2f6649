"""The command ``celery-delayq``: what needs no app of the user's."""

from __future__ import annotations

import os
import sys

import click

from .rules_command import rules


@click.group()
@click.version_option(package_name="celery-delayq")
def main() -> None:
    """Delayed Celery tasks that wait in Redis until they are due."""


main.add_command(rules)


@main.command()
@click.option("--tasks", type=click.IntRange(1, 100_000), default=300, show_default=True, help="How many to schedule.")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=10.0,
    show_default=True,
    help="How long the longest of them waits.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, and nothing else.")
def demo(tasks: int, seconds: float, as_json: bool) -> None:
    """Schedule tasks on a Redis and a worker that live only for this, and watch them run on time.

    Exits with 0 only if each task ran exactly as often as it should, and none before it was due.
    """
    from .demo import show  # noqa: PLC0415  # brings a Celery app of its own: only for this command

    sys.exit(show.main(tasks, seconds, as_json=as_json))


@main.command("dispatch-zset", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-u",
    "--redis-url",
    default="redis://localhost:6379",
    show_default=True,
    metavar="URL",
    help="The Redis: redis://, rediss:// (TLS) or unix://.",
)
@click.option(
    "-d",
    "--delayed-task-zset-key",
    "delayed",
    default="delayedtaskset",
    show_default=True,
    metavar="KEY",
    help="Sorted set of what is delayed; the scores are due times since 1970.",
)
@click.option(
    "-r",
    "--ready-task-list-key",
    "ready",
    default="readytasklist",
    show_default=True,
    metavar="KEY",
    help="List whose tail gets what is due.",
)
@click.option(
    "-n",
    "--batch-size",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Move so many in one call at most (never more than 10000).",
)
@click.option(
    "--unit",
    type=click.Choice(["s", "ms", "us"]),
    default="s",
    show_default=True,
    help="Of the scores; they may have fractions.",
)
@click.option("-v", "--verbose", is_flag=True, help="Print a table: a row for each call that moved something.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows, and the total, as JSON objects, one a line.")
def dispatch_zset(
    redis_url: str, delayed: str, ready: str, batch_size: int, unit: str, verbose: bool, as_json: bool
) -> None:
    """Move due members of a bare sorted set to a list.

    Any client adds with ZADD and consumes with BLPOP. Any number of these programs may run on the same keys; each waits
    for a Redis that is away. Ctrl-C ends it and prints a total.
    """
    from .zset_program import run  # noqa: PLC0415  # as above

    if delayed == ready:
        raise click.UsageError("-d and -r name one key: what is delayed cannot be where it goes when it is due")
    # Keys are bytes; what came in another encoding than the terminal's goes out as it came.
    keys = os.fsencode(delayed), os.fsencode(ready)
    sys.exit(run(redis_url, *keys, batch_size=batch_size, unit=unit, verbose=verbose, as_json=as_json))
