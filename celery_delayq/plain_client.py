"""A client of one Redis, named by a URL, for programs that have no Celery app."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool, parse_url
from redis.retry import Retry

#: Redis has so long (s) to answer, where the URL says nothing else; after that it counts as away.
TIMEOUT = 5.0


def client_at(url: str) -> redis.Redis:
    """A client whose replies are bytes, that speaks RESP2 and tries nothing again; it has not connected yet.

    Raises:
        ValueError, TypeError, redis.RedisError: there can be no such Redis.
    """
    given = parse_url(url)
    path = urlsplit(url).path.strip("/")
    if path and not path.isdecimal() and "path" not in given:
        raise ValueError(f"{path!r} is no number of a database")
    options: dict[str, Any] = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, **given}
    options |= {"retry": Retry(NoBackoff(), 0), "decode_responses": False}
    if redis.VERSION >= (5,):
        options["protocol"] = 2
    pool = ConnectionPool(**options)
    pool.make_connection()  # which reads the options
    return redis.Redis(connection_pool=pool)
