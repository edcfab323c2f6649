"""The Lua scripts as callables: read once from the package, sent by hash, loaded where Redis does not know them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib.resources import files
from time import perf_counter
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import redis
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError

from .errors import DelayQError

#: What may stand for a key or an argument on the wire.
Value = str | bytes | int | float

T = TypeVar("T")

#: redis-py before 5.3 wants to know what a connection is for.
PURPOSE = () if redis.VERSION >= (5, 3) else ("EVALSHA",)


class Script:
    """One Lua file.

    Args:
        before: names of scripts that this one calls as functions of KEYS and ARGV.

    Attributes:
        name: the verb, which is also the file's name.
        text: its source.
        sha: the hash by which Redis knows it.
        timers: are called after each call of a script that was answered, with its name and how long (s) the caller
            waited; not of one that was begun and read later. Of the whole process, as the scripts are.
    """

    timers: ClassVar[tuple[Callable[[str, float], object], ...]] = ()

    def __init__(self, name: str, *before: str) -> None:
        self.name = name
        functions = [f"local function {part}(KEYS, ARGV)\n{_source(part)}end\n" for part in before]
        self.text = "".join(functions) + _source(name)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: redis.Redis, keys: Sequence[str | bytes], args: Sequence[Value]) -> Any:
        """Run the script on *client*.

        Raises:
            DelayQError: the script refused an argument, or a key holds a foreign type.
            redis.RedisError: anything that Redis or the connection says.
        """
        if not Script.timers:
            return self._call(client, keys, args)
        begin = perf_counter()
        reply = self._call(client, keys, args)
        self.took(perf_counter() - begin)
        return reply

    def took(self, seconds: float) -> None:
        """A call was answered after so long."""
        for timer in Script.timers:
            timer(self.name, seconds)

    def _call(self, client: redis.Redis, keys: Sequence[str | bytes], args: Sequence[Value]) -> Any:
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
                "rename it there, or use a prefix of your own (delayq_prefix; prefix= of a DelayQueue)"
            ) from error
        if refusal.startswith("BADARG"):
            raise DelayQError(f"{self.name}: {refusal.removeprefix('BADARG ')}") from error
        if "-OOM " in refusal:  # Redis 6.2 tells it so if a script meets it; Redis 7 as of any command
            raise OutOfMemoryError(refusal[refusal.index("-OOM ") + 5 :]) from error


def _source(name: str) -> str:
    return (files("celery_delayq.lua") / f"{name}.lua").read_text(encoding="utf-8")


class Packed(NamedTuple):
    """So many words as Redis's protocol writes them, made by :func:`pack` and joined."""

    words: int
    data: bytes


