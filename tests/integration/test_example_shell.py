"""The shell example does what its README says; and what the shell and Python put and take are the same jobs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from celery_delayq.embedded import RedisServer
from celery_delayq.job import Job
from celery_delayq.keys import Keys
from celery_delayq.queue import DelayQueue
from tests.conftest import skip_or_fail

from .test_examples import TIMEOUT, Example
from .worker import wait_for

#: They show what other languages do; what the scripts ask of Redis is tested on every version elsewhere.
ONE_REDIS = True


class Shell(Example):
    """The example, in a copy of its folder."""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        super().__init__("shell", folder, server)
        if shutil.which("redis-cli", path=self._environment["PATH"]) is None:
            skip_or_fail("no redis-cli: apt install redis-tools")

    def shell(self, *command: str, code: int = 0, stdin: bytes = b"") -> str:
        """Run *command* to its end; returns what it has written."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout.decode()

    @contextmanager
    def consumer(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """One in the background; in the end it is told to stop, and has nothing against it."""
        with self.worker(["./consume.sh", "greetings", *command]) as consumer:
            yield consumer
            consumer.send_signal(signal.SIGTERM)
            assert consumer.wait(TIMEOUT) == 0, self.worker_log()


@pytest.fixture
def shell(server: RedisServer, tmp_path: Path) -> Shell:
    return Shell(tmp_path, server)


@pytest.fixture
def queue(server: RedisServer) -> Iterator[DelayQueue]:
    """Python's side of the topic."""
    with DelayQueue(server.url(), "greetings") as queue:
        yield queue


def test_the_commands_of_the_readme(shell: Shell, queue: DelayQueue) -> None:
    """One after the other as they stand there, they print what it shows; the Python worker runs what the shell has
    scheduled.
    """
    consume, jobs, start, schedule, look = shell.blocks("sh")
    printed, consumed = shell.blocks("text")
    with shell.worker(consume.split()) as consumer:
        assert shell.shell("sh", "-c", jobs) == printed
        shell.await_in_log("Hello Bob")
        wait_for(lambda: len(queue) == 0 and queue.stats().reserved == 0, "both jobs are done")
        os.killpg(consumer.pid, signal.SIGINT)  # as a terminal does
        assert consumer.wait(TIMEOUT) == 0
    assert shell.worker_log() == consumed
    with shell.worker(start.split()):
        shell.await_in_log("delayq dispatcher: ready")
        later = shell.shell("./schedule.sh", "tasks.greet", "3600", '["Bob"]').strip()
        id = shell.shell("sh", "-c", schedule).strip()
        listed = shell.shell("sh", "-c", look)  # the other one may have gone by then
        assert later in listed
        assert "tasks.greet" in listed
        shell.await_in_log("Good morning Ada")
        shell.await_in_log(f"Task tasks.greet[{id}] succeeded")
        assert later not in shell.worker_log()


def test_python_takes_what_the_shell_puts(shell: Shell, queue: DelayQueue) -> None:
    """Any bytes, by way of stdin; an id that waits is not put again."""
    body = bytes(range(256)) + b"\n\n"
    shell.shell("./put.sh", "greetings", 'it\'s "two\nlines" *', "0.25", stdin=body)
    assert shell.shell("./put.sh", "greetings", 'it\'s "two\nlines" *', "1", "other", code=1).endswith(
        "waits already\n"
    )
    (job,) = queue.reserve(wait=TIMEOUT)
    assert (job.id, job.body) == ('it\'s "two\nlines" *', body)
    assert shell.shell("./cancel.sh", "greetings", job.id) == f"{job.id} is cancelled\n"
    assert shell.shell("./cancel.sh", "greetings", job.id, code=1) == f"there is no {job.id}\n"


def ids(jobs: Sequence[Job]) -> list[object]:
    return [job.id for job in jobs]


def test_the_shell_takes_what_python_puts(shell: Shell, queue: DelayQueue) -> None:
    """In the order of due times; and what a dead consumer had."""
    queue.put("left", b"what the dead had")
    assert ids(queue.reserve(lease=0.001)) == ["left"]
    queue.put("second", b"two\n\nlines", delay=0.3)
    queue.put("first", b" one ", delay=0.2)
    with shell.consumer("sh", "-c", 'echo "($JOB"; cat; echo ")"'):
        shell.await_in_log("what the dead had")
        wait_for(lambda: queue.stats().reserved == 0, "all are done")
    assert shell.worker_log().startswith("(first\n one \n)\n(second\ntwo\n\nlines\n)\n(left\n")
    assert len(queue) == 0


def test_a_command_that_fails(shell: Shell, queue: DelayQueue) -> None:
    """The job waits again, for ten seconds, and has one attempt behind it."""
    queue.put("a", b"x")
    with shell.consumer("false"):
        shell.await_in_log("a failed, and comes back")
        wait_for(lambda: len(queue) == 1, "it waits again")
    assert queue.move("a")
    (job,) = queue.reserve(wait=TIMEOUT)
    assert job.attempts == 2


def test_a_stop_at_work(shell: Shell, queue: DelayQueue) -> None:
    """The job that it is at is brought to its end."""
    queue.put("a", b"x")
    with shell.consumer("sh", "-c", "echo begins; sleep 1; echo ends"):
        shell.await_in_log("begins")
    assert shell.worker_log() == "begins\nends\n"
    assert queue.stats().reserved == 0


def test_a_job_that_is_cancelled_at_work(shell: Shell, queue: DelayQueue) -> None:
    """Is told to who was at it."""
    queue.put("a", b"x")
    with shell.consumer("sh", "-c", "echo begins; sleep 1"):
        shell.await_in_log("begins")
        assert queue.delete("a")
    assert "a took too long, or was cancelled" in shell.worker_log()


def test_keys_of_a_newer_version(shell: Shell, server: RedisServer) -> None:
    """Are left alone."""
    with server.client() as client:
        for keys in (Keys("delayq", queue="greetings"), Keys("delayq")):
            client.set(keys.version, 9)
        for command in (
            ["put.sh", "greetings", "a", "1", "x"],
            ["cancel.sh", "greetings", "a"],
            ["schedule.sh", "t", "1"],
        ):
            said = shell.shell(f"./{command[0]}", *command[1:], code=1)
            assert "a version that this example does not know" in said
        assert client.dbsize() == 2


@pytest.mark.parametrize(
    "command",
    [
        ["put.sh"],
        ["put.sh", "greetings", "a", "soon", "x"],
        ["put.sh", "greetings", "a", "-1", "x"],
        ["put.sh", "greetings", "a", "1.2.3", "x"],
        ["put.sh", "a}b", "a", "1", "x"],
        ["put.sh", "", "a", "1", "x"],
        ["cancel.sh", "greetings"],
        ["consume.sh", "greetings"],
        ["schedule.sh", "t"],
        ["schedule.sh", 'a","b":"', "1"],
        ["schedule.sh", "t", "soon"],
    ],
)
def test_wrong_use(shell: Shell, server: RedisServer, command: list[str]) -> None:
    """Is told, and puts nothing."""
    assert shell.shell(f"./{command[0]}", *command[1:], code=1)
    with server.client() as client:
        assert client.dbsize() <= 1  # the version


def test_a_redis_that_is_away(shell: Shell, own_server: RedisServer, tmp_path: Path) -> None:
    """Is told; the consumer waits for it."""
    (tmp_path / "away").mkdir()
    away = Shell(tmp_path / "away", own_server)
    with away.consumer("cat"):
        away.shell("./put.sh", "greetings", "a", "0", "Hello Ada")
        away.await_in_log("Hello Ada")
        own_server.stop()
        assert "Could not connect" in away.shell("./put.sh", "greetings", "b", "0", "x", code=1)
        away.await_in_log("Could not connect")
        own_server.start()
        away.shell("./put.sh", "greetings", "b", "0", "Hello Bob")
        away.await_in_log("Hello Bob")
