"""Redis's own word that a key has changed, whoever changed it, and without a setting of the server.

It comes from what Redis has for caches in clients (CLIENT TRACKING): who reads a key is told, once, when somebody
changes it. A proxy or an ACL may not let it through.
"""

from __future__ import annotations

from typing import Any

import redis
from redis.exceptions import ResponseError

from .scripts import PURPOSE

#: Where Redis tells it.
CHANNEL = "__redis__:invalidate"


class Tracking:
    """A connection that is told when *key* changes after *client* has read it.

    Args:
        client: one with a connection of its own (``single_connection_client``), which speaks RESP2; its pool gives us
            another one.
        key: of all that the client reads, the one that matters.

    Attributes:
        refusal: why Redis does not tell us; None if it does.

    Raises:
        redis.RedisError: on entering, from the connection.
    """

    def __init__(self, client: redis.Redis, key: bytes) -> None:
        self._client = client
        self._key = key
        self._connection: Any = None
        self.refusal: str | None = None

    def __enter__(self) -> Tracking:
        self._connection = self._client.connection_pool.get_connection(*PURPOSE)
        try:
            number = self._ask("CLIENT", "ID")
            self._ask("SUBSCRIBE", CHANNEL)
            # What it changes itself, it knows.
            self._client.execute_command("CLIENT", "TRACKING", "ON", "REDIRECT", number, "NOLOOP")
        except ResponseError as error:
            self.refusal = str(error)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.disconnect()
        self._client.connection_pool.release(self._connection)

    def _ask(self, *words: str) -> Any:
        self._connection.send_command(*words)
        return self._connection.read_response()

    def told(self, timeout: float) -> bool:
        """Whether the key has changed since the client has read it; waits for that, *timeout* seconds at most.

        Raises:
            redis.RedisError: from the connection.
        """
        changed = False
        while self._connection.can_read(timeout):
            timeout = 0
            _, _, keys = self._connection.read_response()
            changed = changed or keys is None or self._key in keys  # None: all keys, as after FLUSHALL
        return changed
