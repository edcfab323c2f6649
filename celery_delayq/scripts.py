"""The Lua scripts as callables: read once from the package, sent by hash, loaded where Redis does not know them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

from .errors import DelayQError

#: What may stand for a key or an argument on the wire.
Value = str | bytes | int | float

#: redis-py before 5.3 wants to know what a connection is for.
_PURPOSE = () if redis.VERSION >= (5, 3) else ("EVALSHA",)


class Script:
    """One Lua file.

    Attributes:
        name: the verb, which is also the file's name.
        text: its source.
        sha: the hash by which Redis knows it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (files("celery_delayq.lua") / f"{name}.lua").read_text(encoding="utf-8")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: redis.Redis, keys: Sequence[str], args: Sequence[Value]) -> Any:
        """Run the script on *client*.

        Raises:
            DelayQError: the script refused an argument, or a key holds a foreign type.
            redis.RedisError: anything that Redis or the connection says.
        """
        try:
            try:
                return client.evalsha(self.sha, len(keys), *keys, *args)
            except NoScriptError:  # a new server, a failover, SCRIPT FLUSH; EVAL also loads it
                return client.eval(self.text, len(keys), *keys, *args)
        except ResponseError as error:
            self.explain(error)
            raise

    def explain(self, error: ResponseError) -> None:
        """Raise what our own words of refusal mean; return if *error* is Redis's own."""
        refusal = str(error)
        if refusal.startswith("WRONGTYPE"):
            raise DelayQError(
                f"{self.name}: {refusal.removeprefix('WRONGTYPE ')}. Another program uses this key; "
                "rename it there, or set delayq_prefix to a prefix of your own"
            ) from error
        if refusal.startswith("BADARG"):
            raise DelayQError(f"{self.name}: {refusal.removeprefix('BADARG ')}") from error


class Prepared:
    """A script whose keys and first arguments are the same for many calls: they are packed once.

    For the hot paths: redis-py encodes a command word by word, which for a put takes longer than Redis takes to run it
    (``python -m benchmarks publish`` measures it).
    """

    def __init__(self, script: Script, keys: Sequence[str], args: Sequence[Value]) -> None:
        self._script = script
        self._keys = keys
        self._args = args
        words = ["EVALSHA", script.sha, len(keys), *keys, *args]
        self._words = len(words)
        self._packed = _pack(words)

    def __call__(self, client: redis.Redis, args: Sequence[Value]) -> Any:
        """Run the script with the rest of its arguments; raises what :class:`Script` does."""
        command = b"*%d\r\n%b%b" % (self._words + len(args), self._packed, _pack(args))
        pool = client.connection_pool
        own = client.connection  # of a client that keeps one for itself
        connection = own or pool.get_connection(*_PURPOSE)

        def exchange() -> Any:
            connection.send_packed_command([command])
            return connection.read_response()

        try:
            return connection.retry.call_with_retry(exchange, lambda _: connection.disconnect())
        except NoScriptError:
            return self._script(client, self._keys, [*self._args, *args])
        except ResponseError as error:
            self._script.explain(error)
            raise
        finally:
            if own is None:
                pool.release(connection)


def _pack(words: Iterable[Value]) -> bytes:
    """Words as Redis's protocol writes them."""
    packed = []
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        packed.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(packed)


@cache
def script(name: str) -> Script:
    """The script of that verb."""
    return Script(name)