class Prepared:
    """A script whose keys and first arguments are the same for many calls: they are packed once.

    For the hot paths: redis-py encodes a command word by word, which for a put takes longer than Redis takes to run it
    (``python -m benchmarks publish`` measures it).
    """

    def __init__(self, script: Script, keys: Sequence[str | bytes], args: Sequence[Value]) -> None:
        self._script = script
        self._keys = keys
        self._args = args
        words = self.words(())
        self._words = len(words)
        self._packed = pack(words)

    def __call__(self, client: redis.Redis, args: Sequence[Value] | Packed, again: Prepared | None = None) -> Any:
        """Run the script with the rest of its arguments; raises what :class:`Script` does.

        Args:
            again: what to send in place of this when a connection has failed and nobody knows how far it came.
        """
        return self._timed(client, args, (), again)[0]

    def acknowledged(
        self, client: redis.Redis, args: Sequence[Value] | Packed, replicas: int, timeout_ms: int
    ) -> tuple[Any, int]:
        """Run the script, and wait for *replicas* to acknowledge all that is written by then; in one round trip.

        Redis waits for whatever was written before the script ended, by anybody: so also if the script has found its
        work done by an earlier call.

        Returns:
            The script's reply, and how many replicas have acknowledged within *timeout_ms*.
        """
        wait = b"*3\r\n" + pack(("WAIT", replicas, timeout_ms))
        reply, acknowledged = self._timed(client, args, (wait,))
        return reply, int(acknowledged)

    def _timed(
        self,
        client: redis.Redis,
        args: Sequence[Value] | Packed,
        more: tuple[bytes, ...],
        again: Prepared | None = None,
    ) -> list[Any]:
        if not Script.timers:
            return self._exchange(client, args, more, again)
        begin = perf_counter()
        replies = self._exchange(client, args, more, again)
        self._script.took(perf_counter() - begin)
        return replies

    def _exchange(
        self, client: redis.Redis, args: Sequence[Value] | Packed, more: tuple[bytes, ...], again: Prepared | None
    ) -> list[Any]:
        pool = client.connection_pool
        own = client.connection  # of a client that keeps one for itself
        connection = own or pool.get_connection(*PURPOSE)
        sent = self

        def read() -> Any:
            try:
                return connection.read_response(disable_decoding=True)
            except ResponseError as error:  # not raised before the other replies are read, too
                return error

        def say(command: bytes) -> list[Any]:
            connection.send_packed_command((command, *more))
            return [read() for _ in (command, *more)]

        def exchange() -> list[Any]:
            replies = say(sent.command(args))
            if isinstance(replies[0], NoScriptError):  # a new server, a failover, SCRIPT FLUSH; EVAL also loads it
                replies = say(sent.command(args, loads=True))
            return replies

        def failed(_: Exception) -> None:
            nonlocal sent
            sent = again or self
            connection.disconnect()

        try:
            replies = connection.retry.call_with_retry(exchange, failed)
        except BaseException:  # some reply may be on its way, and is nobody else's
            connection.disconnect()
            raise
        finally:
            if own is None:
                pool.release(connection)
        for reply in replies:
            if isinstance(reply, ResponseError):
                self._script.explain(reply)
                raise reply
        return replies

    def by_words(self, client: Any, args: Sequence[Value]) -> Any:
        """Run the script on a client that finds the server by the keys, and so wants to see them."""
        return self._script(client, self._keys, [*self._args, *args])

    def explain(self, error: ResponseError) -> None:
        """As :meth:`Script.explain`."""
        self._script.explain(error)

    def within(self, args: Sequence[Value]) -> tuple[list[str | bytes], list[Value]]:
        """The keys and arguments, for a script that calls this one."""
        return [*self._keys], [*self._args, *args]

    def words(self, args: Sequence[Value], *, loads: bool = False) -> list[Value]:
        """The command as its words; *loads*: with the whole script, for a Redis that does not know it."""
        begin = ["EVAL", self._script.text] if loads else ["EVALSHA", self._script.sha]
        return [*begin, len(self._keys), *self._keys, *self._args, *args]

    def command(self, args: Sequence[Value] | Packed, *, loads: bool = False) -> bytes:
        """As it goes over the wire; *loads*: with the whole script, for a Redis that does not know it."""
        words, data = args if isinstance(args, Packed) else (len(args), pack(args))
        beginning = pack(self.words((), loads=True)) if loads else self._packed
        return b"*%d\r\n%b%b" % (self._words + words, beginning, data)

    def begin(self, client: redis.Redis, args: Sequence[Value] | Packed, read: Callable[[Any], T]) -> Begun[T]:
        """Send the command now, and let *read* have the reply later: Redis works while we do something else."""
        return Begun(self, client, args, read)


class Begun(Generic[T]):
    """A call whose reply nobody has read yet. It ends with :meth:`result` or with :meth:`drop`.

    For scripts that may run twice: a call that fails on its way is made again.
    """

    def __init__(
        self, prepared: Prepared, client: redis.Redis, args: Sequence[Value] | Packed, read: Callable[[Any], T]
    ) -> None:
        self._again = partial(prepared, client, args)
        self._explain = prepared._script.explain
        self._read = read
        self._pool = client.connection_pool
        self._connection: Any = self._pool.get_connection(*PURPOSE)
        try:
            self._connection.send_packed_command([prepared.command(args)])
        except (redis.ConnectionError, redis.TimeoutError):
            self.drop()
        except BaseException:
            self.drop()
            raise

    def result(self) -> T:
        """Wait for the reply; raises what :class:`Script` does."""
        return self._read(self._reply())

    def _reply(self) -> Any:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                return connection.read_response()
            except (NoScriptError, redis.ConnectionError, redis.TimeoutError):
                pass
            except ResponseError as error:
                self._explain(error)
                raise
            finally:
                self._pool.release(connection)
        return self._again()

    def drop(self) -> None:
        """Never read the reply. Whether the script runs is open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)


def pack(words: Iterable[Value]) -> bytes:
    """Words as Redis's protocol writes them; those that it could not read as text once are the same bytes again."""
    encoded = [word if isinstance(word, bytes) else str(word).encode(errors="surrogateescape") for word in words]
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded])


def packed(word: bytes) -> bytes:
    """One word as Redis's protocol writes it."""
    return b"$%d\r\n%b\r\n" % (len(word), word)


@cache
def script(name: str, *before: str) -> Script:
    """The script of that verb, which calls those *before* it."""
    return Script(name, *before)
