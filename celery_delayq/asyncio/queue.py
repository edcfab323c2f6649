"""A queue of delayed jobs for asyncio: what :mod:`celery_delayq.queue` does, asked on redis.asyncio.

A queue belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from celery_delayq.cluster import Cluster, is_cluster_url
from celery_delayq.job import Dead, Job, Move, OnConflict, Place
from celery_delayq.queue import CONFIRMATION, DEAF_POLL, checked_client, database_of, forbidden
from celery_delayq.queue_arguments import (
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
from celery_delayq.queue_protocol import LEASE, MAX_ATTEMPTS, Ask, Command, QueueLoad, QueueProtocol, Steps
from celery_delayq.scripts import PURPOSE
from celery_delayq.verbs import Call

logger = logging.getLogger(__name__)

T = TypeVar("T")


class DelayQueue:
    """Jobs of one topic, as :class:`celery_delayq.DelayQueue` has them; all that talks to Redis is awaited.

    Args:
        url_or_client: a URL, or a client of redis.asyncio, which stays its owner's to close.
        topic, prefix, shards, max_attempts: as there. Both kinds work on the same jobs.
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
        self._owns = isinstance(url_or_client, str)
        self._client: Any = _client_of(url_or_client) if self._owns else url_or_client
        checked_client(self._client, redis.asyncio.Redis, redis.asyncio.RedisCluster)
        database = database_of(self._client) if isinstance(self._client, redis.asyncio.Redis) else 0
        self._protocol = QueueProtocol(topic, prefix, shards, database, max_attempts)
        self._ears: deque[Ear] = deque()

    @property
    def topic(self) -> str:
        """The queue's name."""
        return self._protocol.topic

    @property
    def protocol(self) -> QueueProtocol:
        """What the queue does, for whoever does several things at once."""
        return self._protocol

    async def run(self, steps: Steps[T]) -> T:
        """Run an operation of :attr:`protocol`."""
        answer, error = None, None
        while True:
            try:
                ask = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            try:
                answer, error = await self._ask(ask), None
            except redis.RedisError as raised:
                error = raised

    async def _ask(self, ask: Ask) -> Any:
        call = ask.call
        if isinstance(call, Command):
            return await self._client.execute_command(*call.words)
        if isinstance(self._client, redis.asyncio.Redis):
            return await _exchange(self._client, call)
        return await _by_words(self._client, call)

    async def put(
        self,
        id: str | bytes,
        body: bytes,
        at: datetime | float | None = None,
        delay: float | timedelta | None = None,
        on_conflict: OnConflict | str = OnConflict.ERROR,
    ) -> None:
        """As :meth:`celery_delayq.DelayQueue.put`."""
        await self.run(self._protocol.put([put_of(self.topic, id, body, at, delay)], OnConflict(on_conflict)))

    async def put_many(
        self, jobs: Iterable[tuple[str | bytes, bytes, Any]], on_conflict: OnConflict | str = OnConflict.ERROR
    ) -> int:
        """As :meth:`celery_delayq.DelayQueue.put_many`."""
        puts = puts_of(self.topic, jobs)
        return await self.run(self._protocol.put(puts, OnConflict(on_conflict))) if puts else 0

    async def delete(self, id: str | bytes) -> bool:
        """As :meth:`celery_delayq.DelayQueue.delete`."""
        return await self.run(self._protocol.delete(checked_id(id)))

    async def move(
        self, id: str | bytes, at: datetime | float | None = None, delay: float | timedelta | None = None
    ) -> bool:
        """As :meth:`celery_delayq.DelayQueue.move`."""
        at_us, in_us = due_of(at, delay)
        return await self.run(self._protocol.move(Move(checked_id(id), at_us, in_us)))

    async def reserve(self, lease: float = LEASE, limit: int = 1, wait: float | None = 0) -> list[Job]:
        """As :meth:`celery_delayq.DelayQueue.reserve`."""
        protocol = self._protocol
        checked_limit(limit)
        deadline = None if wait is None else monotonic() + wait
        batch = await self.run(protocol.reserve(lease, limit))
        if batch.jobs or wait == 0:
            return batch.jobs
        async with self.listening() as ear:
            while True:
                batch = await self.run(protocol.reserve(lease, limit))  # anew: what came before was not heard
                if batch.jobs:
                    return batch.jobs
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return []
                rest = min(batch.wait, await self.run(protocol.rest()))
                await ear.listen(rest if left is None else min(rest, left))

    async def pull(self, limit: int = 1) -> list[Job]:
        """As :meth:`celery_delayq.DelayQueue.pull`."""
        return (await self.run(self._protocol.pull(checked_limit(limit)))).jobs

    async def due(self, lease: float = LEASE, wait: float | None = 0) -> AsyncIterator[Job]:
        """As :meth:`celery_delayq.DelayQueue.due`."""
        while jobs := await self.reserve(lease, wait=wait):
            for job in jobs:
                yield job

    def __aiter__(self) -> AsyncIterator[Job]:
        """As :meth:`due`."""
        return self.due()

    async def ack(self, *jobs: Job) -> None:
        """As :meth:`celery_delayq.DelayQueue.ack`."""
        await self._settle(self._protocol.ack(checked_jobs(jobs)))

    async def release(
        self, job: Job, at: datetime | float | None = None, delay: float | timedelta | None = None, reason: str = ""
    ) -> None:
        """As :meth:`celery_delayq.DelayQueue.release`."""
        await self._settle(self._protocol.release(checked_jobs([job]), due_of(at, delay), reason))

    async def extend(self, *jobs: Job, lease: float = LEASE) -> None:
        """As :meth:`celery_delayq.DelayQueue.extend`."""
        await self._settle(self._protocol.extend(checked_jobs(jobs), lease))

    async def _settle(self, steps: Steps[list[Job]]) -> None:
        gone = await self.run(steps)
        if gone:
            raise lost(gone)

    async def requeue(self, limit: int = 1000) -> int:
        """As :meth:`celery_delayq.DelayQueue.requeue`."""
        return await self.run(self._protocol.requeue(checked_limit(limit)))

    async def scheduled(
        self, start: datetime | float | None = None, end: datetime | float | None = None
    ) -> AsyncIterator[Job]:
        """As :meth:`celery_delayq.DelayQueue.scheduled`."""
        start_us, stop_us = range_of(start, end)
        behind: Place | None = None
        while True:
            page = await self.run(self._protocol.page(start_us, stop_us, behind))
            for job in found_of(page):
                yield job
            behind = page.end
            if not page.left:
                return

    async def dead(self) -> AsyncIterator[Dead]:
        """As :meth:`celery_delayq.DelayQueue.dead`."""
        behind: Place | None = None
        while True:
            page = await self.run(self._protocol.dead(behind))
            for job in page.jobs:
                yield job
            behind = page.end
            if not page.left:
                return

    async def revive(self, *ids: str | bytes) -> int:
        """As :meth:`celery_delayq.DelayQueue.revive`."""
        return await self.run(self._protocol.revive(checked_ids(ids))) if ids else 0

    async def discard(self, *ids: str | bytes) -> int:
        """As :meth:`celery_delayq.DelayQueue.discard`."""
        return await self.run(self._protocol.discard(checked_ids(ids))) if ids else 0

    async def stats(self) -> QueueLoad:
        """As :meth:`celery_delayq.DelayQueue.stats`; its ``waiting`` is what ``len`` says there."""
        return await self.run(self._protocol.load())

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Ear]:
        """What hears of jobs that became the earliest, for one caller at a time."""
        ear = self._ears.pop() if self._ears else Ear(self._client)
        try:
            await ear.attend(self._protocol.channels)
            yield ear
        except BaseException:
            await ear.close()
            raise
        self._ears.append(ear)

    async def aclose(self) -> None:
        """Close the connections that are the queue's own."""
        while self._ears:
            await self._ears.pop().close()
        if self._owns:
            await _close(self._client)

    async def __aenter__(self) -> DelayQueue:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Ear:
    """Listens to announcements."""

    def __init__(self, client: Any) -> None:
        self._pubsub = _pubsub_of(client)
        self._channels: set[str] = set()
        self._is_deaf = False

    async def attend(self, channels: list[str]) -> None:
        """Listen to *channels*. When this returns nothing that is said there escapes us any more."""
        wanted = set(channels) - self._channels
        if not wanted or self._is_deaf:
            return
        try:
            await self._pubsub.subscribe(*wanted)
            while not wanted <= self._channels:
                message = await self._pubsub.get_message(timeout=CONFIRMATION)
                if message is None:
                    raise redis.TimeoutError(f"Redis did not confirm the subscription to {channels[0]}")
                if message["type"] == "subscribe":
                    channel = message["channel"]
                    self._channels.add(channel.decode() if isinstance(channel, bytes) else channel)
        except NoPermissionError:
            self._is_deaf = True
            logger.warning(forbidden(channels[0]))

    async def listen(self, timeout: float) -> bool:
        """Return after *timeout* seconds, or when something was announced; whether that may be so."""
        if self._is_deaf:
            await asyncio.sleep(min(timeout, DEAF_POLL))
            return True
        return await self._pubsub.get_message(timeout=timeout) is not None

    async def close(self) -> None:
        """Hear nothing more."""
        await _close(self._pubsub)


