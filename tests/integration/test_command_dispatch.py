"""``celery delayq dispatch`` as an operator runs it: a process of its own, signalled, probed, cut off and killed."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Put
from celery_delayq.keys import Keys
from celery_delayq.store import Store

from .command import run
from .worker import PATIENCE, ROOT, wait_for

#: What a dispatcher asks of Redis is tested on every version elsewhere.
ONE_REDIS = True

PROJECT = """
import os
from celery import Celery
from celery_delayq import DelayQ

app = Celery("shop", broker=os.environ["BROKER"])
DelayQ(app)
"""


class Process:
    """One ``celery -A proj delayq dispatch``."""

    def __init__(self, folder: Path, broker: str, *arguments: str, **streams: Any) -> None:
        (folder / "proj.py").write_text(PROJECT)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._log = folder / f"{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "proj", "delayq", "dispatch", *arguments],
                cwd=folder,
                env={**os.environ, "BROKER": broker, "PYTHONPATH": path},
                **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True, **streams},
            )

    def log(self) -> str:
        return self._log.read_text()

    def await_log(self, text: str, times: int = 1) -> None:
        wait_for(lambda: self.log().count(text) >= times or self.process.poll() is not None, f"it says {text!r}")
        assert self.log().count(text) >= times, self.log()

    def await_ready(self, times: int = 1) -> Process:
        self.await_log("delayq dispatcher: ready", times)
        return self

    @property
    def url(self) -> str:
        """Of its last endpoint."""
        url: str = re.findall(r"listening at (\S+)", self.log())[-1]
        return url

    def probe(self) -> tuple[int, dict[str, Any]]:
        """Status and JSON of its health."""
        try:
            with urllib.request.urlopen(self.url + "/healthz", timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


Start = Callable[..., Process]


@pytest.fixture
def start(server: RedisServer, tmp_path: Path) -> Iterator[Start]:
    """Starts dispatchers: ``start("--queues", "mail", broker=…)``."""
    with ExitStack() as stack:

        def start(*arguments: str, broker: str = server.url(), **streams: Any) -> Process:
            one = Process(tmp_path, broker, *arguments, **streams)
            stack.callback(one.process.wait)
            stack.callback(one.process.kill)
            return one

        yield start


def put(store: Store, id: str, topic: str = "q", in_us: int = 0) -> None:
    store.put([Put(topic, id, id.encode(), in_us=in_us)], {topic: Delivery.plain(topic)})


def await_ready_list(store: Store, topic: str, count: int = 1) -> None:
    wait_for(lambda: store.client.llen(topic) >= count, f"{count} handed over to {topic}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(store: Store, start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """It dispatches without a worker; told to stop it does so at once, with status 0, and leaves nothing behind."""
    pid, health = tmp_path / "pid", tmp_path / "health"
    one = start("--pidfile", str(pid), "--health-file", str(health)).await_ready()
    put(store, "a")
    await_ready_list(store, "q")
    wait_for(health.exists, "the health file is there")
    assert int(pid.read_text()) == one.process.pid

    began = time.monotonic()
    assert one.stop(number) == 0
    assert time.monotonic() - began < 20  # a fraction of a second, where the machine is not busy
    assert not pid.exists()
    assert not health.exists()
    assert f"{number.name}, stopping" in one.log()
    assert "Traceback" not in one.log()
    assert store.client.pubsub_numsub(store.keys.fleet) == [(store.keys.fleet.encode(), 0)]


def test_it_stops_while_redis_is_away(start: Start) -> None:
    """Also if it has never been there."""
    one = start(broker="redis://127.0.0.1:1/0")
    one.await_log("trying again")

    assert one.stop() == 0


def test_a_hang_up_starts_it_anew(store: Store, start: Start, tmp_path: Path) -> None:
    """In the same process, with the code and the configuration of then, and its options."""
    one = start("--health-port", "0", "--pidfile", str(tmp_path / "pid"), "--loglevel", "INFO").await_ready()
    (tmp_path / "proj.py").write_text(PROJECT + "app.conf.delayq_prefix = 'anew'\n")

    one.process.send_signal(signal.SIGHUP)
    one.await_log("keys under anew:{0}:")
    assert one.probe()[0] == 200
    anew = Store(store.client, Keys("anew"))
    put(anew, "a")
    await_ready_list(anew, "q")
    assert one.stop() == 0


def test_a_hang_up_of_its_terminal_ends_it(start: Start) -> None:
    """Nobody could stop what goes on behind a closed window."""
    person, terminal = pty.openpty()
    one = start(stdout=terminal)
    os.close(terminal)
    one.await_ready()

    assert one.stop(signal.SIGHUP) == 0
    os.close(person)


def test_health_follows_redis(store: Store, start: Start, own_server: RedisServer, tmp_path: Path) -> None:
    """200 while all is well, 503 with the reason during an outage, and 200 again; so does the age of the file. What
    became due meanwhile is handed over then.
    """
    file = tmp_path / "health"
    options = ("--health-port", "0", "--health-file", str(file))
    own = Store(own_server.client(), Keys("delayq"))
    one = start(*options, broker=own_server.url()).await_ready()
    wait_for(lambda: one.probe()[0] == 200, "it is healthy")
    status, told = one.probe()
    assert (told["healthy"], told["reason"], told["active"]) == (True, "", True)
    assert told["age"] < 8
    first = wait_for(lambda: file.exists() and file.stat().st_mtime_ns, "the file is there")
    wait_for(lambda: file.stat().st_mtime_ns > first, "the file is touched again")

    own_server.stop()
    wait_for(lambda: one.probe()[0] == 503, "it is not healthy")
    status, told = one.probe()
    assert (status, told["healthy"]) == (503, False)
    assert told["reason"].startswith("Redis does not answer: ConnectionError")
    last = file.stat().st_mtime_ns
    time.sleep(2.5)  # as long as it would be touched twice
    assert file.stat().st_mtime_ns == last

    own_server.start()
    put(own, "a")
    await_ready_list(own, "q")
    wait_for(lambda: one.probe()[0] == 200, "it is healthy again")
    wait_for(lambda: file.stat().st_mtime_ns > last, "the file is touched again")
    assert one.stop() == 0
    own.close()


def test_metrics(store: Store, start: Start) -> None:
    """Beside its health, of the dispatcher and of what waits."""
    pytest.importorskip("prometheus_client")
    one = start("--health-port", "0").await_ready()
    put(store, "a")
    await_ready_list(store, "q")
    with urllib.request.urlopen(one.url + "/metrics", timeout=30) as answer:
        told = answer.read().decode()
        assert answer.headers["Content-Type"].startswith("text/plain")
    assert "delayq_dispatcher_running 1.0" in told
    assert 'delayq_tasks_moved_total{queue="q"} 1.0' in told


def test_a_redis_that_hangs_is_no_healthy_one(start: Start, own_server: RedisServer) -> None:
    """The probe gets its answer while Redis gives none."""
    one = start("--health-port", "0", broker=own_server.url()).await_ready()
    wait_for(lambda: one.probe()[0] == 200, "it is healthy")
    assert own_server._process is not None
    own_server._process.send_signal(signal.SIGSTOP)
    wait_for(lambda: one.probe()[0] == 503, "it is not healthy")
    assert "TimeoutError" in one.probe()[1]["reason"]

    assert one.stop() == 0
    own_server._process.send_signal(signal.SIGCONT)


def test_a_standby_is_healthy(store: Store, start: Start) -> None:
    """It looks at nothing, for another does."""
    everybody = [start("--health-port", "0").await_ready() for _ in range(2)]

    def probes() -> list[tuple[int, bool]]:
        told = [one.probe() for one in everybody]
        return sorted((status, said["active"]) for status, said in told)

    wait_for(lambda: probes() == [(200, False), (200, True)], "one is active, and both are healthy")
    passes = {one: one.probe()[1]["passes"] for one in everybody}
    time.sleep(2)
    assert probes() == [(200, False), (200, True)]
    assert sum(one.probe()[1]["passes"] == before for one, before in passes.items()) == 1


def test_one_that_is_killed_is_replaced(store: Store, start: Start, tmp_path: Path) -> None:
    """kill -9: what it leaves behind, a pidfile and a health file, stops nobody, and no job is lost."""
    pid, health = tmp_path / "pid", tmp_path / "health"
    first = start("--pidfile", str(pid), "--health-file", str(health)).await_ready()
    wait_for(health.exists, "the health file is there")
    put(store, "a", in_us=500_000)
    first.process.kill()
    first.process.wait()
    assert pid.exists()
    assert health.exists()

    second = start("--pidfile", str(pid), "--health-file", str(health)).await_ready()
    await_ready_list(store, "q")
    assert int(pid.read_text()) == second.process.pid
    assert second.stop() == 0
    assert store.client.lrange("q", 0, -1) == [b"a"]


def test_some_queues_only(store: Store, start: Start) -> None:
    """It serves those; another serves all."""
    put(store, "a", "other")
    one = start("--queues", "q,third").await_ready()
    put(store, "b", "third")
    put(store, "c", in_us=300_000)
    await_ready_list(store, "third")
    await_ready_list(store, "q")
    assert store.client.llen("other") == 0

    start().await_ready()
    await_ready_list(store, "other")
    assert one.stop() == 0


def test_a_second_one_for_a_pidfile(start: Start, tmp_path: Path) -> None:
    """It is refused, as Celery does it."""
    start("--pidfile", str(tmp_path / "pid")).await_ready()
    second = start("--pidfile", str(tmp_path / "pid"))

    assert second.process.wait(PATIENCE) == 73
    assert "already exists" in second.log()


def test_a_log_file(start: Start, tmp_path: Path) -> None:
    """As Celery's; one that was moved away, as logrotate does it, is opened anew."""
    file = tmp_path / "log"
    one = start("--logfile", str(file), "--loglevel", "info")
    wait_for(lambda: file.exists() and "delayq dispatcher: ready" in file.read_text(), "it logs there")
    file.rename(tmp_path / "log.1")

    assert one.stop() == 0
    assert "SIGTERM, stopping" in file.read_text()
    assert one.log() == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--queues a,,b", "--queues must name queues, separated by commas"),
        ("--health-port 70000", "70000"),
        ("--loglevel loud", "LOUD"),
    ],
)
def test_wrong_use(app: Celery, arguments: str, says: str) -> None:
    """Is told in words, at once."""
    said = run(app, "dispatch", *arguments.split())
    assert (said.code, says.upper() in said.err.upper()) == (2, True)


def test_a_broker_that_is_not_redis(make_app: Callable[..., Celery]) -> None:
    """There is nothing to dispatch to."""
    said = run(make_app(broker_url="amqp://nowhere//"), "dispatch")
    assert (said.code, "which is not Redis" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [("--health-file /nowhere/at/all", "/nowhere/at/all"), ("--health-port 0 --health-host 192.0.2.1", "192.0.2.1:0")],
)
def test_health_that_cannot_be_told(start: Start, arguments: str, where: str) -> None:
    """Ends the start: nobody should find out when it is missed."""
    one = start(*arguments.split())

    assert one.process.wait(PATIENCE) == 1
    assert f"health cannot be told at {where}: " in one.log()
    assert "Traceback" not in one.log()
