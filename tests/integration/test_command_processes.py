"""``celery -A proj delayq`` as a shell runs it: a process of its own, found by Celery as a plugin."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

import psutil
import pytest
from celery import Celery

from celery_delayq import DelayQ
from celery_delayq.embedded import RedisServer

from .backlog import fill
from .conftest import Inside
from .worker import ROOT, newest_redis, wait_for

#: Redis is seen through the store, whose own tests run on every version.
ONE_REDIS = True

#: What a user has: a module with an app, one line of ours in it.
PROJECT = """
import os
from celery import Celery
from celery_delayq import DelayQ
from click import Option

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.task_publish_retry_policy = {"max_retries": 0}
app.user_options["preload"].add(Option(["--tenant"], default="nobody"))
DelayQ(app)
print("a project may print something", end="")
"""


@pytest.fixture(scope="module")
def newest() -> Iterator[RedisServer]:
    """What a process does does not depend on the version of Redis."""
    with newest_redis() as server:
        yield server


@pytest.fixture
def server(newest: RedisServer) -> Iterator[RedisServer]:
    """That server, emptied afterwards."""
    yield newest
    with newest.client() as client:
        client.flushall()


class Shell:
    """A folder with a project in it."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        (folder / "proj.py").write_text(PROJECT)
        self.environment = {**os.environ, "BROKER": broker, "PYTHONWARNINGS": "error::SyntaxWarning"}
        self.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

    def start(self, *arguments: str, **streams: object) -> subprocess.Popen[str]:
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            [sys.executable, "-m", "celery", "-A", "proj", "delayq", *arguments],
            cwd=self.folder,
            env=self.environment,
            text=True,
            **given,
        )

    def run(self, *arguments: str) -> tuple[int | None, str, str]:
        """Exit status, output without what the project prints, and errors."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.removeprefix("a project may print something"), err


@pytest.fixture
def shell(server: RedisServer, tmp_path: Path) -> Shell:
    return Shell(tmp_path, server.url())


@pytest.fixture
def project(server: RedisServer) -> Iterator[Celery]:
    """The same app, here."""
    with Celery("shop", broker=server.url(), set_as_current=False) as app:
        DelayQ(app)
        yield app


def test_celery_knows_the_plugin() -> None:
    """By its entry point, which names a command of click's."""
    (found,) = entry_points(group="celery.commands", name="delayq")
    assert found.load().name == "delayq"


def test_the_story_of_one_task(shell: Shell, project: Celery) -> None:
    """Three days ahead under an id of one's own: seen, moved, taken back, while no worker runs."""
    project.delayq.apply_delayed("help", 3 * 86_400, (42,), task_id="need_some_help_email_42")

    code, out, _ = shell.run("list", "--json")
    assert (code, [json.loads(line)["id"] for line in out.splitlines()]) == (0, ["need_some_help_email_42"])
    code, out, err = shell.run("reschedule", "need_some_help_email_42", "in", "2h")
    assert (code, err) == (0, "")
    assert out.startswith("need_some_help_email_42 is due in 2h: ")
    assert shell.run("cancel", "need_some_help_email_42", "--tenant", "x")[0] == 2  # it is an option of the group
    assert shell.run("cancel", "need_some_help_email_42") == (0, "need_some_help_email_42 cancelled\n", "")
    assert shell.run("show", "need_some_help_email_42")[::2] == (1, "no task of the id need_some_help_email_42 waits\n")


def test_a_redis_that_is_away(shell: Shell) -> None:
    """One line, no traceback, also in a process of its own."""
    shell.environment["BROKER"] = "redis://:secret@127.0.0.1:1/0"
    code, _, err = shell.run("list")
    assert code == 1
    assert err.startswith("Error: Redis cannot be reached at redis://:**@127.0.0.1:1/0: ")
    assert len(err.splitlines()) == 1


def test_whoever_reads_may_stop(shell: Shell, project: Celery, inside: Inside) -> None:
    """``| head`` ends it without a word."""
    fill(inside, project, range(5000))
    for command in ("list --json", "list --limit 0", "export"):
        process = shell.start(*shlex.split(command))
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        process.stderr.close()
        assert process.wait(60) != 0


