"""Runs the measured app: a worker process on a database of its own, and what its tasks recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil
import redis
from celery import Celery, Task

from celery_delayq.embedded import RedisServer

from .apps import ENVIRONMENT, RECORDS, make_app


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 120.0) -> None:
    """Look every 50 ms whether *condition* holds.

    Raises:
        TimeoutError: it did not within *timeout* seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(0.05)


class Bench:
    """One app, its broker database, and its records.

    Args:
        number: tells benches on one server apart.
        delayq: whether the app has celery_delayq.
        conf: more of the app's configuration.
        broker_url: a broker elsewhere; then the server has the records only.

    Attributes:
        arguments: of :func:`~benchmarks.apps.make_app`, for other processes.
    """

    def __init__(
        self,
        server: RedisServer,
        number: int,
        *,
        delayq: bool,
        conf: dict[str, Any] | None = None,
        broker_url: str | None = None,
    ) -> None:
        self.name = "delayq" if delayq else "native"
        self.arguments: dict[str, Any] = {
            "broker_url": broker_url or server.url(2 * number),
            "records_url": server.url(2 * number + 1),
            "delayq": delayq,
            "conf": conf or {},
        }
        self.app: Celery = make_app(**self.arguments)
        self.broker: redis.Redis = server.client(2 * number)
        self._records: redis.Redis = server.client(2 * number + 1)

    def task(self, name: str) -> Task:
        return self.app.tasks[f"benchmarks.{name}"]

    def worker(self, *options: str) -> Worker:
        """A worker process of this app, not started."""
        return Worker(self, options)

    def recorded(self) -> int:
        """How many records there are."""
        return int(self._records.llen(RECORDS))

    def take_records(self) -> list[bytes]:
        """All records so far; they are forgotten here."""
        with self._records.pipeline() as pipe:
            pipe.lrange(RECORDS, 0, -1)
            pipe.delete(RECORDS)
            records, _ = pipe.execute()
        return list(records)


class Worker:
    """A worker process as a context manager; ready for tasks when it is entered."""

    def __init__(self, bench: Bench, options: tuple[str, ...]) -> None:
        self._bench = bench
        self._command = [sys.executable, "-m", "celery", "-A", "benchmarks.apps", "worker", "-l", "WARNING"]
        # What workers tell each other is none of what is measured, and mingling delays each start by a second.
        self._command += ["--without-gossip", "--without-mingle", "-n", f"{bench.name}-{id(self):x}@%h", *options]
        self._environment = {**os.environ, ENVIRONMENT: json.dumps(bench.arguments)}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Worker:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            cwd=Path(__file__).resolve().parent.parent,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            self._warm_up()
        except BaseException:
            self._stop()
            raise
        return self

    def _warm_up(self, tasks: int = 40) -> None:
        """Run a few tasks, so that every child has started, imported and connected."""
        assert self._process is not None
        before = self._bench.recorded()
        for number in range(tasks):
            self._bench.task("mark").apply_async((number,))

        def warm() -> bool:
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"the {self._bench.name} worker ended:\n{self.log()}")
            return self._bench.recorded() >= before + tasks

        wait_until(warm, f"start of a {self._bench.name} worker", timeout=60)
        self._bench.take_records()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def rss(self) -> int:
        """Resident memory (bytes) of the process and its children. Shared pages count in each."""
        assert self._process is not None
        master = psutil.Process(self._process.pid)
        return sum(int(process.memory_info().rss) for process in (master, *master.children(recursive=True)))

    def log(self) -> str:
        """The last of what the worker wrote."""
        assert self._log is not None
        self._log.seek(0)
        return self._log.read()[-3000:].decode(errors="replace")

    def kill(self) -> None:
        """SIGKILL the process and its children, as the kernel does it that is out of memory."""
        if self._process is not None:
            # Its own session, so this reaches its children and nobody else.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def end(self) -> None:
        """Have it end as a deploy does, with SIGTERM; one that does not end is killed."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def _stop(self) -> None:
        self.end()
        if self._log is not None:
            self._log.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            print(f"log of the {self._bench.name} worker:\n{self.log()}", file=sys.stderr)
        self._stop()
