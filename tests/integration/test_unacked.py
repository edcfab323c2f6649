"""Kombu's record of deliveries, as we write it: what stock Kombu writes, and what stock Kombu raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection
from kombu.transport.redis import Channel, QoS

from celery_delayq import unacked
from celery_delayq.bootstep import RecordStep
from celery_delayq.embedded import RedisServer
from celery_delayq.scripts import PURPOSE

HOSTILE = 'a"b\\c\n\x00é'


@contextmanager
def channel_of(server: RedisServer, *, joined: bool, **options: Any) -> Iterator[Channel]:
    with Connection(server.url(), transport_options=options) as connection:
        channel = connection.channel()
        if joined:
            unacked.join(channel)
        yield channel


def deliver(channel: Channel, tag: str) -> Any:
    """Send one message through a queue; get it."""
    channel.queue_declare("q")
    message = channel.prepare_message(HOSTILE, 3, "text/plain", "utf-8", {"h": HOSTILE}, {"delivery_mode": 2})
    channel.basic_publish(message, exchange="", routing_key="q")
    message["properties"]["delivery_tag"] = tag
    channel._purge("q")
    channel._put("q", message)
    return channel.basic_get("q")


def record(client: redis.Redis, prefix: str) -> tuple[Any, Any]:
    """What is written down, but for the moments."""
    return client.hgetall(f"{prefix}unacked"), client.zrange(f"{prefix}unacked_index", 0, -1)


@pytest.mark.parametrize("prefix", ["", "team:"])
def test_the_same_record(server: RedisServer, prefix: str) -> None:
    """Byte for byte; and nothing is left of it after an ack."""
    written, moments = [], []
    with server.client() as client:
        for joined in (False, True):
            with channel_of(server, joined=joined, global_keyprefix=prefix) as channel:
                assert (type(channel.qos) is QoS) is not joined
                got = deliver(channel, "tag-1")
                written.append(record(client, prefix))
                moments.append(client.zscore(f"{prefix}unacked_index", "tag-1"))
                assert "tag-1" in channel.qos._delivered
                channel.basic_ack(got.delivery_tag)
                assert record(client, prefix) == ({}, [])
                channel.qos._flush()
                assert not channel.qos._delivered
    assert written[0] == written[1]
    assert written[0][1] == [b"tag-1"]
    assert moments[1] == pytest.approx(moments[0], abs=60)


def test_what_a_worker_leaves_behind_is_restored(server: RedisServer) -> None:
    """Whoever restores messages of the dead, stock or not, finds ours."""
    with channel_of(server, joined=True) as channel:
        deliver(channel, "tag-1")
        channel.qos._delivered.clear()  # as if it had died
    with channel_of(server, joined=False) as channel, server.client() as client:
        channel.qos.restore_by_tag("tag-1")
        assert record(client, "") == ({}, [])
        assert channel._size("q") == 1


def full(client: redis.Redis) -> None:
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)


def hash_taken(client: redis.Redis) -> None:
    client.set("unacked", "mine")


def index_taken(client: redis.Redis) -> None:
    client.set("unacked_index", "mine")


@pytest.mark.parametrize("spoil", [full, hash_taken, index_taken])
def test_the_same_errors(own_server: RedisServer, spoil: Callable[[redis.Redis], None]) -> None:
    """Redis's refusals come out as redis-py's pipeline raises them, and the connection is whole after them."""
    raised = []
    with own_server.client() as client:
        for joined in (False, True):
            with channel_of(own_server, joined=joined) as channel:
                got = deliver(channel, "tag-1")
                channel.basic_ack(got.delivery_tag)
                client.delete("unacked", "unacked_index")
                spoil(client)
                with pytest.raises(redis.ResponseError) as caught:
                    channel.qos.append(got, "tag-2")
                raised.append(type(caught.value))
                client.config_set("maxmemory", 0)
                client.delete("unacked", "unacked_index")
                channel.qos.append(got, "tag-3")
                assert record(client, "")[1] == [b"tag-3"]
                channel.basic_ack("tag-3")
    assert raised[0] is raised[1]


def test_a_lost_connection(own_server: RedisServer) -> None:
    """Closed by the server before a record: written over another."""
    with channel_of(own_server, joined=True) as channel, own_server.client() as client:
        got = deliver(channel, "tag-1")
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        channel.basic_ack(got.delivery_tag)
        assert record(client, "") == ({}, [])


def test_closed_while_it_is_read(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another greenlet, which closes the channel: redis-py raises a ValueError then. It is a lost connection."""
    torn = []

    def tear(*args: Any, **options: Any) -> Any:
        if not torn:
            torn.append(True)
            raise ValueError("I/O operation on closed file.")
        return read(*args, **options)

    with channel_of(server, joined=True) as channel, server.client() as client:
        got = deliver(channel, "tag-1")
        pool = channel.qos._pool()
        connection = pool.get_connection(*PURPOSE)
        read = connection.read_response
        monkeypatch.setattr(connection, "read_response", tear)
        pool.release(connection)
        channel.qos.ack(got.delivery_tag)
        assert torn
        assert record(client, "") == ({}, [])


def test_redis_is_gone(own_server: RedisServer) -> None:
    """The consumer sees what it sees of stock Kombu, and connects anew."""
    with channel_of(own_server, joined=True) as channel:
        got = deliver(channel, "tag-1")
        own_server.stop()
        with pytest.raises(channel.connection_errors):
            channel.basic_ack(got.delivery_tag)
        channel.qos._delivered.clear()  # nothing to restore at the end, and nowhere to


def test_left_alone(server: RedisServer) -> None:
    """Channels without that record, and other transports', stay as they are."""
    with channel_of(server, joined=True, ack_emulation=False) as channel:
        assert not isinstance(channel.qos, QoS)
    with Connection("memory://") as connection:
        channel = connection.channel()
        before = type(channel.qos)
        unacked.join(channel)
        assert type(channel.qos) is before


def test_a_worker_has_it(app: Celery) -> None:
    """The step that joins it belongs to the consumers of an app with celery_delayq, and does it."""
    assert RecordStep in app.steps["consumer"]
    with app.connection_for_read() as connection:
        consumer = app.amqp.TaskConsumer(connection)  # as the step Tasks makes it
        step = RecordStep(SimpleNamespace())
        step.start(SimpleNamespace(task_consumer=consumer))
        assert type(consumer.channel.qos) is unacked.Record
        step.start(SimpleNamespace(task_consumer=consumer))
        assert type(consumer.channel.qos) is unacked.Record
