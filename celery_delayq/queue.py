"""A queue of delayed jobs, without Celery: put them by an id, and take them when they are due.

What it does stands in :mod:`~celery_delayq.queue_protocol`; here it is asked on redis-py. Safe for threads.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from time import monotonic, sleep
from types import TracebackType
from typing import Any, TypeVar

import redis
from redis.exceptions import NoPermissionError

from .cluster import Cluster, is_cluster_url, slot_of
from .errors import ImproperlyConfigured
from .job import Dead, Job, Move, OnConflict, Place
from .queue_arguments import (
    checked_id,
    checked_ids,
    checked_jobs,
    checked_limit,
    due_of,
    found_of,
    lost,
    put_of,
    puts_of,
    range_of,
)
from .queue_protocol import LEASE, MAX_ATTEMPTS, Ask, Command, QueueLoad, QueueProtocol, Steps

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Redis confirms a subscription within this time (s), or is not well.
CONFIRMATION = 5.0

#: Who may not listen to channels looks this often (s).
DEAF_POLL = 1.0


class DelayQueue:
    """Jobs of one topic, each with an id, a body and a time, in a Redis.

    Args:
        url_or_client: ``redis://``, ``rediss://``, ``unix://`` or ``redis-cluster://host:port,host:port``; or a client
            of redis-py, of one server, a Sentinel's master or a cluster. A client stays its owner's to close.
        topic: the queue's name, without braces.
        prefix: first part of every key.
        shards: spread the jobs over so many keys, for a cluster. Can be raised at any time; then what is said below of
            a batch holds for the part of it in each shard.
        max_attempts: a job that was reserved so often, and not acked, is dead; None: it comes back for ever.

    All methods raise ``redis.RedisError`` when Redis cannot be reached, and
    :class:`~celery_delayq.errors.DelayQError` when a key of the queue holds something else.
    """

    def __init__(
        self,
        url_or_client: Any,
        topic: str,
        prefix: str = "delayq",
        shards: int = 1,
        *,
        max_attempts: int | None = MAX_ATTEMPTS,
    ) -> None:
        self._link = _Link(url_or_client)
        self._protocol = QueueProtocol(topic, prefix, shards, self._link.database, max_attempts)
        self._ears: deque[Ear] = deque()

    @property
    def topic(self) -> str:
        """The queue's name."""
        return self._protocol.topic

    @property
    def protocol(self) -> QueueProtocol:
        """What the queue does, for whoever does several things at once."""
        return self._protocol

    def run(self, steps: Steps[T]) -> T:
        """Run an operation of :attr:`protocol`."""
        try:
            ask = next(steps)
            while True:
                try:
                    answer = self._link.ask(ask, self._protocol)
                except redis.RedisError as error:
                    ask = steps.throw(error)
                else:
                    ask = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def put(
        self,
        id: str | bytes,
        body: bytes,
        at: datetime | float | None = None,
        delay: float | timedelta | None = None,
        on_conflict: OnConflict | str = OnConflict.ERROR,
    ) -> None:
        """Store a job until it is due; without *at* and *delay* it is due now.

        Args:
            id: unique among the jobs of the topic that wait, or are reserved.
            at: a datetime (a naive one is UTC), or seconds since the epoch.
            delay: seconds, or a timedelta, from now on Redis's clock.
            on_conflict: if the id waits already: ``"error"``, ``"keep"`` or ``"replace"``. A put of an id that is
                reserved takes the job from whoever has it, in any case.

        Raises:
            AlreadyScheduled: the id waits, and *on_conflict* is ``"error"``.
        """
        self.run(self._protocol.put([put_of(self.topic, id, body, at, delay)], OnConflict(on_conflict)))

    def put_many(
        self, jobs: Iterable[tuple[str | bytes, bytes, Any]], on_conflict: OnConflict | str = OnConflict.ERROR
    ) -> int:
        """Store all of *jobs*, or none; return how many were written: with ``"keep"`` not those that waited.

        Args:
            jobs: of each the id, the body, and when it is due, as of :meth:`put`; a timedelta is from now, None is now.

        Raises:
            AlreadyScheduled: an id waits, or is there twice, and *on_conflict* is ``"error"``.
        """
        puts = puts_of(self.topic, jobs)
        return self.run(self._protocol.put(puts, OnConflict(on_conflict))) if puts else 0

    def delete(self, id: str | bytes) -> bool:
        """Take a job back, whether it waits or is reserved. False: it does neither (any more)."""
        return self.run(self._protocol.delete(checked_id(id)))

    def move(self, id: str | bytes, at: datetime | float | None = None, delay: float | timedelta | None = None) -> bool:
        """Give a waiting job another due time, as of :meth:`put`. False: it does not wait (any more)."""
        at_us, in_us = due_of(at, delay)
        return self.run(self._protocol.move(Move(checked_id(id), at_us, in_us)))

    def reserve(self, lease: float = LEASE, limit: int = 1, wait: float | None = 0) -> list[Job]:
        """Take due jobs, *limit* at most, for *lease* seconds: then they come back, unless they are acked.

        Args:
            wait: if none is due, wait so many seconds for one; None: for ever.
        """
        protocol = self._protocol
        checked_limit(limit)
        deadline = None if wait is None else monotonic() + wait
        batch = self.run(protocol.reserve(lease, limit))
        if batch.jobs or wait == 0:
            return batch.jobs
        with self.listening() as ear:
            while True:
                batch = self.run(protocol.reserve(lease, limit))  # anew: what came before we listened was not heard
                if batch.jobs:
                    return batch.jobs
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return []
                rest = min(batch.wait, self.run(protocol.rest()))
                ear.listen(rest if left is None else min(rest, left))

    def pull(self, limit: int = 1) -> list[Job]:
        """Take due jobs, *limit* at most, once and for all: whoever dies with them has lost them."""
        return self.run(self._protocol.pull(checked_limit(limit))).jobs

    def due(self, lease: float = LEASE, wait: float | None = 0) -> Iterator[Job]:
        """Reserve due jobs one after the other, until none is due; whoever takes one acks or releases it.

        Args:
            lease, wait: as of :meth:`reserve`.
        """
        while jobs := self.reserve(lease, wait=wait):
            yield from jobs

    def __iter__(self) -> Iterator[Job]:
        """As :meth:`due`."""
        return self.due()

    def ack(self, *jobs: Job) -> None:
        """Jobs are done: forget them.

        Raises:
            LeaseLost: of some; the others are forgotten.
        """
        self._settle(self._protocol.ack(checked_jobs(jobs)))

    def release(
        self, job: Job, at: datetime | float | None = None, delay: float | timedelta | None = None, reason: str = ""
    ) -> None:
        """Give a reserved job back: it is due then, as of :meth:`put`; or is dead, if it was reserved often enough.

        Args:
            reason: why; kept with a dead job.

        Raises:
            LeaseLost: it is no longer the caller's.
        """
        self._settle(self._protocol.release(checked_jobs([job]), due_of(at, delay), reason))

    def extend(self, *jobs: Job, lease: float = LEASE) -> None:
        """Let the leases of jobs end *lease* seconds from now.

        Raises:
            LeaseLost: of some; the others are extended.
        """
        self._settle(self._protocol.extend(checked_jobs(jobs), lease))

    def _settle(self, steps: Steps[list[Job]]) -> None:
        gone = self.run(steps)
        if gone:
            raise lost(gone)

    def requeue(self, limit: int = 1000) -> int:
        """Give back at most *limit* jobs whose lease has run out; return how many. Who reserves need not."""
        return self.run(self._protocol.requeue(checked_limit(limit)))

    def scheduled(self, start: datetime | float | None = None, end: datetime | float | None = None) -> Iterator[Job]:
        """Look at waiting jobs, due from *start* on and before *end*, in the order in which they leave. Takes none."""
        start_us, stop_us = range_of(start, end)
        behind: Place | None = None
        while True:
            page = self.run(self._protocol.page(start_us, stop_us, behind))
            yield from found_of(page)
            behind = page.end
            if not page.left:
                return

    def dead(self) -> Iterator[Dead]:
        """Look at jobs that were reserved as often as they may be, the longest dead first."""
        behind: Place | None = None
        while True:
            page = self.run(self._protocol.dead(behind))
            yield from page.jobs
            behind = page.end
            if not page.left:
                return

    def revive(self, *ids: str | bytes) -> int:
        """Let dead jobs wait again, due now; return how many were dead."""
        return self.run(self._protocol.revive(checked_ids(ids))) if ids else 0

    def discard(self, *ids: str | bytes) -> int:
        """Throw dead jobs away; return how many were dead."""
        return self.run(self._protocol.discard(checked_ids(ids))) if ids else 0

    def stats(self) -> QueueLoad:
        """How many jobs wait, are due, reserved and dead."""
        return self.run(self._protocol.load())

    def __len__(self) -> int:
        """How many jobs wait; reserved ones do not."""
        return self.run(self._protocol.count())

    def __bool__(self) -> bool:
        """A queue is there, also if it is empty."""
        return True

    @contextmanager
    def listening(self) -> Iterator[Ear]:
        """What hears of jobs that became the earliest, for one caller at a time."""
        ear: Ear | None
        try:
            ear = self._ears.pop()
        except IndexError:
            ear = None
        if ear is None or not ear.is_ours:
            ear = Ear(self._link.client(0, self._protocol))
        try:
            ear.attend(self._protocol.channels)
            yield ear
        except BaseException:
            ear.close()
            raise
        self._ears.append(ear)

    def close(self) -> None:
        """Close the connections that are the queue's own."""
        while self._ears:
            self._ears.pop().close()
        self._link.close()

    def __enter__(self) -> DelayQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Link:
    """Redis, as the queue's user names it."""

    def __init__(self, url_or_client: Any) -> None:
        self._cluster: Cluster | None = None
        self._clients: dict[int, redis.Redis] = {}
        self._given: Any = None
        if not isinstance(url_or_client, str):
            self._given = url_or_client
            checked_client(url_or_client, redis.Redis, redis.RedisCluster)
        elif is_cluster_url(url_or_client):
            self._cluster, _ = Cluster.from_url(url_or_client)
        else:
            self._clients[0] = redis.Redis.from_url(url_or_client)

    @property
    def database(self) -> int:
        """Number of the Redis database."""
        client = self._given or self._clients.get(0)
        return database_of(client) if isinstance(client, redis.Redis) else 0

    def client(self, shard: int, protocol: QueueProtocol) -> Any:
        """Whoever talks to that shard."""
        if self._given is not None:
            return self._given
        if self._cluster is None:
            return self._clients[0]
        if shard not in self._clients:
            pool = self._cluster.pool(slot_of(protocol.keys(shard).index))
            self._clients[shard] = redis.Redis(connection_pool=pool)
        return self._clients[shard]

    def ask(self, ask: Ask, protocol: QueueProtocol) -> Any:
        """Ask, and read the answer."""
        client = self.client(ask.shard, protocol)
        call = ask.call
        if isinstance(call, Command):
            return client.execute_command(*call.words)
        if isinstance(client, redis.Redis):
            return call(client)
        return call.by_words(client)

    def close(self) -> None:
        """Close the connections; not those of a client that was given."""
        for client in self._clients.values():
            client.close()
            client.connection_pool.disconnect()


