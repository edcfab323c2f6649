"""A master that fails over to its replica under Sentinel: what waits is there, and is run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from celery_delayq.embedded import RedisServer, free_port

from .worker import Project, newest_redis, wait_for

MASTER = "main"


@contextmanager
def sentinel(master: RedisServer, folder: Path) -> Iterator[redis.Redis]:
    """A Sentinel that watches *master*, alone and impatient; a client of it."""
    program = shutil.which("redis-sentinel")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no redis-sentinel: apt install redis-sentinel")
    port = free_port()
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder}/sentinel.log\n"
        f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds {MASTER} 500\n"
        f"sentinel failover-timeout {MASTER} 4000\n"
    )
    process = subprocess.Popen([program, str(config)], stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        with redis.Redis(port=port) as client:
            wait_for(lambda: answers(client), "Sentinel answers")
            yield client
    finally:
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def is_master(client: redis.Redis) -> bool:
    """Whether a server leads. One that is being promoted cuts its clients off."""
    try:
        return bool(client.info("replication")["role"] == "master")
    except redis.ConnectionError:
        return False


def test_tasks_outlive_a_failover(tmp_path: Path) -> None:
    """Tasks put before the master's death, and those put after it, run once each from the promoted replica."""
    with ExitStack() as stack:
        master = stack.enter_context(newest_redis())
        replica = stack.enter_context(newest_redis(["--replicaof", "127.0.0.1", str(master.port)]))
        watcher = stack.enter_context(sentinel(master, tmp_path))
        wait_for(lambda: watcher.execute_command("SENTINEL", "REPLICAS", MASTER), "Sentinel has found the replica")
        project = stack.enter_context(
            Project(
                f"sentinel://127.0.0.1:{watcher.connection_pool.connection_kwargs['port']}/0",
                broker_transport_options={"master_name": MASTER, "socket_timeout": 5},
            )
        )
        worker = stack.enter_context(project.worker())
        worker.await_ready()
        early = [project.send(countdown=0.3), project.send(countdown=0.6)]
        project.ledger.wait_for(early)

        before = [project.send(countdown=5 + number / 10) for number in range(20)]
        with master.client() as client:
            assert client.wait(1, 10_000) == 1
        master.stop()
        with replica.client() as client:
            wait_for(lambda: is_master(client), "the replica is promoted")
        worker.await_log("working again")
        after = [project.send(countdown=0.3) for _ in range(5)]

        project.ledger.wait_for(before + after)
        assert project.ledger.runs() == dict.fromkeys(early + before + after, 1)
        assert worker.said("trying again, tasks wait safely") == 1
