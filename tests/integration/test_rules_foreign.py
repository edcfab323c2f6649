"""A worker in Node that knows nothing of us, with configuration files as Resc has them, in all their spellings.

With ``RESC=/path/to/a/checkout`` of https://github.com/Canop/resc its own files and its own worker are run as well, as
they are there; only the Redis in the file is the test's.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from celery_delayq.embedded import RedisServer

from .programs import Program, Programs, installed
from .worker import wait_for

#: It shows what others do; what that asks of Redis is tested on every version elsewhere.
ONE_REDIS = True

FOLDER = Path(__file__).parent / "foreign"
CHECKOUT = Path(os.environ["RESC"]) if "RESC" in os.environ else None


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worker, installed once; with Resc's beside it, if there is one."""
    copy = installed(tmp_path_factory.mktemp("foreign"), FOLDER)
    if CHECKOUT:
        (copy / "resc.js").write_bytes((CHECKOUT / "examples" / "node-client" / "main.js").read_bytes())
    return copy


@pytest.fixture
def programs(folder: Path, own_server: RedisServer, tmp_path: Path) -> Programs:
    return Programs(folder, own_server.url(), tmp_path)


def pointed(path: Path, url: str, folder: Path) -> str:
    """A copy of that file whose Redis is the test's."""
    text, changed = re.subn(r"redis://127\.0\.0\.1/", url, path.read_text())
    assert changed
    copy = folder / path.name
    copy.write_text(text)
    return str(copy)


def done_by(worker: Program) -> Counter[str]:
    """Which tasks it has done, and how often."""
    found = [re.search(r"Executing (?:(\S+)$|(\w+) for product (\w+) on process (\w+))", one) for one in worker.lines]
    return Counter(one[1] or f"{one[2]}/{one[4]}/{one[3]}" for one in found if one)


def push(client: redis.Redis, events: Sequence[str]) -> None:
    for event in events:
        client.lpush("global/done", event)


def left(client: redis.Redis) -> set[bytes]:
    """All keys but those by which watchers know each other."""
    return {key for key in client.scan_iter() if not key.startswith(b"delayq:")}


FILES = [(FOLDER / "simple.hjson", "main.js")]
if CHECKOUT:
    FILES.append((CHECKOUT / "examples" / "simple-conf.hjson", "resc.js"))


@pytest.mark.parametrize(("file", "worker"), FILES, ids=lambda one: Path(one).name)
def test_each_task_once(file: Path, worker: str, programs: Programs, own_server: RedisServer, tmp_path: Path) -> None:
    """Whatever is killed of the watchers, of which there are two for some time; the events of other plants wait for
    others, and what means nothing to anybody is cleared.
    """
    config = pointed(file, own_server.url(), tmp_path)
    command = ["celery-delayq", "rules", "run", config, "-v"]
    with own_server.client() as client, programs.background("node", "-r", "./elsewhere.js", worker) as foreign:
        push(client, [f"acq/plantA/{number}" for number in range(100)])
        with programs.background(*command) as first:
            first.await_lines("-> ")
            push(client, [f"acq/plantA/{number}" for number in range(100, 200)])
            with programs.background(*command) as second:
                second.await_lines("watcher launched")
                push(client, [f"acq/plantA/{number}" for number in range(200, 300)])
                first.end(signal.SIGKILL)
                push(client, ["acq/plantB/1", "acq/plantB/1", "nothing"])
                expected = Counter(f"trt/plantA/{number}" for number in range(300))
                wait_for(lambda: done_by(foreign).total() >= 300, "all is treated")
                wait_for(lambda: client.exists("global/done", "global/taken", "trt/plantA/taken") == 0, "all is told")
                assert second.end() == 0
        assert done_by(foreign) == expected
        assert client.lrange("trt/plantB/todo-queue", 0, -1) == [b"trt/plantB/1"]
        assert client.zrange("trt/plantB/todo-set", 0, -1) == [b"trt/plantB/1"]
        client.delete("trt/plantB/todo-queue", "trt/plantB/todo-set")
        assert left(client) == set()


def test_round_and_round(programs: Programs, own_server: RedisServer, tmp_path: Path) -> None:
    """What the worker has done is an event again, by way of a second watcher, as long as there is something left; also
    with a watcher that is killed on the way.
    """
    config = pointed(FOLDER / "rounds.json", own_server.url(), tmp_path)
    command = ["celery-delayq", "rules", "run", config]
    with own_server.client() as client, programs.background("node", "-r", "./elsewhere.js", "main.js") as foreign:
        push(client, [f"acq/plantA/{letter * 6}" for letter in "abcdefgh"])
        with programs.background(*command) as watcher:
            wait_for(lambda: done_by(foreign).total() >= 16, "the first rounds")
            watcher.end(signal.SIGKILL)
        with programs.background(*command) as watcher:
            wait_for(lambda: done_by(foreign).total() >= 48, "all rounds")
            wait_for(lambda: not left(client), "all is told")
            assert watcher.end(signal.SIGINT) == 0
        assert done_by(foreign) == Counter(
            f"trt/plantA/{letter * left}" for letter in "abcdefgh" for left in range(1, 7)
        )


@pytest.mark.skipif(CHECKOUT is None, reason="RESC names no checkout of Resc")
def test_the_files_of_resc(programs: Programs) -> None:
    """All that it publishes can be used as it is."""
    assert CHECKOUT
    files = [*CHECKOUT.glob("examples/*conf.*json"), *CHECKOUT.glob("demo/*.json")]
    assert len(programs.run("celery-delayq", "rules", "check", *map(str, files)).splitlines()) >= len(files) >= 4
