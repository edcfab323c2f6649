"""A real ``celery worker`` as a context manager: started, watched through its log, signalled, always reaped."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from celery import Celery

from celery_delayq import DelayQ
from celery_delayq.clock import from_us
from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer, servers
from celery_delayq.job import Put
from celery_delayq.message import DUE_PROPERTY

ROOT = Path(__file__).parents[2]

#: Seconds after which a test gives up waiting. Far more than any of them needs on an idle machine.
PATIENCE = 120.0

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, timeout: float = PATIENCE) -> T:
    """Poll until *condition* is true and return what it gave; else fail the test, naming *what* did not happen."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} seconds in vain: {what}; last seen: {found!r}")
        time.sleep(0.03)


@contextmanager
def newest_redis(options: Sequence[str] = ()) -> Iterator[RedisServer]:
    """A server of the newest version that is here, for tests that do not depend on the version."""
    programs = list(servers().values())
    if not programs:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Redis server")
    with RedisServer(programs[-1], options) as server:
        yield server


def handed_over(client: redis.Redis, queue: str) -> Counter[str]:
    """How often each task id is on the ready list of a queue that nobody consumes."""
    return Counter(json.loads(message)["headers"]["id"] for message in client.lrange(queue, 0, -1))


class Ledger:
    """What the tasks of ``proj.py`` have written down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self, task: str | None = None) -> list[dict[str, Any]]:
        """Every run so far, in order; of one task only, if it is named."""
        whole, _, _ = self.path.read_text().rpartition("\n")
        found = [json.loads(line) for line in whole.splitlines()]
        return [line for line in found if task in (None, line["task"])]

    def of(self, task_id: str) -> list[dict[str, Any]]:
        """The runs of one task id."""
        return [line for line in self.lines() if line["id"] == task_id]

    def runs(self) -> Counter[str]:
        """How often each task id has run."""
        return Counter(line["id"] for line in self.lines())

    def wait_for(self, task_ids: Sequence[str], timeout: float = PATIENCE) -> None:
        """Wait until each of *task_ids* has run."""
        wanted = set(task_ids)

        def missing() -> set[str]:
            return wanted - set(self.runs())

        wait_for(lambda: not missing(), f"{len(wanted)} tasks run", timeout)


class Project:
    """``proj.py`` with one broker, one configuration and one ledger, for any number of workers.

    Args:
        broker: its URL.
        conf: more of ``app.conf``, as JSON can say it.
        joined: whether the workers have a DelayQ. The producer always has.
    """

    def __init__(self, broker: str, *, joined: bool = True, **conf: Any) -> None:
        self.conf = {"worker_hijack_root_logger": True, "broker_connection_retry_on_startup": True, **conf}
        self.folder = tempfile.TemporaryDirectory(prefix="delayq-proj-")
        self.ledger = Ledger(Path(self.folder.name, "ledger"))
        self.environment = {
            **os.environ,
            "PROJ_BROKER": broker,
            "PROJ_CONF": json.dumps(self.conf),
            "PROJ_JOINED": str(int(joined)),
            "PROJ_LEDGER": str(self.ledger.path),
        }
        self.app = Celery("producer", broker=broker, set_as_current=False)
        self.app.conf.update(self.conf)
        DelayQ(self.app)

    def send(self, *args: Any, task: str = "record", **options: Any) -> str:
        """Send one task; return its id."""
        task_id: str = self.app.send_task(task, args, **options).id
        return task_id

    def celery(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of Celery's own commands for this project, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "celery", "--workdir", str(Path(__file__).parent), "-A", "proj", *arguments],
            env={**self.environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def worker(self, *arguments: str, pool: str = "threads", concurrency: int = 2) -> Worker:
        """A worker, not started."""
        return Worker(self, [f"--pool={pool}", f"--concurrency={concurrency}", *arguments])

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *exc_info: object) -> None:
        gc.collect()  # results tell their backend when they go: now, while it is there
        self.app.close()
        self.folder.cleanup()


def put_many(project: Project, queue: str, dues_us: Sequence[int]) -> list[str]:
    """Schedule copies of one ``record`` task, due at those times, much faster than Celery builds messages.

    Returns:
        Their ids, in that order.
    """
    store = project.app.delayq.connect()
    template_id = project.send(queue=queue, countdown=86_400)
    template = store.client.hget(store.keys.jobs(queue), template_id)
    store.delete(queue, [template_id])
    jobs = []
    for number, due_us in enumerate(dues_us):
        task_id = f"{template_id}-{number}"
        message = json.loads(template.replace(template_id.encode(), task_id.encode()))
        message["properties"][DUE_PROPERTY] = from_us(due_us).isoformat()
        jobs.append(Put(queue, task_id, json.dumps(message).encode(), at_us=due_us))
    for start in range(0, len(jobs), 1_000):
        store.put(jobs[start : start + 1_000], {queue: Delivery.plain(queue)})
    return [str(job.id) for job in jobs]


class Worker:
    """One worker process and its children."""

    count = 0

    def __init__(self, project: Project, arguments: Sequence[str]) -> None:
        Worker.count += 1
        self.name = f"worker-{Worker.count}"
        self._project = project
        self._log = Path(project.folder.name, f"{self.name}.log")
        self._command = [sys.executable, "-m", "celery", "--workdir", str(Path(__file__).parent), "-A", "proj"]
        self._command += ["worker", "--loglevel=INFO", "--without-gossip", "--without-mingle", "-n", self.name]
        self._command += arguments

    def start(self) -> None:
        """Start the process; does not wait."""
        environment = {**self._project.environment, "PYTHONPATH": str(ROOT)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self) -> str:
        """All that it has said so far."""
        return self._log.read_text(errors="replace")

    def said(self, text: str) -> int:
        """In how many lines of the log *text* is."""
        return sum(text in line for line in self.log().splitlines())

    def await_log(self, text: str, times: int = 1) -> None:
        """Wait until *text* is in that many lines of the log, or fail with the log if the process ends before."""

        def there() -> bool:
            found = self.said(text) >= times
            if not found and self.process.poll() is not None:
                pytest.fail(f"{self.name} ended with {self.process.returncode} before it said {text!r}:\n{self.log()}")
            return found

        wait_for(there, f"{self.name} says {text!r}")

    def await_ready(self, dispatcher: bool = True) -> Worker:
        """Wait until it consumes and, if it should have one, its dispatcher is ready."""
        self.await_log(" ready.")
        if dispatcher:
            self.await_log("delayq dispatcher: ready")
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the main process."""
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> float:
        """Wait until it has ended; return how long that took (s)."""
        begin = time.monotonic()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end in {timeout:g} seconds:\n{self.log()}")
        return time.monotonic() - begin

    def kill(self) -> None:
        """End it and all of its children, at once."""
        with suppress(ProcessLookupError):  # it and they are gone already
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.kill()
        if kind is not None:
            print(f"--- {self.name}\n{self.log()}")
