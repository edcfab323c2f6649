"""Events through ten rules: how many a second one watcher handles, and two on one queue; each a process of its own.

The program is ``celery-delayq rules run``. All events are there at one instant; each matches one of the rules, every
tenth two of them, and makes a task for a list that a set keeps free of doubles. Compared with the shortest thing that
could do it: a loop that knows the rules and, as Resc does, sends one command after the other for each event. Rounds
alternate.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from celery_delayq.embedded import RedisServer
from celery_delayq.keys import WatcherKeys

from .conditions import Conditions
from .report import Results, Row, Spread

INPUT, TAKEN, READY = "events", "events/taken", "prepared"

#: Events a second, on one watcher.
LEAST = 5_000

#: Each speaks of one plant; the last of every tenth product, too.
PATTERNS = [
    *(rf"^acq/plant{number}/(?P<product>\w+)$" for number in range(9)),
    r"^acq/(?P<plant>\w+)/(?P<product>\d*0)$",
]


def _file(server: RedisServer, folder: str) -> Path:
    rules = [
        {
            "on": pattern,
            "make": {"task": f"trt/{number}/${{product}}", "queue": f"todo/{number}", "set": f"set/{number}"},
        }
        for number, pattern in enumerate(PATTERNS)
    ]
    path = Path(folder, "rules.json")
    path.write_text(json.dumps({"redis": {"url": server.url()}, "watchers": [{"input_queue": INPUT, "rules": rules}]}))
    return path


def _prepare(client: redis.Redis, count: int) -> dict[int, int]:
    """Events in a list that nobody watches yet; how many tasks each rule shall make."""
    client.flushdb()
    made = dict.fromkeys(range(len(PATTERNS)), 0)
    for begin in range(0, count, 1000):
        client.lpush(READY, *(f"acq/plant{number % 9}/{number}" for number in range(begin, begin + 1000)))
    for number in range(count):
        made[number % 9] += 1
        made[9] += number % 10 == 0
    return made


@contextmanager
def _program(path: Path, keys: WatcherKeys, client: redis.Redis, watchers: int) -> Iterator[None]:
    """So many of it, at work and waiting for events."""
    command = [sys.executable, "-c", "from celery_delayq.cli import main; main()", "rules", "run", str(path)]
    with ExitStack() as stack:
        for _ in range(watchers):
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            stack.callback(process.terminate)
        while client.zcard(keys.beats) < watchers:
            time.sleep(0.05)
        time.sleep(1.0)
        yield


def _program_seconds(client: redis.Redis, path: Path, count: int, watchers: int) -> float:
    made = _prepare(client, count)
    keys = WatcherKeys(TAKEN)
    with _program(path, keys, client, watchers):
        client.rename(READY, INPUT)
        # A list that others push into tells who waits for it only with a push.
        client.lpush(INPUT, "nobody's")
        started = time.perf_counter()
        while client.exists(INPUT, *(keys.in_work(slot) for slot in range(watchers))):
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        _check(client, made)
    return seconds


def _check(client: redis.Redis, made: dict[int, int]) -> None:
    """Each task once."""
    for number, many in made.items():
        tasks = client.lrange(f"todo/{number}", 0, -1)
        assert len(tasks) == len(set(tasks)) == many, f"rule {number}: {len(tasks)} tasks, {many} expected"


def _bare_seconds(client: redis.Redis, count: int) -> float:
    made = _prepare(client, count)
    client.rename(READY, INPUT)
    rules = [(number, re.compile(pattern)) for number, pattern in enumerate(PATTERNS)]
    started = time.perf_counter()
    while event := client.rpoplpush(INPUT, TAKEN):
        text = event.decode()
        for number, pattern in rules:
            if found := pattern.search(text):
                task = f"trt/{number}/{found['product']}"
                if client.zscore(f"set/{number}", task) is None:
                    client.zadd(f"set/{number}", {task: int(time.time())})
                    client.lpush(f"todo/{number}", task)
        client.lrem(TAKEN, 1, event)
    seconds = time.perf_counter() - started
    _check(client, made)
    return seconds


def run(conditions: Conditions) -> Results:
    count, rounds = (20_000, 2) if conditions.quick else (100_000, 3)
    taken = []
    with conditions.server() as server, server.client() as client, tempfile.TemporaryDirectory() as folder:
        path = _file(server, folder)
        for _ in range(rounds):
            one = count / _program_seconds(client, path, count, 1)
            taken.append((one, count / _bare_seconds(client, count), count / _program_seconds(client, path, count, 2)))
    one, bare, two = (Spread.of(column) for column in zip(*taken, strict=True))

    def told(rate: Spread) -> str:
        return f"{rate.median:,.0f} ({rate.least:,.0f} to {rate.greatest:,.0f})"

    return [
        Row(
            "rules",
            f"events a second through ten rules, {count:,} waiting, one watcher",
            told(one),
            f"a command at a time {told(bare)}",
            Spread.of(ours / theirs for ours, theirs, _ in taken),
            f">= {LEAST:,} a second",
            one.median >= LEAST,
        ),
        Row(
            "rules",
            f"events a second through ten rules, {count:,} waiting, two watchers; each task once",
            told(two),
            f"one watcher {told(one)}",
            Spread.of(both / ours for ours, _, both in taken),
        ),
    ]
