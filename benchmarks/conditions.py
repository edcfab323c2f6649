"""Under which conditions a run takes place: the Redis server, the machine, and how much time there is."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from celery_delayq.embedded import RedisServer, servers


@dataclass(frozen=True)
class Conditions:
    """What every benchmark is given.

    Attributes:
        program: the Redis server to start.
        quick: take a small share of the time; the figures are then rough.
        environments: the folder that keeps what other systems need to run; None for one in the user's cache.
    """

    program: str
    quick: bool = False
    environments: Path | None = None

    def server(self) -> RedisServer:
        """A new server, not started."""
        return RedisServer(self.program)

    def __str__(self) -> str:
        redis = next(
            (".".join(map(str, found)) for found, program in servers().items() if program == self.program), "?"
        )
        packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "redis"))
        return (
            f"Redis {redis}, Python {platform.python_version()} on {sys.platform}, {os.cpu_count()} cores; {packages}"
            f"{'; QUICK: rough figures' if self.quick else ''}"
        )


def newest_server() -> str:
    """The program of the newest Redis server that can be found.

    Raises:
        FileNotFoundError: there is none.
    """
    found = servers()
    if not found:
        raise FileNotFoundError("no redis-server 6.2 or newer on the path; name one with --redis")
    return list(found.values())[-1]
