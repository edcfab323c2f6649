"""The group ``celery-delayq rules``: its commands and their options. What they do is imported when one is called, since
it needs what the extra ``rules`` brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click
import redis

from celery_delayq.errors import DelayQError, ImproperlyConfigured

#: What the extra brings.
EXTRA = {"hjson", "httpcore", "httpx", "pydantic"}

#: Of the rows of a table, if nobody says.
ROWS = 50


class _WrongUse(click.ClickException):
    exit_code = 2


class RulesGroup(click.Group):
    """Commands that tell what goes wrong in one line, and wrong files whole."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and translate what it raises."""
        with _told():
            return super().invoke(ctx)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        if error.name not in EXTRA and "celery-delayq[rules]" not in str(error):
            raise
        raise click.ClickException(
            f'rules need what is not installed: pip install "celery-delayq[rules]" ({error})'
        ) from None
    except ImproperlyConfigured as error:
        raise _WrongUse(_one_line(error)) from None
    except redis.RedisError as error:
        raise click.ClickException(f"Redis: {_one_line(error)}") from None
    except DelayQError as error:
        raise click.ClickException(_one_line(error)) from None


def _one_line(error: object) -> str:
    text = " ".join(str(error).split())
    return text if text.isprintable() else repr(text)


def _carry_out(name: str, *args: Any, **options: Any) -> None:
    """Call ``run`` of that module of this package, and exit with what it returns."""
    status = import_module(f"{__name__}.{name}").run(*args, **options)
    raise click.exceptions.Exit(status)


files_argument = click.argument("files", metavar="FILE...", nargs=-1, required=True)
file_argument = click.argument("file", metavar="FILE")
json_option = click.option("--json", "as_objects", is_flag=True, help="One JSON object a line.")


@click.group(cls=RulesGroup)
def rules() -> None:
    """Turn events into tasks, by rules in a file: JSON, Hjson or YAML.

    docs/rules.md has all that can be in such a file. Resc's files are understood as they are.
    """


@rules.command()
@files_argument
@json_option
def check(files: tuple[str, ...], as_objects: bool) -> None:
    """Say whether files can be used: exit with 0, or with 2 and all that is wrong in all of them."""
    _carry_out("checking", files, as_objects=as_objects)


@rules.command()
@file_argument
@click.option(
    "--event", "-e", "events", metavar="TEXT", multiple=True, required=True, help="May be given several times."
)
@click.option("--watcher", metavar="QUEUE", help="Ask only the watchers of this input_queue.")
@click.option("--fetch", "fetches", is_flag=True, help="Really send the requests of rules that fetch.")
@json_option
def test(file: str, events: tuple[str, ...], watcher: str | None, fetches: bool, as_objects: bool) -> None:
    """Show what would be made of an event, and touch nothing.

    Which rules match, with which variables, and what would be pushed or sent. A request is only shown, and what depends
    on its answer is left as ${child.x}, unless --fetch is given. With `source: task` an event is a line of JSON, as
    {"task": "proj.add", "state": "success", "result": 3}; with `source: stream` it is the field that rules look at, or
    a JSON object with all fields.

    Exits with 0; with 1 if no rule matches, or one fails; with 2 if the file cannot be used.
    """
    _carry_out("testing", file, events, watcher=watcher, fetches=fetches, as_objects=as_objects)


@rules.command()
@file_argument
@click.option("--watcher", metavar="QUEUE", help="Only of the watchers of this input_queue.")
@click.option("--revive", is_flag=True, help="Put them back, to be tried anew.")
@click.option(
    "--limit", type=click.IntRange(min=0), metavar="N", help="So many at most; 0 for all. Default: 50 rows, else all."
)
@json_option
def dead(file: str, watcher: str | None, revive: bool, limit: int | None, as_objects: bool) -> None:
    """List the events that could not be handled, the longest dead first, or revive them.

    Exits with 0; with 1 if there is none to revive, or Redis is away; with 2 if the file cannot be used.
    """
    _carry_out("reviving", file, watcher=watcher, revives=revive, limit=limit, as_objects=as_objects)


@rules.command()
@files_argument
@click.option("-A", "--app", "app_name", metavar="APP", help="The Celery app, for rules that send Celery tasks.")
@click.option("-v", "--verbose", count=True, help="Tell what comes and goes; -vv: which rules match, too.")
@click.option("-q", "--quiet", is_flag=True, help="Tell errors only, and no total.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    help="The same, by its name. The default is warning.",
)
@click.option("--metrics-port", type=click.IntRange(0, 65_535), metavar="PORT", help="Answer /metrics there; 0: any.")
@click.option(
    "--metrics-host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="0.0.0.0 or :: for all."
)
def run(
    files: tuple[str, ...],
    app_name: str | None,
    verbose: int,
    quiet: bool,
    log_level: str | None,
    metrics_port: int | None,
    metrics_host: str,
) -> None:
    """Watch, and apply the rules, until Ctrl-C or SIGTERM.

    Any number of these may run on the same files. Prints how many events that were. /metrics is for Prometheus, and
    needs the extra prometheus.

    Exits with 0; with 1 if it cannot go on; with 2 if a file cannot be used.
    """
    level = log_level or ("error" if quiet else ["warning", "info", "debug"][min(verbose, 2)])
    metrics = None if metrics_port is None else (metrics_host, metrics_port)
    _carry_out("running", files, app_name=app_name, level=level, quiet=quiet, metrics=metrics)
