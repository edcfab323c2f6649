"""The comparison with other job systems: what of it needs none of them."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.conditions import Conditions
from benchmarks.peers import comparison, rows
from benchmarks.peers.counts import Counts, Survival
from benchmarks.peers.environment import PROGRAMS, Unavailable, prepare
from benchmarks.peers.system import System
from benchmarks.peers.turns import Burst, Turn
from benchmarks.report import Row

REDIS = (7, 0, 15)
OURS, PEER = comparison.OURS, comparison.HUEY
SYSTEMS = (OURS, *comparison.PEERS)


def turn(late: float, run: float = 1.0, ready: float | None = 0.1, missing: int = 0) -> Turn:
    """One with a stream of a hundred jobs, the earliest as late as this (ms), and that burst."""
    return Turn(tuple(late + number for number in range(100)), Burst(ready, run, missing))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the path; it is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!{sys.executable}\n{text}\n")
    (folder / name).chmod(0o755)


class TestSkipping:
    def test_an_old_redis(self, tmp_path: Path) -> None:
        """No environment is made for a system that this Redis is too old for."""
        with pytest.raises(Unavailable, match=r"needs Redis 7\.0 or newer, and this is 6\.2\.14"):
            prepare(comparison.CELERY_REDIS_PLUS, tmp_path, (6, 2, 14))
        assert not list(tmp_path.iterdir())

    def test_no_such_python(self, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither on the path nor kept by pyenv."""
        monkeypatch.setenv("PYENV_ROOT", str(path))
        future = System("Future", "with_huey.py", ("huey",), oldest_python=(3, 99))
        with pytest.raises(Unavailable, match=r"needs Python 3\.99 or newer, and none is found"):
            prepare(future, tmp_path, REDIS)

    def test_no_npm(self, tmp_path: Path, path: Path) -> None:
        with pytest.raises(Unavailable, match="no node on the path"):
            prepare(comparison.BULLMQ, tmp_path, REDIS)
        program(path, "node", "")
        with pytest.raises(Unavailable, match="no npm on the path"):
            prepare(comparison.BULLMQ, tmp_path, REDIS)

    def test_no_registry(self, tmp_path: Path, path: Path) -> None:
        """What npm says stands in the reason, and the next run tries again."""
        program(path, "node", "")
        failing = "import sys; sys.exit('warn: none of your business\\nnpm error code ENOTFOUND')"
        program(path, "npm", failing)
        for _ in range(2):
            with pytest.raises(Unavailable, match="^npm fails: npm error code ENOTFOUND$"):
                prepare(comparison.BULLMQ, tmp_path, REDIS)

    def test_all_others(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each that cannot be had gets a row with the reason; the run goes on with those that can."""

        def found(system: System, folder: Path, _redis: object) -> str:
            if system is PEER:
                raise Unavailable("no such luck")
            return f"{folder}/{system.name}"

        monkeypatch.setattr(comparison, "prepare", found)
        runtimes, skipped = comparison._prepared(Conditions("redis-server", environments=tmp_path))
        assert skipped == {PEER: Row("peers", "SKIPPED", "", "Huey: no such luck")}
        assert list(runtimes) == [system for system in SYSTEMS if system is not PEER]
        assert runtimes[OURS] == f"{tmp_path}/celery_delayq"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_programs(system: System) -> None:
    """Each system has one, and it can be compiled."""
    found = PROGRAMS / system.program
    if found.suffix == ".py":
        compile(found.read_text(), found, "exec")
    elif node := shutil.which("node"):
        subprocess.run([node, "--check", found], check=True)
    else:
        pytest.skip("no node to check it with")


class TestRows:
    def test_who_is_better(self) -> None:
        """It shows, where all turns agree; every ratio is ours to theirs, less is better."""
        found = rows.timed(PEER, [turn(10.0), turn(20.0, run=3.0)], [turn(5.0), turn(5.0)], 1000)
        p50, _, earliest, _, burst = found
        assert p50.ratio is not None
        assert p50.ratio.least == pytest.approx(59.5 / 54.5)
        assert p50.compared == "Huey 54.50 (54.50 to 54.50) (better)"
        assert (earliest.ours, earliest.compared) == ("10.00", "Huey 5.00")
        assert burst.ratio is not None
        assert (burst.ratio.least, burst.ratio.greatest) == (1.0, 3.0)
        assert burst.compared == "Huey 1.00 (1.00 to 1.00)"

    def test_early_jobs(self) -> None:
        """Who starts jobs before their time has no lateness to divide by, and it is said."""
        p50, p99, earliest, *_ = rows.timed(PEER, [turn(1.0)], [turn(-40.0)], 1000)
        assert p50.ratio is p99.ratio is None
        assert p50.compared.endswith("; but early")
        assert earliest.compared == "Huey -40.00"

    def test_what_cannot_be_told(self) -> None:
        """A burst whose moment of readiness is hidden, and that did not come to its end."""
        *_, ready, run = rows.timed(PEER, [turn(1.0)], [turn(1.0, run=60.0, ready=None, missing=1200)], 2000)
        assert ready.compared == "Huey: cannot be told from outside"
        assert run.compared.endswith("; up to 1,200 had not even then")

    def test_counts(self) -> None:
        """Memory and idle commands as ratios, SIGKILL in numbers; a bar for each system."""
        ours, theirs = Counts(500.0, 4.0, Survival(0, 0, 12.0)), Counts(1000.0, 0.0, Survival(7, 2, math.nan))
        memory, idle, kill = rows.counted(PEER, ours, theirs, 5000, 300, 90.0)
        assert memory.ratio is not None
        assert memory.ratio.median == 0.5
        assert idle.ratio is None
        assert (kill.ours, kill.compared) == ("0; 0; 12 s", "Huey 7; 2; nan s")
        assert [(line.plot, line.label, line.y) for line in rows.counted_lines(OURS, ours)] == [
            ("peers-memory", "celery_delayq", (500.0,)),
            ("peers-idle", "celery_delayq", (4.0,)),
        ]

    def test_lines(self) -> None:
        """The lateness of all turns together, in order; a point for each turn's burst."""
        lateness, burst = rows.timed_lines(PEER, [turn(0.0, run=1.0), turn(100.0, run=2.0)])
        assert lateness.y[0] == 0.5
        assert lateness.y[-1] == 99.9
        assert lateness.x[0] == 1.0
        assert lateness.x[-1] == 199.0
        assert list(lateness.x) == sorted(lateness.x)
        assert burst.y == (1.0, 2.0)


class TestCommand:
    def test_only_by_name(self) -> None:
        """It takes long and fetches packages, so it is not among all."""
        assert "peers" in command.ON_REQUEST
        assert "peers" not in command.BENCHMARKS

    def test_environments(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The folder that is named arrives, and rows that failed show in the exit code."""
        seen = []

        def run(conditions: Conditions) -> list[Row]:
            seen.append(conditions.environments)
            return [rows.failed(PEER, "its worker did not start")]

        monkeypatch.setitem(command.ON_REQUEST, "peers", run)
        monkeypatch.setattr(sys, "argv", ["benchmarks", "peers", "--redis", "none", "--environments", str(tmp_path)])
        assert command.main() == 1
        assert seen == [tmp_path]
