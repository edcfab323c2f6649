"""Under which conditions a run takes place: the Redis server, and how much time there is."""

from __future__ import annotations

from dataclasses import dataclass
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

    def redis_version(self) -> str:
        """That of the server; "?" if it is none of those that :func:`newest_server` looks at."""
        found = next((version for version, program in servers().items() if program == self.program), None)
        return "?" if found is None else ".".join(map(str, found))


def newest_server() -> str:
    """The program of the newest Redis server that can be found.

    Raises:
        FileNotFoundError: there is none.
    """
    found = servers()
    if not found:
        raise FileNotFoundError("no redis-server 6.2 or newer on the path; name one with --redis")
    return list(found.values())[-1]
