"""Under which circumstances figures were made: machine, versions, command, load. They are kept beside the figures."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from celery_delayq.version import __version__

ROOT = Path(__file__).resolve().parent.parent

#: What is measured, and what measures: a change elsewhere makes no other figures.
MEASURED = ("benchmarks", "celery_delayq", "lua")


@dataclass(frozen=True)
class Machine:
    """What the figures were made on.

    Attributes:
        processor: its model.
        cores: as the operating system counts them.
        memory: in GB (2**30 bytes).
        system: operating system and kernel.
    """

    processor: str
    cores: int
    memory: float
    system: str

    @classmethod
    def here(cls) -> Machine:
        memory = psutil.virtual_memory().total / 2**30
        return cls(_processor(), os.cpu_count() or 1, round(memory, 1), _system())

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.memory:g} GB, {self.system}"


@dataclass(frozen=True)
class Circumstances:
    """Those of one benchmark.

    Attributes:
        command: what was typed.
        begun: when it began (ISO 8601, UTC).
        seconds: how long it took.
        machine: what it ran on.
        versions: of the software, name -> version.
        commit: of the checkout, with a ``+`` if what is measured was changed since; "" if it is none.
        load: the load average of the minute before it.
        steal: how much of the processor's time (%) other guests of the same host took meanwhile; None where unknown.
        quick: whether it took a short time only, so that its figures are rough.
    """

    command: str
    begun: str
    seconds: float
    machine: Machine
    versions: dict[str, str]
    commit: str
    load: float
    steal: float | None
    quick: bool

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def burden(self) -> str:
        """How long it took, and what else the machine had to do."""
        steal = "unknown" if self.steal is None else f"{self.steal:.1f} %"
        return f"{self.seconds:.0f} s (load before {self.load:.2f}, stolen {steal})"

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Circumstances:
        return cls(**{**found, "machine": Machine(**found["machine"])})


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds of all cores since the machine was started: all of them, and those that other guests took."""

    total: float
    stolen: float | None

    @classmethod
    def now(cls) -> ProcessorTime:
        spent = psutil.cpu_times()._asdict()
        # The time of guests of our own is within that of users already.
        total = sum(seconds for kind, seconds in spent.items() if not kind.startswith("guest"))
        return cls(total, spent.get("steal"))

    def stolen_since(self, before: ProcessorTime) -> float | None:
        """Which share (%) of the time since *before* was stolen; None where the system does not tell."""
        if self.stolen is None or before.stolen is None or self.total <= before.total:
            return None
        return round(100 * (self.stolen - before.stolen) / (self.total - before.total), 2)


def versions(redis_version: str) -> dict[str, str]:
    """Those of the software that has a part in the figures."""
    packages = {"Celery": "celery", "Kombu": "kombu", "redis-py": "redis"}
    return {
        "celery_delayq": __version__,
        "Redis": redis_version,
        "Python": platform.python_version(),
        **{name: version(package) for name, package in packages.items()},
    }


def named(versions: dict[str, str]) -> str:
    """*versions* in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def commit() -> str:
    """The checkout's commit, see :attr:`Circumstances.commit`."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}+" if _git("status", "--porcelain", "--", *MEASURED) else head
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    """Its model, where the system tells; else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()
    kernel = platform.release().partition("-")[0]  # the rest is whoever built it
    return f"{name}, {platform.system()} {kernel}"
