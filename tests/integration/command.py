"""``celery delayq`` in this process: what it writes, and how it exits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_delayq.command import delayq


@dataclass(frozen=True)
class Said:
    """What a command has said.

    Attributes:
        code: its exit status.
        out, err: what it wrote to the standard output, and to the standard error output.
    """

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects, one from each line."""
        return [json.loads(line) for line in self.lines]


Run = Callable[..., Said]


def run(app: Celery | None, *arguments: str, typed: str | bytes | None = None) -> Said:
    """Run ``celery -A app delayq`` with these arguments; *typed* is its standard input.

    Whatever is raised beyond click's own errors would be a traceback, and is one here.
    """
    context = CLIContext(app, no_color=True, workdir=None)
    result = CliRunner().invoke(
        delayq, arguments, input=typed, obj=context, prog_name="celery delayq", catch_exceptions=False
    )
    return Said(result.exit_code, result.stdout, result.stderr)
