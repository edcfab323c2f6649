"""Events that are entries of a Redis stream, shared among the consumers of a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import RLock
from typing import Any

import redis
from redis.exceptions import ResponseError

from celery_delayq.keys import WatcherKeys
from celery_delayq.scripts import Value

from .list_source import is_dead, run, written
from .source import Beat, Concluded, Conclusion, Event, Outcome, Push

#: Entries that one call takes over.
PORTION = 100


class StreamSource:
    """One consumer's way to one stream; see :class:`~celery_delayq.rules.source.Source`.

    An entry that was read and not acknowledged is pending: in Redis's own books, with the consumer's name. What a gone
    consumer left pending is taken over after *claim_after*, at once if it was a process of this machine.

    Args:
        client: of the Redis; its replies are bytes.
        keys: names for what tells of the watchers; a stream needs none, conclude.lua wants one.
        stream: the stream.
        group: the consumer group; one that is not there begins with the first entry.
        token: the consumer's name.
        field: of an entry: the event's text.
        claim_after: seconds.
        channel: where to tell what happens; "" for nowhere.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: WatcherKeys,
        stream: str,
        group: str,
        token: str,
        field: str,
        claim_after: float,
        channel: str = "",
    ) -> None:
        self._client = client
        self._keys = keys
        self._stream = stream
        self._group = group
        self._token = token
        self._field = field.encode()
        self._claim_after_ms = int(claim_after * 1000)
        self._channel = channel
        self._in_work: set[bytes] = set()
        self._lock = RLock()
        self._taken_over: list[Event] = []

    def begin(self) -> int:
        """Make the group if it is not there; take over what is this consumer's and what gone ones have left."""
        with self._lock:
            self._in_work = set()
        try:
            self._client.xgroup_create(self._stream, self._group, "0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._taken_over = self._take_over()
        return 0

    def take(self, limit: int, wait: float) -> list[Event]:
        """Up to *limit*; if there is none, what comes within *wait* seconds."""
        found, self._taken_over = self._taken_over, []
        if found:
            return self._begun(found)
        streams: Any = self._client.xreadgroup(
            self._group,
            self._token,
            {self._stream: ">"},
            count=limit,
            block=max(1, int(wait * 1000)) if wait > 0 else None,
        )
        entries = [entry for _, found in streams or () for entry in found]
        return self._begun(self._read(id, fields or {}) for id, fields in entries)

    def conclude(self, conclusions: Sequence[Conclusion]) -> list[Concluded]:
        """In one call."""
        return self._conclude(conclusions, b"DONE", b"", told=True)

    def bury(self, event: Event, entry: bytes, dead_queue: str, reason: str) -> Concluded:
        """Push *entry* to the dead list and acknowledge the event, and tell why."""
        buried = Conclusion(event, [Push(entry, dead_queue.encode(), told=b"")])
        why = f": {reason}".encode(errors="surrogateescape")
        return self._conclude([buried], b"DEAD", why, told=False)[0]

    def beat(self) -> Beat:
        """Say of what is in work that it still is; take over what others have left."""
        mine: Any = self._pending(self._token)
        if mine:
            self._client.xclaim(self._stream, self._group, self._token, 0, mine, justid=True)
        return Beat(0, self._begun(self._take_over()))

    def backlog(self) -> int:
        """How many entries the group has not read; 0 on a Redis that does not tell (before 7.0)."""
        groups: Any = self._client.xinfo_groups(self._stream)
        for group in groups:
            if group["name"] == self._group.encode():
                return int(group.get("lag") or 0)
        return 0

    def end(self) -> int:
        """Nothing: what is in work is pending, and taken over by who begins on this machine, or by others in time."""
        with self._lock:
            self._in_work = set()
        return 0

    def _pending(self, consumer: str) -> list[bytes]:
        """The entries that are pending with that consumer."""
        limit = PORTION + len(self._in_work)
        found: Any = self._client.xpending_range(self._stream, self._group, "-", "+", limit, consumer)
        return [entry["message_id"] for entry in found]

    def _take_over(self) -> list[Event]:
        """Entries that a gone consumer has left pending."""
        events: list[Event] = []
        consumers: Any = self._client.xinfo_consumers(self._stream, self._group)
        for consumer in consumers:
            name = consumer["name"].decode(errors="surrogateescape")
            if name != self._token and is_dead(name):
                if consumer["pending"]:
                    events += self._claim_from(name)
                else:
                    self._client.xgroup_delconsumer(self._stream, self._group, name)
        with self._lock:
            mine = set(self._in_work)
        reply: Any = self._client.xautoclaim(
            self._stream, self._group, self._token, self._claim_after_ms, "0-0", count=PORTION
        )
        return events + [self._read(id, fields) for id, fields in reply[1] if id not in mine and fields is not None]

    def _claim_from(self, consumer: str) -> list[Event]:
        ids: Any = self._pending(consumer)
        entries: Any = self._client.xclaim(self._stream, self._group, self._token, 0, ids)
        return [self._read(id, fields) for id, fields in entries if fields is not None]

    def _read(self, id: bytes, known: Mapping[bytes, bytes]) -> Event:
        at = int(id.partition(b"-")[0]) / 1000
        named = {name.decode(errors="replace"): value.decode(errors="surrogateescape") for name, value in known.items()}
        text = known.get(self._field)
        if text is None:
            fault = f"has no field {self._field.decode()!r}"
            return Event(id, id.decode(), {"fields": named}, fault, at)
        return Event(id, text.decode(errors="surrogateescape"), {"fields": named}, at=at)

    def _begun(self, events: Iterable[Event]) -> list[Event]:
        with self._lock:
            begun = [event for event in events if event.key not in self._in_work]
            self._in_work.update(event.key for event in begun)
        return begun

    def _conclude(self, conclusions: Sequence[Conclusion], last: bytes, why: bytes, *, told: bool) -> list[Concluded]:
        keys: dict[bytes | str, int] = {self._stream: 1, self._keys.holders: 2}
        args: list[Value] = [0, self._token, self._group, self._channel, self._stream, ""]
        for conclusion in conclusions:
            args += written(conclusion, keys, last, why, told=told and bool(self._channel))
        answers = run(self._client, list(keys), args)
        with self._lock:
            for conclusion, answer in zip(conclusions, answers, strict=True):
                if answer.outcome is not Outcome.REFUSED:
                    self._in_work.discard(conclusion.event.key)
        return answers
