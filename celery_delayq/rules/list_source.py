"""Events in a Redis list, taken as Resc takes them: from its tail into a list of events in work."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any

import redis

from celery_delayq.clock import SECOND_US
from celery_delayq.errors import AlreadyScheduled
from celery_delayq.keys import WatcherKeys
from celery_delayq.scripts import Value, script

from .source import Beat, Concluded, Conclusion, Event, Evicted, Outcome, Push

#: A watcher that was not heard of for so long (s) is gone.
PATIENCE = 5.0

#: Events that one call gives back.
PORTION = 1000


@cache
def host() -> str:
    """Names this machine since it was started, or this container: wherever a number is one and the same process."""
    names = [socket.gethostname()]
    with suppress(OSError):  # where there is no such thing, as on a Mac
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
        names.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(names)


def token_of(unique: str) -> str:
    """What a watcher of this process has its place by.

    Args:
        unique: tells it from others of the process, also from earlier ones of the same number.
    """
    return f"{host()} {os.getpid()} {unique}"


def is_dead(token: str) -> bool:
    """Whether *token* is of a process of this machine that lives no more."""
    where, pid, _ = token.split(" ", 2) if token.count(" ") >= 2 else ("", "", "")
    if where != host() or not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's
        return False
    return False


class ListSource:
    """One watcher's way to one list; see :class:`~celery_delayq.rules.source.Source`.

    Args:
        client: of the Redis; its replies are bytes.
        keys: of the watchers of this list.
        input_queue: the list.
        token: of this watcher, as :func:`token_of` makes it.
        channel: where to tell what happens; "" for nowhere.
        read: what an event's bytes say.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: WatcherKeys,
        input_queue: str,
        token: str,
        channel: str = "",
        read: Callable[[bytes], Event] | None = None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._input = input_queue
        self._token = token
        self._channel = channel
        self._read = read or event_of
        self._slot = -1
        self._in_work: Counter[bytes] = Counter()
        self._lock = RLock()  # a watcher concludes in several threads

    def begin(self) -> int:
        """Take the first free place; give back what is left there and what gone watchers have left."""
        self._in_work = Counter()
        self._slot = -1
        moved = self._reclaim()
        slot = 0
        while not self._enlist(slot, takes=True):
            slot += 1
        self._slot = slot
        return moved + self._give_back(slot, self._token)

    def beat(self) -> Beat:
        """Say that it lives; give back what gone watchers have left; take in what has come to its own list unasked.

        The latter happens when a watcher was taken for gone while it waited for an event: that came to a place
        which was another's by then.

        Raises:
            Evicted: it has lost its place.
        """
        if not self._enlist(self._slot, takes=False):
            raise self._evicted()
        returned = self._reclaim()
        with self._lock:
            found: Counter[Any] = Counter()
            if self._client.llen(self._taken) > self._in_work.total():
                there: Any = self._client.lrange(self._taken, 0, -1)
                found = Counter(there) - self._in_work
            return Beat(returned, self._begun(found.elements()))

    def take(self, limit: int, wait: float) -> list[Event]:
        """Up to *limit* in one call; if there is none, the next one that comes within *wait* seconds.

        Raises:
            Evicted: it has lost its place.
        """
        keys = [self._input, self._taken, self._keys.holders]
        events = script("rules/take")(self._client, keys, [self._slot, self._token, limit])
        if events == 0:
            raise self._evicted()
        if not events and wait > 0:
            event: bytes | None = self._client.blmove(self._input, self._taken, wait, "RIGHT", "LEFT")  # type: ignore[arg-type, assignment]  # a float is fine, and replies are bytes
            events = [] if event is None else [event]
        with self._lock:
            return self._begun(events)

    def conclude(self, conclusions: Sequence[Conclusion]) -> list[Concluded]:
        """In one call."""
        return self._conclude(conclusions, b"DONE", [b""] * len(conclusions), told=True)

    def bury(self, event: Event, entry: bytes, dead_queue: str, reason: str) -> Concluded:
        """Push *entry* to the dead list and clear the event, and tell why."""
        buried = Conclusion(event, [Push(entry, dead_queue.encode(), told=b"")])
        why = f": {reason}".encode(errors="surrogateescape")
        return self._conclude([buried], b"DEAD", [why], told=False)[0]

    def backlog(self) -> int:
        """How many events wait to be taken."""
        return int(self._client.llen(self._input))

    def end(self) -> int:
        """Give back what is in work, and the place."""
        if self._slot < 0:
            return 0
        slot, self._slot = self._slot, -1
        return self._give_back(slot, self._token, frees=True)

    @property
    def _taken(self) -> str:
        return self._keys.in_work(self._slot)

    def _evicted(self) -> Evicted:
        return Evicted(f"the watcher of {self._input!r} was not heard of for {PATIENCE:g} seconds, and taken for gone")

    def _begun(self, events: Iterable[bytes]) -> list[Event]:
        read = [self._read(event) for event in events]
        self._in_work.update(event.key for event in read)
        return read

    def _enlist(self, slot: int, *, takes: bool) -> bool:
        keys = [self._keys.holders, self._keys.beats]
        return bool(script("rules/enlist")(self._client, keys, [slot, self._token, int(takes), ""]))

    def _reclaim(self) -> int:
        """Give back what lies at the places of gone watchers, and where nobody is."""
        holders: Mapping[Any, Any] = self._client.hgetall(self._keys.holders)
        moved = 0
        for name, token in holders.items():
            slot, holder = int(name), token.decode(errors="surrogateescape")
            if slot == self._slot:
                continue
            if not holder or is_dead(holder):
                moved += self._give_back(slot, holder, frees=bool(holder))
            else:
                moved += self._give_back(slot, holder, frees=True, patience=PATIENCE)
        return moved

    def _give_back(self, slot: int, token: str, *, frees: bool = False, patience: float | None = None) -> int:
        keys = [self._input, self._keys.in_work(slot), self._keys.holders, self._keys.beats]
        waits = "" if patience is None else int(patience * SECOND_US)
        total = 0
        while True:
            moved: int
            left: int
            args: list[Value] = [slot, token, waits, int(frees), PORTION, ""]
            moved, left = script("rules/give_back")(self._client, keys, args)
            total += max(moved, 0)
            if not left:
                return total

    def _conclude(
        self, conclusions: Sequence[Conclusion], last: bytes, reasons: Sequence[bytes], *, told: bool
    ) -> list[Concluded]:
        if self._slot < 0:  # it has ended; a thread of its own comes late
            return [Concluded(Outcome.LOST)] * len(conclusions)
        keys: dict[bytes | str, int] = {self._taken: 1, self._keys.holders: 2}
        args: list[Value] = [self._slot, self._token, "", self._channel, self._keys.taken, ""]
        for conclusion, why in zip(conclusions, reasons, strict=True):
            args += written(conclusion, keys, last, why, told=told and bool(self._channel))
        answers = run(self._client, list(keys), args)
        with self._lock:
            for conclusion, answer in zip(conclusions, answers, strict=True):
                if answer.outcome is not Outcome.REFUSED:
                    self._in_work[conclusion.event.key] -= 1
            self._in_work = +self._in_work
        return answers


