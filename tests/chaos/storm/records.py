"""What was asked for, and what became of it: the producers' ledgers, and what was found on the ready lists."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import redis

#: Seconds between two looks at the ready lists.
LOOK_EVERY = 0.05

#: The header in which a relay's message says who published it, and when (s, monotonic): ``dispatcher-1.3 1234.567890``.
STAMP = "storm_stamp"


class Copy(NamedTuple):
    """One of the messages of a task.

    Attributes:
        at: when a relay published it; else when it was taken, not later than which it was handed over (s, monotonic).
        by: the participant that published it, and its incarnation; "" if that is not known, which in direct mode is no
            matter.
    """

    at: float
    by: str = ""

    @property
    def participant(self) -> str:
        return self.by.rpartition(".")[0]

    @property
    def incarnation(self) -> int:
        return int(self.by.rpartition(".")[2])


def copy_of(headers: Mapping[str, Any], now: float) -> Copy:
    """What a message's headers say, or that it was there at *now* (s, monotonic)."""
    by, _, at = headers.get(STAMP, "").partition(" ")
    return Copy(float(at), by) if by else Copy(now)


@dataclass
class Attempt:
    """One call of ``apply_async``, or one task of ``apply_many``.

    Attributes:
        begun, ended: when (s, monotonic). A call that was cut off ended with its producer.
        countdown: how long (s) the task was to wait, from some moment of the call on.
        batch: 0, or the number of the call that stored several, all or nothing.
        outcome: "acked", the name of what was raised, or "cut off".
    """

    queue: str
    countdown: float
    batch: int
    begun: float
    ended: float
    outcome: str = "cut off"

    @property
    def is_acked(self) -> bool:
        return self.outcome == "acked"

    @property
    def outlasted(self) -> bool:
        """Whether the call lasted longer than its task was to wait: the one case in which a put that is sent again may
        find its task handed over, and store it once more.
        """
        return self.ended - self.begun >= self.countdown


def read_attempts(ledgers: Iterable[tuple[Path, dict[int, float]]]) -> dict[str, Attempt]:
    """All attempts, by id. Each ledger comes with the deaths of its producers, by incarnation (s, monotonic)."""
    attempts: dict[str, Attempt] = {}
    for path, deaths in ledgers:
        for line in path.read_text().splitlines() if path.exists() else ():
            word, task_id, at, *more = line.split()
            if word == "begun":
                queue, countdown, batch = more
                incarnation = int(task_id.split(".")[1])
                end = deaths.get(incarnation, float("inf"))
                attempts[task_id] = Attempt(queue, float(countdown), int(batch), float(at), end)
            else:
                attempts[task_id].outcome = word
                attempts[task_id].ended = float(at)
    return attempts


def read_runs(path: Path) -> dict[str, Counter[Copy]]:
    """Id -> how often each of its messages was run. (In direct mode they cannot be told apart, nor need to be.)"""
    runs: dict[str, Counter[Copy]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        task_id, _, stamp = line.partition(" ")
        runs.setdefault(task_id, Counter())[copy_of({STAMP: stamp}, 0.0)] += 1
    return runs


def count_acked(ledgers: Iterable[Path]) -> int:
    """How many were acknowledged so far."""
    return sum(path.read_bytes().count(b"acked ") for path in ledgers if path.exists())


class Watch:
    """Takes all that comes to the ready lists of queues that nobody consumes, and writes it down.

    A list is taken by renaming it, to a name that is used once. So each step may be repeated after a lost connection,
    whatever of it has worked, and every message is written down as often as it was on a list.

    Attributes:
        taken: id -> its messages.
    """

    def __init__(self, port: int, lists: Sequence[str]) -> None:
        self.taken: dict[str, list[Copy]] = {}
        self._client = redis.Redis(port=port, socket_timeout=30)
        self._lists = lists
        self._number = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._error: BaseException | None = None

    def take(self) -> int:
        """Take what is there; return how many messages that were.

        Raises:
            redis.RedisError: call it again.
        """
        names = [f"taken:{self._number}:{place}" for place in range(len(self._lists))]
        with self._client.pipeline(transaction=False) as pipeline:
            for ready, name in zip(self._lists, names, strict=True):
                pipeline.renamenx(ready, name)  # where it worked before, and we did not hear of it, it does nothing
                pipeline.lrange(name, 0, -1)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
        now = time.monotonic()
        for said in replies[::2]:
            if isinstance(said, Exception) and "no such key" not in str(said):
                raise said
        for bodies in replies[1::2]:
            if isinstance(bodies, Exception):
                raise bodies
        found = [body for bodies in replies[1::2] for body in bodies]
        for body in found:
            headers = json.loads(body)["headers"]
            self.taken.setdefault(headers["id"], []).append(copy_of(headers, now))
        self._number += 1
        if found:
            self._client.unlink(*names)  # should that not work they stay, and are not looked at any more
        return len(found)

    def _run(self) -> None:
        try:
            while not self._over.wait(LOOK_EVERY):
                try:
                    self.take()
                except redis.RedisError:
                    continue
        except BaseException as error:
            self._error = error
            raise

    def check(self) -> None:
        """Raise what has ended the thread, if anything has."""
        if self._error is not None:
            raise self._error

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)
        self._client.close()
