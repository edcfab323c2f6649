"""The processes of a storm: started, killed, stopped and resumed by name."""

from __future__ import annotations

import glob
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from tests.integration.worker import ROOT

#: What every participant imports: the server that forks them has done it once for all.
PRELOADED = ["celery.bin.worker", "celery.apps.worker", "celery.concurrency.prefork", "celery.concurrency.thread"]
PRELOADED += ["celery.concurrency.solo", "kombu.transport.redis", "celery_delayq", "celery_delayq.command"]


def faketime() -> str | None:
    """The library that shifts a process's clock; None where there is none."""
    return next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), None)


@dataclass(frozen=True)
class Role:
    """What a participant is.

    Attributes:
        name: of this one only.
        group: "producer", "worker" or "dispatcher".
        rack: whose network it has.
        module, arguments: it runs as ``python -m module arguments``.
        environment: what it gets beside ours.
        clock: how far its clock is off, as faketime writes it; the monotonic one is right.
        is_fresh: it imports everything anew: its monkey patches, or its clock, must come first.
    """

    name: str
    group: str
    rack: str
    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    clock: str = ""
    is_fresh: bool = False


class Process(Protocol):
    """One that was started."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> object: ...


class Forked:
    """A process that was forked, in the manner of one that was executed."""

    def __init__(self, process: BaseProcess) -> None:
        process.start()
        self._process = process
        self.pid: int = process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> object:
        self._process.join(timeout)
        return self._process.exitcode


def run_module(module: str, arguments: tuple[str, ...], environment: dict[str, str], log: str) -> None:
    """What a forked participant does: as if it had been started from a shell."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Participant:
    """One place in the system; whoever is killed there is followed by another.

    Attributes:
        incarnation: how many were started.
        deaths: incarnation -> when it was killed, or found to have ended (s, monotonic).
        dying: incarnation -> since when it may have been dead: just before it was killed, or when it was last seen to
            live.
        dismissed: incarnation -> when it was told to end.
    """

    def __init__(self, role: Role, folder: Path) -> None:
        self.role = role
        self.incarnation = 0
        self.deaths: dict[int, float] = {}
        self.dying: dict[int, float] = {}
        self.dismissed: dict[int, float] = {}
        self._seen = 0.0
        self.log = folder / f"{role.name}.log"
        self._process: Process | None = None
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(PRELOADED)

    def start(self) -> None:
        """Start the next incarnation; nothing happens while one lives."""
        if self._process is not None:
            return
        self.incarnation += 1
        role = self.role
        self._seen = time.monotonic()
        environment = {**role.environment, "PYTHONPATH": str(ROOT), "STORM_INCARNATION": str(self.incarnation)}
        if role.clock:
            environment |= {"LD_PRELOAD": faketime() or "", "FAKETIME": role.clock}
            environment |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
        if not role.is_fresh:
            arguments = (role.module, role.arguments, environment, str(self.log))
            self._process = Forked(self._forks.Process(target=run_module, args=arguments))
            return
        with self.log.open("ab") as log:
            shifted = ["tests.chaos.storm.shifted"] if role.clock else []
            self._process = subprocess.Popen(
                [sys.executable, "-m", *shifted, role.module, *role.arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:  # so young that it has no group of its own yet, or gone already
                with suppress(ProcessLookupError):
                    os.kill(self._process.pid, number)

    @property
    def lives(self) -> bool:
        """Whether one was started that nobody has killed."""
        return self._process is not None

    def kill(self) -> None:
        """SIGKILL for it and all of its children, if there is one."""
        if self._process is not None:
            self.dying.setdefault(self.incarnation, time.monotonic())
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
            self.deaths[self.incarnation] = time.monotonic()

    def stop(self) -> int:
        """SIGSTOP; returns the incarnation that was hit."""
        self._signal(signal.SIGSTOP)
        return self.incarnation

    def resume(self, incarnation: int) -> None:
        """SIGCONT, if that incarnation still lives."""
        if incarnation == self.incarnation:
            self._signal(signal.SIGCONT)

    def dismiss(self) -> None:
        """SIGTERM: it may finish what it has begun."""
        self.dismissed.setdefault(self.incarnation, time.monotonic())
        self._signal(signal.SIGTERM)

    def end(self, timeout: float) -> bool:
        """Wait until one that was dismissed has ended. False: it had to be killed."""
        if self._process is None:
            return True
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        ended = self._process.poll() is not None
        self.kill()
        return ended

    def has_ended(self) -> bool:
        """Whether it is gone though nobody killed it; then the next one may be started."""
        seen, self._seen = self._seen, time.monotonic()
        if self._process is None or self._process.poll() is None:
            return False
        if self.incarnation not in self.dismissed:
            self.dying[self.incarnation] = seen
        self.kill()  # its children
        return True

    def said(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def last_words(self, lines: int = 60) -> str:
        """The end of its log."""
        return "\n".join(self.said().splitlines()[-lines:])

    def tracebacks(self) -> Iterator[str]:
        """Those in its log."""
        found: list[str] = []
        for line in self.said().splitlines():
            if line.startswith("Traceback (most recent call last)"):
                found = [line]
            elif found:
                found.append(line)
                if not line.startswith(" "):
                    yield "\n".join(found)
                    found = []
