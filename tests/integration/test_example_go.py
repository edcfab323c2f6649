"""The Go example does what its README says, and shares its jobs with Python."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from celery_delayq import DelayQueue
from celery_delayq.embedded import RedisServer

from .programs import Program, Programs
from .worker import ROOT, wait_for

#: It shows what other languages do; what the scripts ask of Redis is tested on every version elsewhere.
ONE_REDIS = True

FOLDER = ROOT / "examples" / "go"

#: Where Debian's packages put the source of libraries. To have redigo from elsewhere takes a network that CI may lack.
PACKAGED = Path("/usr/share/gocode")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built once. Where there is no Go it is skipped, also in CI, which does not install it."""
    if shutil.which("go") is None:
        pytest.skip("no Go: apt install golang-go golang-github-gomodule-redigo-dev")
    copy = tmp_path_factory.mktemp("example") / "go"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("delayq", "go.sum"))
    environment = {"CGO_ENABLED": "0", "GOCACHE": str(copy.parent / "cache"), "GOPATH": str(PACKAGED)}
    environment |= {"GO111MODULE": "off"} | os.environ
    command = ["go", "build", "-o", "delayq", "."]
    done = subprocess.run(
        command,
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    if "cannot find package" in done.stdout:
        pytest.skip("no redigo: apt install golang-github-gomodule-redigo-dev")
    assert done.returncode == 0, done.stdout
    return copy


@pytest.fixture
def go(folder: Path, server: RedisServer, tmp_path: Path) -> Programs:
    return Programs(folder, server.url(), tmp_path)


@pytest.fixture
def queue(server: RedisServer) -> Iterator[DelayQueue]:
    """Python's side of the topic."""
    with DelayQueue(server.url(), "greetings") as queue:
        yield queue


def test_the_commands_of_the_readme(go: Programs) -> None:
    """One after the other as they stand there, they print what it shows."""
    readme = (FOLDER / "README.md").read_text()
    blocks = re.findall(r"^```(sh|text)\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    printed, consumed = [text for language, text in blocks if language == "text"]
    _, [consume], commands = [text.splitlines() for language, text in blocks if language == "sh"]
    with go.background(*shlex.split(consume)) as consumer:
        consumer.await_lines("consuming")
        assert "".join(go.run(*shlex.split(command)) for command in commands) == printed
        consumer.await_lines("ada: Hello Ada")
        assert consumer.end(signal.SIGINT) == 0
        lines = [re.sub(r"\d+ ms", "N ms", line) for line in consumer.lines]
        assert lines == [*re.sub(r"\d+ ms", "N ms", consumed).splitlines(), "stopped"]


def test_a_killed_consumer(go: Programs, queue: DelayQueue) -> None:
    """Every job is done, those that the killed one had after their leases are over; ids and bodies are bytes."""

    def consumer(work: str) -> AbstractContextManager[Program]:
        return go.background("./delayq", "consume", "greetings", work, "3")

    with consumer("3600") as killed:
        killed.await_lines("consuming")
        queue.put_many([(f"job-{number}", b"done", None) for number in range(40)])
        killed.await_lines("begins", 4)
        with consumer("0.01") as other:
            other.await_lines(": done", 36)
            killed.end(signal.SIGKILL)
            other.await_lines(": done", 40)
            assert sorted(other.said(": done")) == sorted(f"job-{number}: done" for number in range(40))
            queue.put(b"two\nlines", "zwölf".encode())
            other.await_lines("lines: zwölf")
            wait_for(lambda: queue.stats().reserved == 0, "the last one is acked")
            assert other.end() == 0
    assert len(queue) == 0


def test_a_lost_lease_and_a_stop(go: Programs, queue: DelayQueue) -> None:
    """A consumer leaves what was taken from it; what it has not done it gives back, and that was no attempt."""
    with go.background("./delayq", "consume", "greetings", "3600", "3", "0.2") as consumer:
        consumer.await_lines("consuming")
        queue.put_many([("long", b"", None), ("deleted", b"", None)])
        consumer.await_lines("begins", 2)
        assert go.run("./delayq", "cancel", "greetings", "deleted") == "deleted is cancelled\n"
        consumer.await_lines("LEASE_LOST: deleted")
        assert consumer.end() == 0
        assert consumer.lines[-2:] == ["gives back long", "stopped"]
    (job,) = queue.reserve(limit=10)
    assert (job.id, job.attempts) == ("long", 1)
    go.run("./delayq", "put", "greetings", "new", "60", "body")
    assert "a job with the id new waits already" in go.run("./delayq", "put", "greetings", "new", "1", "x", code=1)