def test_memory_stays_flat(shell: Shell, project: Celery, inside: Inside) -> None:
    """Twenty times as many tasks take no more of it to be listed, counted or exported."""

    def peak(command: str) -> float:
        """MB that the process was seen to have at most."""
        process = shell.start(*shlex.split(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen = 0
        while process.poll() is None:
            with suppress(psutil.Error):  # it has just ended
                seen = max(seen, psutil.Process(process.pid).memory_info().rss)
            time.sleep(0.01)
        assert process.returncode == 0
        return seen / 1024**2

    commands = ("list --json", "list --limit 0", "export")
    fill(inside, project, range(1500))
    few = [peak(command) for command in commands]
    fill(inside, project, range(30_000), queue="more")
    assert [peak(command) - before < 8 for command, before in zip(commands, few, strict=True)] == [True] * 3


def test_ctrl_c_in_the_middle(shell: Shell, inside: Inside) -> None:
    """Says how far it came; what was done stays, and the same command does the rest."""
    lines = [
        json.dumps({"id": f"{number:05}", "queue": "q", "due": "2040-01-01T00:00:00Z", "body": "{}"}) + "\n"
        for number in range(5000)
    ]
    process = shell.start("import", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("".join(lines[:3500]))
    process.stdin.flush()
    wait_for(lambda: inside.client.zcard(inside.keys.schedule("q")) >= 2000, "two batches were imported")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "stopped after " in err
    assert err.endswith("; the same command goes on\n")
    assert "Traceback" not in err
    done = inside.client.zcard(inside.keys.schedule("q"))
    process = shell.start("import", stdin=subprocess.PIPE)
    out, _ = process.communicate("".join(lines), timeout=60)
    assert out.endswith(f"{5000 - done:,} tasks imported, {done:,} waited already\n")


def test_a_person_sees_a_bar_and_is_asked(shell: Shell, project: Celery, inside: Inside) -> None:
    """On a terminal: the bar of what is counted, the question, the bar of what is cancelled; colours, and no more."""
    fill(inside, project, range(3000), user=7)
    person, terminal = pty.openpty()
    process = shell.start("cancel", "--header", "user=7", "--no-mark", stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = ""
    answered = False
    while True:
        try:
            more = os.read(person, 65_536).decode()
        except OSError:  # that is how a terminal says that nobody is there any more
            break
        if not more:
            break
        seen += more
        if "[y/N]: " in seen and not answered:
            answered = True
            os.write(person, b"y\n")
    os.close(person)

    assert process.wait(60) == 0
    assert "counting" in seen
    assert "Cancel 3,000 tasks? [y/N]: " in seen
    assert "cancelling" in seen
    assert "3000/3000" in seen
    assert seen.rstrip().endswith("3,000 tasks cancelled")
    assert project.delayq.count() == 0


def complete(shell: Shell, words: str) -> list[str]:
    """What a shell would offer behind *words*."""
    environment = {**shell.environment, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    environment["_CELERY_COMPLETE"] = "bash_complete"
    program = "import sys; sys.argv[0] = 'celery'; from celery.bin.celery import main; sys.exit(main())"
    done = subprocess.run(  # noqa: PLW1510  # read below
        [sys.executable, "-c", program], cwd=shell.folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return [line.removeprefix("plain,") for line in done.stdout.splitlines()]


def test_shells_complete_commands_options_and_queues(shell: Shell, project: Celery, inside: Inside) -> None:
    """As click does it; the names of queues come from Redis, and if it is away there are none, without a word."""
    for queue in ("celery", "mail", "metrics", "m\n\x1b"):
        project.send_task("task", queue=queue, countdown=3600)

    assert complete(shell, "celery -A proj delayq re") == ["reschedule", "resume"]
    assert complete(shell, "celery -A proj delayq import --on-conflict ") == ["error", "keep", "replace"]
    assert complete(shell, "celery -A proj delayq list --queue m") == ["mail", "metrics"]
    assert complete(shell, "celery -A proj delayq pause c") == ["celery"]
    shell.environment["BROKER"] = "redis://127.0.0.1:1/0"
    assert complete(shell, "celery -A proj delayq list --queue m") == [""]
    assert complete(shell, "celery -A nowhere delayq list --queue m") == [""]


def test_options_of_all_commands(shell: Shell) -> None:
    """What an app adds to every command of Celery, ours takes, too."""
    process = shell.start("--tenant", "x", "count")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out[-2:], err) == (0, "0\n", "")


def test_without_an_app(shell: Shell) -> None:
    """Is told that one must be named."""
    done = subprocess.run(  # noqa: PLW1510  # read below
        [sys.executable, "-m", "celery", "delayq", "list"],
        cwd=shell.folder,
        env={**shell.environment, "CELERY_BROKER_URL": shell.environment["BROKER"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "name it: celery -A proj delayq" in done.stderr


def test_an_export_into_a_device(shell: Shell) -> None:
    """It is written, and not replaced."""
    assert shell.run("export", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()
