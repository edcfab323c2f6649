"""What clients send to a Redis, counted as MONITOR sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import redis

END = "end of the commands"


@contextmanager
def commands_of(client: redis.Redis) -> Iterator[Counter[str]]:
    """Counts the commands of all clients by name, without those that scripts call; complete at the end."""
    counted: Counter[str] = Counter()
    with client.monitor() as monitor:
        yield counted
        client.echo(END)
        for said in monitor.listen():
            if END in said["command"]:
                break
            if said["client_type"] != "lua":
                counted[said["command"].partition(" ")[0].upper()] += 1
