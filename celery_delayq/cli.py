"""The command ``celery-delayq``: what needs no app of the user's."""

from __future__ import annotations

import sys

import click


@click.group()
@click.version_option(package_name="celery-delayq")
def main() -> None:
    """Delayed Celery tasks that wait in Redis until they are due."""


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
