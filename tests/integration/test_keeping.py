"""The connection that a publishing process keeps at hand: one, whole, its own, and no more than stock Celery has."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
from celery import Celery
from redis.sentinel import Sentinel

from celery_delayq.embedded import RedisServer
from celery_delayq.keeping import Keeping, can_keep
from celery_delayq.scripts import PURPOSE

from .conftest import Inside


@pytest.fixture
def keeping(server: RedisServer) -> Iterator[Keeping]:
    pool = redis.ConnectionPool.from_url(server.url(), protocol=2)
    with closing(pool):
        yield Keeping(pool)


def number_of(connection: Any) -> int:
    """The number that the server gave a connection."""
    connection.send_command("CLIENT", "ID")
    number: int = connection.read_response()
    return number


def test_the_last_one_is_kept(keeping: Keeping) -> None:
    """Who gives one back gets it again; who needs two gets two; one is kept."""
    first = keeping.get_connection(*PURPOSE)
    number = number_of(first)
    keeping.release(first)
    assert number_of(keeping.get_connection(*PURPOSE)) == number
    second = keeping.get_connection(*PURPOSE)
    assert number_of(second) != number

    keeping.release(first)
    keeping.release(second)
    assert keeping.pool.get_connection(*PURPOSE) in (first, second)
    keeping.give_back()
    keeping.give_back()
    assert keeping.pool.get_connection(*PURPOSE) in (first, second)


def test_pools_that_keep_their_own(server: RedisServer) -> None:
    """Credentials are renewed on connections that the pool has; who may have one connection may need it elsewhere."""
    provider = redis.UsernamePasswordCredentialProvider("default", "")
    for pool, kept in (
        (redis.ConnectionPool.from_url(server.url()), True),
        (redis.ConnectionPool.from_url(server.url(), credential_provider=provider), False),
        (redis.ConnectionPool.from_url(server.url(), max_connections=1), False),
        (Sentinel([("127.0.0.1", 1)]).master_for("m").connection_pool, False),
    ):
        assert can_keep(pool) is kept


def test_one_that_the_server_closed(keeping: Keeping, server: RedisServer) -> None:
    """It is opened again before anything is sent: a put that may not be retried is not lost by it."""
    kept = keeping.get_connection(*PURPOSE)
    number = number_of(kept)
    keeping.release(kept)
    with server.client() as client:
        client.execute_command("CLIENT", "KILL", "ID", number)

    again = keeping.get_connection(*PURPOSE)

    assert again is kept
    assert number_of(again) != number


def test_one_with_an_unread_reply(keeping: Keeping) -> None:
    """What nobody has read is nobody else's answer."""
    kept = keeping.get_connection(*PURPOSE)
    kept.send_command("ECHO", "stray")
    assert kept.can_read(timeout=10)
    keeping.release(kept)

    kept = keeping.get_connection(*PURPOSE)
    kept.send_command("ECHO", "mine")

    assert kept.read_response() == b"mine"


def test_a_child_of_a_fork_has_its_own(keeping: Keeping) -> None:
    """Parent and child never read each other's replies."""
    kept = keeping.get_connection(*PURPOSE)
    number = number_of(kept)
    keeping.release(kept)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:  # pragma: no cover  # coverage does not follow it
        try:
            mine = keeping.get_connection(*PURPOSE)
            os.write(writer, b"%d" % number_of(mine))
            keeping.release(mine)
            keeping.give_back()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        assert int(said.read()) != number
    assert number_of(keeping.get_connection(*PURPOSE)) == number


def test_a_publisher_has_as_many_as_stock_celery(make_app: Callable[..., Celery], own_server: RedisServer) -> None:
    """Delayed or not, in any order."""
    found = []
    with own_server.client() as client:
        for joined in (False, True):
            # Another database, another pool of Kombu's.
            app = make_app(broker_url=own_server.url(int(joined)), joined=joined)
            before = len(client.client_list())
            for delay in (0, 60, 60, 0, 60, 0, 0, 60, 0):
                app.send_task("t", countdown=delay)
            found.append(len(client.client_list()) - before)

    assert found[0] == found[1] > 0


def test_a_lost_connection_costs_no_task(make_app: Callable[..., Celery], own_server: RedisServer) -> None:
    """Closed by the server between two puts; the publisher retries nothing."""
    app = make_app(broker_url=own_server.url())
    for number in range(5):
        app.send_task("t", countdown=60, task_id=f"t{number}", retry=False)
        with own_server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    assert app.delayq.count() == 5


def test_threads_with_one_producer(app: Celery, inside: Inside) -> None:
    """Nobody should; but where stock Celery lets them, so do we."""
    failures: list[BaseException] = []

    def send(name: str) -> None:
        try:
            for number in range(100):
                app.send_task("t", countdown=60 * (number % 3), task_id=f"{name}-{number}", producer=producer)
        except BaseException as error:  # noqa: BLE001  # whatever a thread met
            failures.append(error)

    with app.producer_pool.acquire(block=True) as producer:
        app.send_task("t", countdown=60, producer=producer)
        threads = [threading.Thread(target=send, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert failures == []
    assert len(inside.ready()) == 4 * 34
    assert len(inside.waiting()) == 4 * 66 + 1