class Ear:
    """Listens to announcements; sleeps on the socket with a timeout of our own, exact to a millisecond."""

    def __init__(self, client: Any) -> None:
        self._process = os.getpid()
        self._pubsub = client.pubsub()
        self._channels: set[bytes] = set()
        self._is_deaf = False

    @property
    def is_ours(self) -> bool:
        """False in a process that was forked since: the connection is the parent's."""
        return self._process == os.getpid()

    def attend(self, channels: list[str]) -> None:
        """Listen to *channels*. When this returns nothing that is said there escapes us any more."""
        wanted = {channel.encode() for channel in channels} - self._channels
        if not wanted or self._is_deaf:
            return
        try:
            self._pubsub.subscribe(*wanted)
            while not wanted <= self._channels:
                message = self._pubsub.get_message(timeout=CONFIRMATION)
                if message is None:
                    raise redis.TimeoutError(f"Redis did not confirm the subscription to {channels[0]}")
                if message["type"] == "subscribe":
                    self._channels.add(_bytes(message["channel"]))
        except NoPermissionError:
            self._is_deaf = True
            logger.warning(forbidden(channels[0]))

    def listen(self, timeout: float) -> bool:
        """Return after *timeout* seconds, or when something was announced; whether that may be so."""
        if self._is_deaf:
            sleep(min(timeout, DEAF_POLL))
            return True
        return self._pubsub.get_message(timeout=timeout) is not None

    def close(self) -> None:
        """Hear nothing more."""
        self._pubsub.close()


def forbidden(channel: str) -> str:
    """What to tell whoever may not listen to *channel*."""
    beginning = channel.rpartition("wake:")[0]
    return f"delayq: Redis's ACL forbids the channel {channel} (allow it with &{beginning}*); jobs are polled for"


def database_of(client: Any) -> int:
    """Number of the database that *client*, of redis-py or redis.asyncio, uses."""
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


def checked_client(client: Any, single: type, cluster: type) -> None:
    """Refuse what is no client, and one of a cluster whose answers come decoded: bodies are bytes.

    Raises:
        TypeError: neither a URL nor a client.
        ImproperlyConfigured: a cluster's client with ``decode_responses``.
    """
    if isinstance(client, cluster):
        if client.encoder.decode_responses:  # type: ignore[attr-defined]
            raise ImproperlyConfigured("a cluster's client must be made without decode_responses: bodies are bytes")
    elif not isinstance(client, single):
        raise TypeError(f"url_or_client must be a URL or a client of {single.__module__}, not {type(client).__name__}")


def _bytes(channel: str | bytes) -> bytes:
    return channel.encode() if isinstance(channel, str) else channel  # of a client that decodes
