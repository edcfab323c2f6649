"""Kombu's record of the messages that a worker was given and has not acknowledged, written with less work.

A delayed task that has waited in Redis is delivered when it is due, where a native one sits in the worker already. Most
of what that takes is this record: for each message that it gets, and again for each that it acknowledges, Kombu's Redis
transport makes a client and a pipeline, and redis-py packs the commands word by word. We send the very same commands in
one piece (``python -m benchmarks lateness``). Whatever else Kombu does with the record, as giving out a message anew
whose worker is gone, is its own affair.
"""

from __future__ import annotations

from time import time
from typing import Any

import redis
from kombu.transport.redis import Channel, QoS
from kombu.transport.virtual import QoS as VirtualQoS
from redis.exceptions import ResponseError

from .broker import dumps
from .keeping import Keeping, can_keep
from .scripts import PURPOSE, pack

_MULTI, _EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"


class Record(QoS):
    """Stock QoS, but for how these two are sent."""

    channel: Channel
    _keeping: Keeping | None = None

    def append(self, message: Any, delivery_tag: str) -> None:
        """Write down that *message* was delivered."""
        delivery = message.delivery_info
        text = dumps([message._raw, delivery["exchange"], delivery["routing_key"]])
        self._write(
            ("ZADD", self._key(self.unacked_index_key), time(), delivery_tag),
            ("HSET", self._key(self.unacked_key), delivery_tag, text),
        )
        VirtualQoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Forget it."""
        self._write(
            ("ZREM", self._key(self.unacked_index_key), delivery_tag),
            ("HDEL", self._key(self.unacked_key), delivery_tag),
        )
        VirtualQoS.ack(self, delivery_tag)

    def _key(self, name: str) -> str:
        return f"{self.channel.global_keyprefix}{name}"

    def _pool(self) -> Any:
        pool = self.channel.pool
        if not can_keep(pool):
            return pool
        if self._keeping is None or self._keeping.pool is not pool:  # a channel gets another one after a fork
            self._keeping = Keeping(pool)
        return self._keeping

    def _write(self, *commands: tuple[str | float, ...]) -> None:
        """Send *commands* as one transaction, again if the connection was lost; raises the error of the first that
        failed, as redis-py's pipelines do.
        """
        data = [_MULTI, *(b"*%d\r\n%b" % (len(words), pack(words)) for words in commands), _EXEC]
        joined = b"".join(data)
        pool = self._pool()
        connection = pool.get_connection(*PURPOSE)

        def read() -> Any:
            try:
                return connection.read_response()
            except ResponseError as error:  # not raised before the other replies are read, too
                return error
            except ValueError as error:  # redis-py's, of a connection that another greenlet has closed meanwhile
                raise redis.ConnectionError(f"closed while it was read: {error}") from error

        def exchange() -> list[Any]:
            connection.send_packed_command([joined])
            return [read() for _ in data]

        try:
            try:
                replies = exchange()
            except redis.ConnectionError:  # perhaps lost while it was kept; to write the same twice does no harm
                connection.disconnect()
                replies = connection.retry.call_with_retry(exchange, lambda _: connection.disconnect())
        except BaseException:  # some reply may be on its way, and is nobody else's
            connection.disconnect()
            raise
        finally:
            pool.release(connection)
        *queued, done = replies
        for reply in (*queued, *(done if isinstance(done, list) else (done,))):
            if isinstance(reply, ResponseError):
                raise reply


def join(channel: object) -> None:
    """Have *channel*, if it is of Kombu's Redis transport with its own record, write that with less work."""
    if isinstance(channel, Channel) and type(channel.qos) is QoS:
        channel.qos.__class__ = Record