async def _exchange(client: redis.asyncio.Redis, call: Call[T]) -> T:
    """As :class:`~celery_delayq.scripts.Prepared` does it, awaited."""
    pool = client.connection_pool
    own = client.connection  # of a client that keeps one for itself
    connection: Any = own or await pool.get_connection(*PURPOSE)
    sent = call.prepared

    async def say(command: bytes) -> Any:
        await connection.send_packed_command(command)
        return await connection.read_response(disable_decoding=True)

    async def exchange() -> Any:
        try:
            return await say(sent.command(call.args))
        except NoScriptError:
            return await say(sent.command(call.args, loads=True))

    async def failed(_: Exception) -> None:
        nonlocal sent
        sent = call.again or call.prepared
        await connection.disconnect()

    try:
        reply = await connection.retry.call_with_retry(exchange, failed)
    except ResponseError as error:
        call.prepared.explain(error)
        raise
    except BaseException:  # a reply may be on its way, and is nobody else's
        await connection.disconnect(nowait=True)
        raise
    finally:
        if own is None:
            await pool.release(connection)
    return call.read(reply)


async def _by_words(client: Any, call: Call[T]) -> T:
    """On a cluster's client, which finds the server by the keys."""
    try:
        try:
            reply = await client.execute_command(*call.prepared.words(call.args))
        except NoScriptError:
            reply = await client.execute_command(*call.prepared.words(call.args, loads=True))
    except ResponseError as error:
        call.prepared.explain(error)
        raise
    return call.read(reply)


def _client_of(url: str) -> Any:
    if not is_cluster_url(url):
        return redis.asyncio.Redis.from_url(url)
    cluster, _ = Cluster.from_url(url)
    nodes = [ClusterNode(node.host, node.port) for node in cluster.nodes]
    return redis.asyncio.RedisCluster(startup_nodes=nodes, **cluster.options)


def _pubsub_of(client: Any) -> Any:
    """Cluster clients of older redis-py have none; any node will do, for the cluster's bus reaches all."""
    if hasattr(client, "pubsub"):
        return client.pubsub()
    node = client.get_random_node()
    pool = redis.asyncio.ConnectionPool(connection_class=node.connection_class, **node.connection_kwargs)
    return redis.asyncio.Redis(connection_pool=pool).pubsub()


async def _close(one: Any) -> None:
    """redis-py before 5.0.1 calls it otherwise."""
    await (one.aclose() if hasattr(one, "aclose") else one.close())