def event_of(event: bytes) -> Event:
    """A plain text: bytes that are no UTF-8 come out again as they were."""
    return Event(event, event.decode(errors="surrogateescape"), {})


def written(
    conclusion: Conclusion, keys: dict[bytes | str, int], last: bytes, why: bytes, *, told: bool
) -> list[Value]:
    """One event as conclude.lua wants it; what keys it needs is added to *keys*, key -> number."""

    def number(key: bytes | str) -> int:
        return keys.setdefault(key, len(keys) + 1)

    text = conclusion.event.text.encode(errors="surrogateescape")
    words: list[Value] = [conclusion.event.key, text, last, why, len(conclusion.puts)]
    for names, given in conclusion.puts:
        words += len(names), len(given), *map(number, names), *given
    lines = conclusion.told if told else []
    words += len(lines), *lines, len(conclusion.pushes)
    for push in conclusion.pushes:
        said = (push.task if push.told is None else push.told) if told else b""
        words += push.task, number(push.queue), 0 if push.set is None else number(push.set), said
    return words


def run(client: redis.Redis, keys: Sequence[str | bytes], args: Sequence[Value]) -> list[Concluded]:
    """Run conclude.lua."""
    return [_answer(reply) for reply in script("rules/conclude", "put")(client, keys, args)]


def _answer(reply: Sequence[Any]) -> Concluded:
    if reply[0] == b"EXISTS":
        waiting = AlreadyScheduled(reply[1].decode(errors="surrogateescape"))
        return Concluded(Outcome.REFUSED, reason=str(waiting), passing=False)
    outcome = Outcome(reply[0].decode())
    if outcome is Outcome.REFUSED:
        return Concluded(outcome, reason=reply[1].decode(errors="replace"))
    return Concluded(outcome, frozenset(reply[1:]))
