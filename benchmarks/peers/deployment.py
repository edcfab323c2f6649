"""One system on one server: somebody who puts jobs, workers, and what was run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import redis

from benchmarks.workers import wait_until
from celery_delayq.embedded import RedisServer

from .environment import PROGRAMS, Runtime
from .system import CONCURRENCY, RECOVER, System

#: Size (bytes) of what each job carries beside its id.
PAYLOAD_BYTES = 200

#: A job: its id, and when it is due (s).
Job = tuple[str, float]


def jobs(dues: Iterable[float]) -> list[Job]:
    """A new job for each due time."""
    return [(str(uuid.uuid4()), due) for due in dues]


class BrokenOff(Exception):
    """The run has been broken off: so one learns it who waits in a thread, where no signal arrives."""


class Deployment:
    """A system that has database 0 of *server* for itself, and records in database 1 what it has run.

    A context manager: the server is emptied and the program that puts jobs is started when it is entered.

    Args:
        hold: how long (s) each job takes.
        broken_off: set by who wants all waits for this system to end in :exc:`BrokenOff`.
    """

    def __init__(
        self,
        system: System,
        runtime: Runtime,
        server: RedisServer,
        *,
        hold: float = 0.0,
        broken_off: threading.Event | None = None,
    ) -> None:
        self.system = system
        self.server = server
        self._command = runtime.command
        self._environ = {
            **os.environ,
            **runtime.environ,
            "PEER_NAME": system.name,
            "PEER_BROKER": server.url(0),
            "PEER_RECORDS": server.url(1),
            "PEER_CONCURRENCY": str(CONCURRENCY),
            "PEER_RECOVER": str(RECOVER),
            "PEER_PAYLOAD": str(PAYLOAD_BYTES),
            "PEER_HOLD": str(hold),
        }
        self._broken_off = broken_off or threading.Event()
        self._broker: redis.Redis = server.client(0)
        self._records: redis.Redis = server.client(1)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed at our end
        self._producer: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Deployment:
        self._records.flushall()
        self._producer = self._start("put")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if isinstance(exc_info[1], Exception) and not isinstance(exc_info[1], BrokenOff):
            self._log.seek(0)
            print(f"\n{self.system.name}:\n{self._log.read()[-3000:].decode(errors='replace')}", file=sys.stderr)
        if self._producer is not None:
            self.kill(self._producer)
        self._log.close()
        self._records.close()
        self._broker.close()

    def pause(self, seconds: float) -> None:
        """Sleep.

        Raises:
            BrokenOff: the run ends before its time.
        """
        if self._broken_off.wait(seconds):
            raise BrokenOff

    def order(self, job: Job) -> None:
        """Have one job put, as soon as the producer comes to it."""
        self._tell(f"{job[0]} {job[1]!r}")

    def settle(self) -> None:
        """Wait until all that was ordered is put.

        Raises:
            RuntimeError: the producer has ended.
        """
        self._tell("")
        assert self._producer is not None
        assert self._producer.stdout is not None
        if self._producer.stdout.readline() != b"done\n":
            raise RuntimeError(f"the program that puts jobs into {self.system.name} has ended")

    def _tell(self, line: str) -> None:
        assert self._producer is not None
        assert self._producer.stdin is not None
        self._producer.stdin.write(line.encode() + b"\n")
        self._producer.stdin.flush()

    def put(self, batch: Iterable[Job]) -> None:
        """Put jobs, one by one."""
        for job in batch:
            self.order(job)
        self.settle()

    @contextmanager
    def cold_worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """A worker that may be far from ready; killed at the end."""
        process = self._start("work")
        try:
            yield process
        finally:
            self.kill(process)

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """A worker that has run a few jobs already, so all of it has started; killed at the end."""
        with self.cold_worker() as process:
            warming = jobs([time.time()] * 20)
            self.put(warming)
            wait_until(lambda: self.ran() >= len(warming), f"start of a worker of {self.system.name}", timeout=60)
            self.take_records()
            yield process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL a program with all of its children, unless that was done."""
        if process.returncode is None:
            # Its own session, so this reaches its children and nobody else.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def ran(self) -> int:
        """How many jobs have run to their end."""
        self.pause(0)
        return int(self._records.llen("records"))

    def records(self) -> list[tuple[str, float]]:
        """Id and start (s) of each run, in the order of their ends."""
        lines: list[Any] = self._records.lrange("records", 0, -1)
        return [(id, float(started)) for id, started in (line.decode().split() for line in lines)]

    def take_records(self) -> list[tuple[str, float]]:
        """The same; they are forgotten here."""
        records = self.records()
        self._records.flushdb()
        return records

    def all_ready(self) -> bool:
        """Whether no job waits for its time any more; False where that cannot be told."""
        waiting = self.system.waiting
        return waiting is not None and self._broker.execute_command(*waiting) == 0

    def _start(self, verb: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE if verb == "put" else subprocess.DEVNULL
        return subprocess.Popen(
            [*self._command, verb],
            cwd=PROGRAMS,
            env=self._environ,
            stdin=pipe,
            stdout=pipe if verb == "put" else self._log,
            stderr=self._log,
            start_new_session=True,
        )
