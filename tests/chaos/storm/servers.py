"""The servers of a storm: where tasks wait, and where they go; killed, and started again while the storm goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import amqp
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from celery_delayq.embedded import RedisServer, servers
from tests.ports import quiet_port
from tests.rabbit import RabbitServer

from .records import Copy, Watch, copy_of

#: Its log lies on the disk before it answers; and is rewritten often, so that a restart is quick.
LASTING = ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-min-size", "16mb"]


def lasting_redis() -> RedisServer:
    """A Redis of the newest version that is here, not started: whatever it has answered survives its death."""
    server = RedisServer(list(servers().values())[-1], LASTING)
    server.port = quiet_port()
    return server


def client_of(server: RedisServer) -> redis.Redis:
    """A client that outlives the server, which is restarted again and again."""
    return redis.Redis(port=server.port, socket_timeout=60, retry=Retry(ConstantBackoff(0.1), 5))


#: So long (s) a server that has come back is not killed again: where it starts slowly it would be dead all the time.
REST = 5.0


class Lives:
    """A server that was started, and its deaths.

    Attributes:
        outages: from when to when (s, monotonic) it did not answer.
    """

    def __init__(self, start: Callable[[], None], kill: Callable[[], None]) -> None:
        self.outages: list[tuple[float, float]] = []
        self._start, self._kill = start, kill
        self._dead_since: float | None = None
        self._back_since = 0.0
        self._starting: Future[None] | None = None
        self._starter = ThreadPoolExecutor(1)

    @property
    def is_up(self) -> bool:
        """Whether it answers.

        Raises:
            RuntimeError: it did not start again.
        """
        if self._dead_since is not None and self._starting is not None and self._starting.done():
            self._starting.result()
            self._back_since = time.monotonic()
            self.add_outage(self._dead_since, self._back_since)
            self._dead_since = self._starting = None
        return self._dead_since is None

    @property
    def is_rested(self) -> bool:
        """Whether it answers, and has done so for a while."""
        return self.is_up and time.monotonic() - self._back_since > REST

    def add_outage(self, begin: float, end: float) -> None:
        self.outages.append((begin, end))

    def kill(self) -> None:
        """SIGKILL."""
        self._dead_since = time.monotonic()
        self._kill()

    def start(self) -> None:
        """Begin to start it again, if it is dead."""
        if self._dead_since is not None and self._starting is None:
            self._starting = self._starter.submit(self._start)

    def close(self) -> None:
        """Wait for a start that has begun, so that nothing begins to live after the end."""
        self._starter.shutdown()


class Broker(Protocol):
    """Where due tasks go; and what of them is found there."""

    lives: Lives
    client: redis.Redis | None  # if it is a Redis
    port: int
    taken: dict[str, list[Copy]]

    def url(self, port: int) -> str:
        """Its URL, reached by that port."""

    def has_any(self) -> bool:
        """Whether a task came to one of the queues that nobody consumes."""

    def is_taken(self) -> bool:
        """Whether all that came there was taken."""

    def finish(self) -> None:
        """Take what is left; :attr:`taken` changes no more."""

    def close(self) -> None:
        """End whatever goes on in the background."""

    def check(self) -> None:
        """Raise what has gone wrong in the background."""

    def is_empty(self, queue: str) -> bool:
        """Whether nothing is ready in a queue that workers consume."""

    def left(self, queue: str) -> tuple[list[str], list[str]]:
        """Ids on the ready list of a queue that workers consume; and of what they took and have not acked."""


class RedisBroker:
    """Another Redis, or the very one in which the tasks wait. What comes is taken at once, with the time."""

    def __init__(self, server: RedisServer, lives: Lives, lists: Sequence[str]) -> None:
        self.lives = lives
        self.port = server.port
        self._lists = lists
        self.client = client_of(server)
        self._watch = Watch(server.port, lists)
        self.taken = self._watch.taken
        self._watch.start()

    def url(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}/0"

    def has_any(self) -> bool:
        return bool(self.taken)

    def is_taken(self) -> bool:
        return not self.client.exists(*self._lists)

    def finish(self) -> None:
        self._watch.stop()

    def close(self) -> None:
        self._watch.stop()
        self.client.close()

    def check(self) -> None:
        self._watch.check()

    def is_empty(self, queue: str) -> bool:
        return not self.client.exists(queue)

    def left(self, queue: str) -> tuple[list[str], list[str]]:
        ready = [json.loads(body)["headers"]["id"] for body in self.client.lrange(queue, 0, -1)]
        held = [json.loads(body)[0]["headers"]["id"] for body in self.client.hvals("unacked")]
        return ready, held


class RabbitBroker:
    """A RabbitMQ. What comes is left there to the end, since a taking that fails would look like a second coming; when
    it was published is written on it.

    The last of *queues* is a quorum queue, which an operator has declared; Celery finds it as it is. (Workers that knew
    would declare 56 queues and exchanges of native delayed delivery at each of their many starts.)
    """

    def __init__(self, server: RabbitServer, lives: Lives, queues: Sequence[str]) -> None:
        self.lives = lives
        self.client = None
        self.port = server.port
        self.taken: dict[str, list[Copy]] = {}
        self._queues = queues
        quorum = queues[-1]
        with self._connect() as connection:
            channel = connection.channel()
            channel.exchange_declare(quorum, "direct", durable=True, auto_delete=False)
            channel.queue_declare(quorum, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
            channel.queue_bind(quorum, quorum, quorum)
        server.await_written(quorum)

    def url(self, port: int) -> str:
        return f"amqp://guest:guest@127.0.0.1:{port}//"

    def _connect(self) -> amqp.Connection:
        connection = amqp.Connection(f"127.0.0.1:{self.port}", connect_timeout=30, read_timeout=60)
        connection.connect()
        return connection

    def version(self) -> str:
        with self._connect() as connection:
            return str(connection.server_properties["version"])

    def has_any(self) -> bool:
        return not all(map(self.is_empty, self._queues))

    def is_empty(self, queue: str) -> bool:
        try:
            with self._connect() as connection:
                return not connection.channel().queue_declare(queue, passive=True).message_count
        except (OSError, amqp.AMQPError):  # not declared yet
            return True

    def is_taken(self) -> bool:
        return True

    def _take(self, queue: str) -> list[dict[str, Any]]:
        """The headers of all that is ready."""
        found = []
        with self._connect() as connection:
            channel = connection.channel()
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                found.append(message.headers)
        return found

    def finish(self) -> None:
        for queue in self._queues:
            for headers in self._take(queue):
                self.taken.setdefault(headers["id"], []).append(copy_of(headers, float("inf")))

    def close(self) -> None:
        """Nothing goes on."""

    def check(self) -> None:
        """Nothing happens in the background."""

    def left(self, queue: str) -> tuple[list[str], list[str]]:
        return [headers["id"] for headers in self._take(queue)], []
