"""The examples do what their READMEs say: the very commands that stand there, in a copy of the folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest

from celery_delayq import DelayQueue
from celery_delayq.embedded import RedisServer
from celery_delayq.keys import Keys

from .programs import Programs

#: They show what users do; what that asks of Redis is tested on every version elsewhere.
ONE_REDIS = True

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT = 120.0


class Example:
    """A copy of one example, beside a Redis of its own, which is its broker, too, unless *broker* is a URL."""

    def __init__(self, name: str, folder: Path, server: RedisServer, broker: str | None = None) -> None:
        self.folder = folder / name
        shutil.copytree(EXAMPLES / name, self.folder, ignore=shutil.ignore_patterns("__pycache__", "celerybeat*"))
        self.readme = (self.folder / "README.md").read_text()
        self._server = server
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
        # `celery` and `python` are those that run this test, as in a virtual environment that is active.
        self._environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environment |= {"BROKER_URL": broker or server.url(), "REDIS_URL": server.url()}
        self._environment |= {"DELAYQ_LUA": str(EXAMPLES.parent / "lua"), "PYTHONDONTWRITEBYTECODE": "1"}

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```$", self.readme, flags=re.MULTILINE | re.DOTALL)

    @property
    def commands(self) -> list[list[str]]:
        return [shlex.split(line) for block in self.blocks("sh") for line in block.splitlines()]

    def run(self, command: list[str]) -> str:
        """Run *command* to its end; returns what it prints."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    @contextmanager
    def worker(self, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """A worker in the background; killed with its children if the block does not end it."""
        with (self.folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                yield worker
            finally:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGKILL)
                    worker.wait()

    def worker_log(self) -> str:
        return (self.folder / "worker.log").read_text()

    def await_in_log(self, text: str) -> None:
        deadline = monotonic() + TIMEOUT
        while text not in self.worker_log():
            assert monotonic() < deadline, self.worker_log()
            sleep(0.05)  # between two looks; nothing depends on how long

    @contextmanager
    def queues_waited_for(self) -> Iterator[set[str]]:
        """Fills a set, by the end of the block, with the queues whose tasks have waited in Redis meanwhile."""
        keys = Keys("delayq")
        queues: set[str] = set()
        with self._server.client() as client, client.pubsub(ignore_subscribe_messages=True) as notices:
            # Redis tells each change of a sorted set: none is missed, however short it lasts.
            client.config_set("notify-keyspace-events", "Kz")
            notices.psubscribe("__keyspace@0__:*")
            notices.get_message(timeout=5)
            yield queues
            while (notice := notices.get_message(timeout=0.2)) is not None:
                key = notice["channel"].decode().partition(":")[2]
                queues |= {
                    queue for queue in ("celery", "greetings", "mail", "payments") if key == keys.schedule(queue)
                }

    def assert_nothing_waits(self) -> None:
        keys = Keys("delayq")
        with self._server.client() as client:
            assert client.zcard(keys.index) == 0
            assert client.hlen("unacked") == 0

    def play(self, await_in_log: str = "") -> tuple[str, dict[str, int]]:
        """Worker, program, statistics: the README's three commands, and Ctrl-C.

        Returns what the program prints, and what the worker says of its dispatcher.
        """
        start, send, inspect = self.commands
        joined = any("DelayQ(app)" in module.read_text() for module in self.folder.rglob("*.py"))
        with self.worker(start) as worker:
            self.await_in_log("delayq dispatcher: ready" if joined else " ready.")
            printed = self.run(send)
            self.await_in_log(await_in_log)
            (stats,) = json.loads(self.run(inspect)).values()
            os.killpg(worker.pid, signal.SIGINT)
            exit_code = worker.wait(TIMEOUT)
            assert exit_code in {0, 1}, self.worker_log()  # Celery exits with 1 after Ctrl-C
            assert "Warm shutdown" in self.worker_log()
        return printed, stats.get("delayq", {})


def test_the_python_of_the_main_readme(own_server: RedisServer, tmp_path: Path) -> None:
    """What the README shows runs, one block after the other, and what it sends waits in Redis; who has not started a
    worker is told to.
    """
    readme = (EXAMPLES.parent / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    program = "\n".join(block for block in blocks if "django" not in block and "Worker(" not in block)
    assert "redis://localhost:6379/0" in program
    (tmp_path / "readme.py").write_text(program.replace("redis://localhost:6379/0", own_server.url()))
    began = monotonic()
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr
    told = [line.partition(":")[0] for line in done.stderr.splitlines()]
    minutes = 1 + int((monotonic() - began) / 60)
    assert 1 <= len(told) <= minutes
    assert set(told) == {"no dispatcher has been seen in this Redis yet"}
    keys = Keys("delayq")
    with own_server.client() as client:
        ids = {id.decode() for id in client.zrange(keys.schedule("celery"), 0, -1)}
        assert {"remind-A2", "cart-A5"} < ids
        assert client.zcard(keys.schedule("mail")) == 1


def test_the_queue_of_the_main_readme(own_server: RedisServer, tmp_path: Path) -> None:
    """Its block without Celery: what it puts it takes back, its worker does another job, and stops when it is told."""
    readme = (EXAMPLES.parent / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    (program,) = [block for block in blocks if "Worker(" in block]
    (tmp_path / "readme.py").write_text(program.replace("redis://localhost:6379/0", own_server.url()))
    programs = Programs(tmp_path, own_server.url(), tmp_path)
    with DelayQueue(own_server.url(), "mails") as queue:
        queue.put("other", b"done")
        with programs.background(sys.executable, "-u", "readme.py") as worker:
            worker.await_lines("b'done'")
            assert worker.end() == 0
        load = queue.stats()
    assert (load.waiting, load.reserved, load.dead) == (0, 0, 0)


def shape(text: str) -> str:
    """*text* without what differs each time: how late something was."""
    return re.sub(r"\d+\.\d (ms|s)\b", r"N \1", text)


def test_quickstart(own_server: RedisServer, tmp_path: Path) -> None:
    """Its three commands print what its README shows; the greetings wait in Redis, and none is left."""
    example = Example("quickstart", tmp_path, own_server)
    with example.queues_waited_for() as queues:
        printed, dispatcher = example.play()
    assert shape(printed) == shape(example.blocks("text")[0])
    assert queues == {"celery"}
    assert (dispatcher["moved"], dispatcher["errors"]) == (3, 0)
    example.assert_nothing_waits()


def test_existing_app(own_server: RedisServer, tmp_path: Path) -> None:
    """Chain, retry, eta, beat and routes work; whatever they delay waits in Redis, queue by queue."""
    example = Example("existing_app", tmp_path, own_server)
    with example.queues_waited_for() as queues:
        printed, dispatcher = example.play(await_in_log="dropped the carts that were left")
    assert printed == example.blocks("text")[0]
    assert queues == {"celery", "mail", "payments"}
    # The chain's start, the retry, the mail, and beat's clean-up at least once.
    assert dispatcher["moved"] >= 4


def test_rabbitmq(rabbit_url: str, own_server: RedisServer, tmp_path: Path) -> None:
    """Listed, taken back, moved, and handed over by way of RabbitMQ."""
    example = Example("rabbitmq", tmp_path, own_server, rabbit_url)
    with example.queues_waited_for() as queues:
        printed, dispatcher = example.play()
    assert printed == example.blocks("text")[0]
    assert queues == {"greetings"}
    assert (dispatcher["moved"], dispatcher["errors"]) == (2, 0)
    example.assert_nothing_waits()


def test_rules(own_server: RedisServer, tmp_path: Path) -> None:
    """Its one command prints what its README shows, and so does the test of an event; the report waits in Redis."""
    example = Example("rules", tmp_path, own_server)
    story, *_, test = example.commands
    told, tested = example.blocks("text")[1:]
    with example.queues_waited_for() as queues:
        printed = example.run(story)
    assert shape(printed) == shape(told)
    assert queues == {"celery"}
    assert example.run(test) == tested
    example.assert_nothing_waits()


@pytest.mark.parametrize("name", ["existing_app"])
def test_the_diff_is_all_there_is(name: str, own_server: RedisServer, tmp_path: Path) -> None:
    """Without the README's added lines it is a stock Celery app that prints the same, and nothing waits in Redis."""
    example = Example(name, tmp_path, own_server)
    (diff,) = example.blocks("diff")
    module = example.folder / "shop" / "celery.py"
    lines = [line if line == "\n" else line[1:] for line in diff.splitlines(keepends=True)]
    joined = "".join(lines)
    stock = "".join(line for line, marked in zip(lines, diff.splitlines(), strict=True) if marked[:1] != "+")
    source = module.read_text()
    assert joined in source
    module.write_text(source.replace(joined, stock))
    for path in example.folder.rglob("*.py"):
        assert "delayq" not in path.read_text().lower(), f"{path} knows more than the diff"
    with example.queues_waited_for() as queues:
        printed, dispatcher = example.play()
    assert printed == example.blocks("text")[0]
    assert (queues, dispatcher) == (set(), {})


@pytest.mark.parametrize("name", ["existing_app", "quickstart", "rabbitmq"])
def test_three_commands(name: str) -> None:
    """An example of a Python app takes three commands, no more."""
    text = (EXAMPLES / name / "README.md").read_text()
    assert len(re.findall(r"^```sh\n[^\n]+\n```$", text, flags=re.MULTILINE)) == 3
    assert text.count("```sh") == 3
