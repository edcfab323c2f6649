"""What a worker's dispatcher does when Redis goes and comes back: it goes on, and says so once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from kombu.exceptions import OperationalError

from celery_delayq.embedded import RedisServer

from .worker import Project, Worker, handed_over, wait_for


@pytest.fixture
def lasting_server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A server of each version that keeps its data over a restart."""
    with RedisServer(redis_server._program, ["--appendonly", "yes", "--appendfsync", "always"]) as server:
        yield server


def changes(worker: Worker) -> list[str]:
    """What the dispatcher has said about its connection: "ready", "lost", "back", in order."""
    words = {"delayq dispatcher: ready": "ready", "trying again": "lost", "working again": "back"}
    return [
        word
        for line in worker.log().splitlines()
        if "delayq dispatcher" in line
        for text, word in words.items()
        if text in line
    ]


def test_a_restart_of_redis_loses_and_doubles_nothing(lasting_server: RedisServer) -> None:
    """Tasks due before, during and after an outage are handed over once; one log line says lost, one says back."""
    server = lasting_server
    with Project(server.url()) as project, project.worker() as worker, server.client() as client:
        worker.await_ready()
        task_ids = [project.send(countdown=0.1 * number, queue="other") for number in range(1, 61)]
        wait_for(lambda: client.llen("other") >= 5, "the first are handed over")

        server.stop()
        worker.await_log("trying again, tasks wait safely")
        outage = time.monotonic()
        wait_for(lambda: time.monotonic() - outage > 3, "several attempts have failed")  # an outage has a length
        server.start()

        worker.await_log("working again")
        wait_for(lambda: client.llen("other") >= len(task_ids), "the rest is handed over")
        assert handed_over(client, "other") == dict.fromkeys(task_ids, 1)
        project.ledger.wait_for([project.send(countdown=0.1)])
        assert changes(worker) == ["ready", "lost", "back"]


def test_killed_connections_are_opened_again(server: RedisServer) -> None:
    """``CLIENT KILL`` of every connection while tasks fall due, twice: all are handed over, each loss is one line."""
    with Project(server.url()) as project, project.worker() as worker, server.client() as client:
        worker.await_ready()
        task_ids: list[str] = []
        for times in (1, 2):
            wanted = 20 * times
            task_ids += [project.send(countdown=0.05 * number, queue="other") for number in range(1, 21)]
            connections = len(client.client_list())
            wait_for(lambda: client.llen("other") >= wanted - 15, "the first are handed over")  # noqa: B023
            client.client_kill_filter(_type="pubsub")
            client.client_kill_filter(_type="normal")
            worker.await_log("working again", times)
            wait_for(lambda: client.llen("other") >= wanted, "the rest is handed over")  # noqa: B023

        assert handed_over(client, "other") == dict.fromkeys(task_ids, 1)
        project.ledger.wait_for([project.send(countdown=0.1)])
        assert changes(worker) == ["ready"] + ["lost", "back"] * 2
        assert len(client.client_list()) <= connections + 1  # none was left behind


def test_flushed_scripts_are_loaded_again(server: RedisServer) -> None:
    """``SCRIPT FLUSH`` between and during puts and dispatches is noticed by nobody."""
    with Project(server.url()) as project, project.worker() as worker, server.client() as client:
        worker.await_ready()
        task_ids = []
        for number in range(1, 41):
            task_ids.append(project.send(countdown=0.03 * number))
            client.script_flush()
        while set(task_ids) - set(project.ledger.runs()):
            client.script_flush()
            wait_for(client.ping, "Redis answers")

        assert project.ledger.runs() == dict.fromkeys(task_ids, 1)
        assert changes(worker) == ["ready"]


def test_a_master_that_was_demoted_is_asked_again(own_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """While Redis is a read-only replica, due tasks wait; when it takes writes again they are handed over, once."""
    with Project(own_server.url()) as project, own_server.client() as client:
        caplog.set_level("INFO", "celery_delayq")
        dispatcher = project.app.delayq.dispatcher()
        dispatcher.start()
        try:
            task_ids = [project.send(countdown=0.5, queue="other") for _ in range(10)]
            client.replicaof("127.0.0.1", "1")
            wait_for(lambda: "trying again" in caplog.text, "it was refused")
            assert client.llen("other") == 0
            client.replicaof("NO", "ONE")
            wait_for(lambda: client.llen("other") == len(task_ids), "all are handed over")
            wait_for(lambda: "working again" in caplog.text, "it says so")
        finally:
            dispatcher.stop()

        assert handed_over(client, "other") == dict.fromkeys(task_ids, 1)
        assert caplog.text.count("trying again") == 1


def test_a_worker_started_without_redis_begins_when_it_comes(lasting_server: RedisServer) -> None:
    """The order of starting does not matter: a worker without Redis says so once, and dispatches once it is there."""
    server = lasting_server
    with Project(server.url()) as project:
        task_id = project.send(countdown=0.5)
        server.stop()
        with project.worker() as worker:
            worker.await_log("trying again, tasks wait safely")
            worker.await_log("Cannot connect to redis", 2)
            server.start()
            project.ledger.wait_for([task_id])
            assert changes(worker) == ["lost", "back"]


def test_a_producer_survives_a_restart(lasting_server: RedisServer) -> None:
    """A put right after a restart goes through on a new connection, once, under Celery's own publish retry policy."""
    server = lasting_server
    with Project(server.url()) as project:
        first = project.send(countdown=600)
        server.stop()
        server.start()
        second = project.send(countdown=600)

        with server.client() as client:
            assert {first.encode(), second.encode()} == set(client.zrange("delayq:{0}:schedule:celery", 0, -1))


def test_a_producer_says_when_redis_is_gone(lasting_server: RedisServer) -> None:
    """With Redis gone, a put raises what a plain publish raises, and leaves nothing behind that would run later."""
    server = lasting_server
    with Project(server.url(), task_publish_retry=False) as project:
        kept = project.send(countdown=600)
        server.stop()
        raised = []
        for options in ({}, {"countdown": 600}):
            with pytest.raises((OSError, redis.RedisError, OperationalError)) as caught:
                project.send(**options)
            raised.append(caught.type)
        server.start()

        assert raised[0] is raised[1]
        with server.client() as client:
            assert client.zrange("delayq:{0}:schedule:celery", 0, -1) == [kept.encode()]
