"""The Lua scripts as callables: read once from the package, sent by hash, loaded where Redis does not know them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

from .errors import DelayQError

#: What may stand for a key or an argument on the wire.
Value = str | bytes | int | float


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
            refusal = str(error)
            if refusal.startswith("WRONGTYPE"):
                raise DelayQError(
                    f"{self.name}: {refusal.removeprefix('WRONGTYPE ')}. Another program uses this key; "
                    "rename it there, or set delayq_prefix to a prefix of your own"
                ) from error
            if refusal.startswith("BADARG"):
                raise DelayQError(f"{self.name}: {refusal.removeprefix('BADARG ')}") from error
            raise


@cache
def script(name: str) -> Script:
    """The script of that verb."""
    return Script(name)
