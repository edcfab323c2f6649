"""A connection at hand: redis-py's pool takes as long to lend one and to take it back as Redis takes for a put."""

from __future__ import annotations

from os import getpid
from typing import Any

import redis
from redis.sentinel import SentinelConnectionPool


def can_keep(pool: redis.ConnectionPool) -> bool:
    """Whether to keep one of its connections.

    Those to a master that Sentinel has replaced are the pool's to find, as are those whose credentials are renewed; and
    who may have one only has none to spare.
    """
    renews = pool.connection_kwargs.get("credential_provider") is not None
    return not renews and not isinstance(pool, SentinelConnectionPool) and pool.max_connections > 1


class Keeping:
    """Stands for a pool of redis-py's, and keeps the connection that it gave back last.

    Who needs another, and asks the pool itself, gets another; so whoever shares the pool with those who do is to call
    :meth:`give_back` before. May be used by several threads, and in the children of a fork, as the pool may.
    """

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self.pool = pool
        self._kept: list[Any] = []  # its pop and its append are atomic

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)

    def get_connection(self, *purpose: Any, **options: Any) -> Any:
        """A connection that can be used; one that its server has closed is opened when it is."""
        try:
            connection = self._kept.pop()
        except IndexError:
            return self.pool.get_connection(*purpose, **options)
        if connection.pid != getpid():  # the parent's; the pool has forgotten it as well
            return self.pool.get_connection(*purpose, **options)
        try:
            if connection.can_read():  # the end of it, or something that nobody has asked for
                connection.disconnect()
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            connection.disconnect()
        return connection

    def release(self, connection: Any) -> None:
        """Take it back."""
        self._kept.append(connection)
        while len(self._kept) > 1:
            self.give_back()

    def give_back(self) -> None:
        """Give the pool what is kept."""
        try:
            connection = self._kept.pop()
        except IndexError:
            return
        if connection.pid == getpid():
            self.pool.release(connection)
