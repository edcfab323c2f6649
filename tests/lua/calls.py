"""Calls of any script, made of what its header says: such as it must take, and such as it must refuse.

And what is there for them to meet: jobs in every state; and the look at Redis that tells whether all of it agrees.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery_delayq.delivery import Delivery
from celery_delayq.job import Put
from celery_delayq.keys import Keys
from celery_delayq.scripts import Value
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Contents, job
from .contract import Entry, Group, Header, header

#: The greatest number that a time may be.
LATEST = 2**53 - 1000

PLAIN = Delivery.plain("r")
#: A topic that is not easy to write; and where the jobs of each go.
ODD = "\x00\n é*[{"
DELIVERIES = {"q": QUEUE, "r": PLAIN, ODD: Delivery.plain("odd")}

#: Ids that are there in some state, and others.
IDS: Sequence[bytes] = (
    b"a",
    b"a",
    b"b",
    b"tie",
    b"late",
    b"mine",
    b"old",
    b"back",
    b"lost",
    b"none",
    b"new",
    b"\x00\n \xff",
)
DUES = {b"a": NOW + 5, b"b": NOW + 9, b"late": NOW + 900_000}
BODIES: Sequence[bytes] = (b"", b"body of a", b"body of late", b"one\n\x00\xfftwo", b"x" * 3000)

#: Arguments that stand for a time, or for how the others are to be read.
FIXED = {"now", "topic", "T", "t", "own", "tail", "or_tail"}

#: What no argument of a kind may be.
_NO_NUMBER = ("soon", "nan", "-nan", "inf", "-inf", "1e300", "1.5", "\x00", "1\n2")
_NO_SIZE = (*_NO_NUMBER, "-1", str(2**53), "1" * 400)
BAD: dict[str, Sequence[str]] = {
    "bytes": (),
    "id": ("",),
    "word": ("", "perhaps", "OK\x00"),
    "us": ("", *_NO_SIZE),
    "due": ("", *_NO_NUMBER, "+", "+inf", "+1e300", "+1.5", str(2**53), f"+{2**53}", "1" * 400),
    "span": ("", *_NO_SIZE, "0", str(2**50)),
    "ms": ("", *_NO_SIZE, "0"),
    "count": ("", *_NO_SIZE, "0"),
    "size": ("", *_NO_SIZE),
    "whole": ("", *_NO_NUMBER, "high"),
    "number": ("", "soon", "nan", "inf", "-inf", "1" * 400),
    "length": ("", "soon", "nan", "0", "-1", "inf", "1e300", str(2**53)),
    "sha1": ("", "abc", "a" * 39, "a" * 41),
    "alnum": ("", "a b", "a.b", "a-b", "a\n", "\x00", "é"),
}


@dataclass
class Call:
    """One call.

    Attributes:
        keys: with their names and types as the header has them.
        args: with their entries in the header.
        about: the ids that it names, in order.
    """

    verb: str
    keys: list[tuple[str, Entry]] = field(default_factory=list)
    args: list[tuple[Value, Entry]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [key for key, _ in self.keys]

    @property
    def values(self) -> list[Value]:
        return [value for value, _ in self.args]

    def given(self, name: str) -> list[Value]:
        """All arguments of that name."""
        return [value for value, entry in self.args if entry.name == name]


class Scene:
    """Jobs in every state, and how to make calls about them.

    Args:
        dice: decides everything.
        topics: those that there are.
    """

    def __init__(self, store: Store, dice: random.Random, topics: Sequence[str] = ("q", "r")) -> None:
        self._dice = dice
        self.topics = topics
        # Where there are leases, everybody minds them; but these verbs have stores without them only.
        self.leases = dice.random() < 0.8
        self.store = Store(store.client, store.keys, leases=True)
        self.keys = store.keys
        self.tokens: dict[bytes, str] = {}

    def set(self, verb: str) -> None:
        """Make the scene for *verb*, in an empty Redis."""
        self.leases = (self.leases or _needs_leases(header(verb))) and verb not in ("adopt", "drain")
        dice, store = self._dice, self.store
        if not _takes_several_topics(verb):
            self.topics = [dice.choice(self.topics)]
        store.client.flushdb()
        if not self.leases:
            store = Store(store.client, store.keys)
        for topic in self.topics:
            if self.leases:
                for id, lease in (("mine", 10**9), ("old", 50), ("lost", 10**9), ("back", 10**9)):
                    self._put(
                        store, job(id, 1, topic=topic, step=dice.choice([0, 3]), grace_us=dice.choice([5, 10**9]))
                    )
                    found = store.reserve(topic, 1, lease, now_us=NOW + 1, nonce=f"n{id}").jobs
                    self.tokens |= {one.id: one.token for one in found}
                    if id == "lost":
                        store.release(topic, found, max_attempts=1, reason="why\nelse", now_us=NOW + 1)
                    elif id == "back":
                        store.release(topic, found, in_us=dice.choice([0, 800_000]), now_us=NOW + 2)
                if dice.random() < 0.4:  # the id of a dead one is put anew, and perhaps reserved
                    self._put(store, job("lost", 1, topic=topic))
                    if dice.random() < 0.7:
                        found = store.reserve(topic, 1, 10**9, now_us=NOW + 1, nonce="nagain").jobs
                        self.tokens |= {one.id: one.token for one in found}
            options = {"max_wait_us": 10**9, "grace_us": dice.choice([60, 10**9]), "step": 6}
            self._put(store, job("a", 5, topic=topic, **options), job("tie", 5, topic=topic), job("b", 9, topic=topic))
            self._put(store, job("late", 900_000, topic=topic), job("gone", 9, topic=topic))
            store.delete(topic, ["gone"], lease_us=dice.choice([0, 10**9]), now_us=NOW)
            if dice.random() < 0.2:
                store.pause(topic)
            elif dice.random() < 0.2:
                store.resume(topic, dice.choice([1.5, 1e6]), now_us=NOW + 10)
        store.client.zadd("anybody:delayed", {"x": 1, "y": NOW + 5.5, b"\x00\xff": NOW / 1000})
        if verb == "adopt":
            store.client.hset("unacked", "tag", "message")
            store.client.zadd("unacked_index", {"tag": 1})
        if dice.random() < 0.5:
            store.tick(beat="somebody", now_us=NOW - dice.choice([0, 10**8]))
        if dice.random() < 0.6:
            store.client.set(self.keys.version, dice.choice([1, 2]))

    @staticmethod
    def _put(store: Store, *jobs: Put) -> None:
        store.put(jobs, {job.topic: DELIVERIES[job.topic] for job in jobs}, now_us=NOW)

    def call(self, verb: str) -> Call:
        """A call that the header allows."""
        topics = self.topics
        said = header(verb)
        made = Call(verb)
        many = len(topics) if any("for each topic" in group.phrase for group in said.keys) else 1
        chosen = self._dice.sample(topics, k=self._dice.randint(1, many))
        lists = DELIVERIES[chosen[0]].lists
        takes_reserved = self._dice.random() < 0.5
        for group in said.keys:
            if group.phrase.startswith("or, for dead jobs"):
                if self._dice.random() < 0.3:
                    made.keys = [(self._key(entry, chosen[0]), entry) for entry in group.entries]
                continue
            for topic in self._times_of_keys(group, chosen, lists, takes_reserved):
                for entry in group.entries:
                    if verb == "dispatch_zset":  # which has nothing to do with topics
                        key = f"anybody:{entry.name}"
                    else:
                        key = topic if entry.name == "ready" and group.phrase else self._key(entry, topic)
                    made.keys.append((key, entry))
        if verb == "restore":
            self._restore(said, made, chosen)
            return made
        for group in said.args:
            for number, topic in enumerate(self._times_of_args(group, chosen, lists), start=1):
                for entry in group.entries:
                    if entry.name == "step" and "ready list" in group.phrase:
                        value: Value = DELIVERIES[chosen[0]].steps[number - 1]
                    else:
                        value = self._value(entry, made, topic, chosen)
                    made.args.append((value, entry))
        return made

    def _times_of_keys(
        self, group: Group, topics: Sequence[str], lists: Sequence[str], takes_reserved: bool
    ) -> Sequence[str]:
        """For whom the keys of a group come: topics, or ready lists."""
        phrase = group.phrase
        if phrase.startswith("then, only where the store has leases"):
            if not self.leases:
                return ()
            return topics if "for each topic" in phrase else topics[:1]
        if phrase.startswith("then, only where reserved jobs"):
            return topics[:1] if self.leases and takes_reserved else ()
        if phrase.startswith("then one for each further ready list"):
            return lists[1:]
        if "for each topic" in phrase:
            return topics
        assert not phrase, f"what is the meaning of {phrase!r}?"
        return topics[:1]

    def _key(self, entry: Entry, topic: str) -> str:
        special = {"unacked": "unacked", "delivered": "unacked_index"}
        special["ready"] = DELIVERIES[topic].lists[0]
        if entry.name in special:
            return special[entry.name]
        named = getattr(self.keys, entry.name)
        if isinstance(named, str):
            return named
        made: str = named("shift" if entry.name == "journal" else topic)
        return made

    def _times_of_args(self, group: Group, topics: Sequence[str], lists: Sequence[str]) -> Sequence[str]:
        phrase = group.phrase
        if phrase.startswith("then one for each ready list"):
            return lists
        if phrase.startswith("then one for each topic that is to be looked at"):
            return self._dice.choices([*self.topics, "unknown"], k=self._dice.randint(0, 3))
        if phrase.startswith("then two for each topic"):
            return topics
        if phrase.startswith("then, if more is to be told"):
            return topics[: self._dice.randint(0, 1)]
        if "for each" in phrase:  # job, further job, needle
            return self._dice.choices(topics, k=self._dice.choice([0, 1, 1, 2, 5]))
        assert not phrase, f"what is the meaning of {phrase!r}?"
        return topics[:1]

    def _value(self, entry: Entry, made: Call, topic: str, topics: Sequence[str]) -> Value:
        """Something that an argument may be; mostly something that leads on."""
        dice, name = self._dice, entry.name
        kind, optional = entry.kind.rstrip("?"), entry.kind.endswith("?")
        about = next((_bytes(value) for value, one in reversed(made.args) if one.name == "id"), b"")
        named: dict[str, Callable[[], Value]] = {
            "channel": lambda: dice.choice(["", self.keys.wake]),
            "now": lambda: dice.choice([NOW + 10, NOW + 100, NOW + 10**6, NOW]),
            "topic": lambda: topic,
            "delivery": DELIVERIES.get(topic, PLAIN).dumps,
            "T": lambda: len(topics),
            "t": lambda: topics.index(topic) + 1,
            "id": lambda: dice.choice([*self.tokens] if self.tokens and dice.random() < 0.5 else IDS),
            "token": lambda: dice.choice([*[self.tokens.get(_bytes(made.args[-1][0]), "n.1")] * 3, "wrong", ""]),
            "tag": lambda: dice.choice(["tag", "tag", "tag", "gone", ""]),
            "least": lambda: dice.choice([0, 0, 0, 10**6]),
            "name": lambda: dice.choice([b"revoked:gone", b"late:a", b"x"]),
            "body": lambda: dice.choice(BODIES),
            "sha1": lambda: hashlib.sha1(dice.choice([b"body of " + about, b"body of " + about, b"else"])).hexdigest(),
            "max_attempts": lambda: dice.choice([1, 1, 2]),
            "own": lambda: dice.choice([1, 1, 2, 999_999_999]),
            "due": lambda: dice.choice([DUES.get(about, 0), NOW + 5, NOW + 900_000, NOW + 10**7, 0, LATEST]),
            "start": lambda: dice.choice([NOW, NOW + 9, -(10**16), 10**17]),
            "stop": lambda: dice.choice([NOW, NOW + 900_000, -(10**16), 10**17]),
            "if_due": lambda: dice.choice([NOW + 900_000, NOW + 9]),
            "tail": lambda: dice.choice(["", "^.*"]),
            "or_tail": lambda: dice.choice(["", "^b"]),
            "pattern": lambda: dice.choice([b"", b"b.d", b"\x00"]),
        }
        if optional and dice.random() < 0.4:
            return ""
        if kind == "due" and dice.random() < 0.4:
            return f"+{dice.choice([0, 5, 10**6])}"
        if name in named and (name in FIXED or dice.random() < 0.85):
            return named[name]()
        if kind == "word":
            return dice.choice(entry.words)
        pools: dict[str, Sequence[Value]] = {
            "bytes": (*BODIES, *IDS),
            "id": IDS,
            "us": (0, 1, 60, 10**6, LATEST),
            "due": (0, 60, LATEST, "+0", "+60"),
            "span": (1, 60, 2**50 - 1),
            "ms": (1_000, 10**9),
            "count": (1, 2, 100, 2**53 - 1),
            "size": (0, 1, 5, 2**53 - 1),
            "whole": (0, 3, 6, 9, -1, 255, -(10**16), 10**17),
            "number": (-1, 0.5, NOW),
            "length": (0.5, 1, 3333.3, 10**9),
            "sha1": ("a" * 40, "0" * 40),
            "alnum": ("x1", "A" * 40),
        }
        return dice.choice(pools[kind])

    def _restore(self, said: Header, made: Call, topics: Sequence[str]) -> None:
        """Its arguments come in an order of their own."""
        fixed, names, (how_many,), options, (size, *columns) = [group.entries for group in said.args]
        sizes = {topic: self._dice.choice([0, 1, 3]) for topic in topics}
        for entry in fixed:
            made.args.append((self._value(entry, made, topics[0], topics), entry))
        for topic in topics:
            made.args += [(self._value(entry, made, topic, topics), entry) for entry in names]
        optioned = [(topic, n) for topic in topics for n in range(1, sizes[topic] + 1) if self._dice.random() < 0.3]
        made.args.append((len(optioned), how_many))
        for topic, n in optioned:
            for entry in options:
                made.args.append((n if entry.name == "n" else self._value(entry, made, topic, topics), entry))
        for topic in topics:
            made.args.append((sizes[topic], size))
            for column in columns:
                made.args += [(self._value(column, made, topic, topics), column) for _ in range(sizes[topic])]

    @staticmethod
    def counts_of_keys(taken: Call) -> set[int]:
        """How many keys the script may take for the same arguments."""
        said = header(taken.verb)
        lists = sum(entry.name == "step" and entry.number is None for _, entry in taken.args)
        topics = len(taken.given("delivery")) or 1
        counts, more = {0}, set[int]()
        for group in said.keys:
            size, phrase = len(group.entries), group.phrase
            if phrase.startswith("or,"):
                more.add(size)
            elif phrase.startswith("then, only"):
                # Of put and restore they come together with what follows.
                times = topics if "for each topic" in phrase else 1
                counts |= {count + size * times for count in counts}
            elif "further ready list" in phrase:
                counts = {count + lists - 1 for count in counts}
            else:
                counts = {count + size * (topics if "for each topic" in phrase else 1) for count in counts}
        return counts | more


def _takes_several_topics(verb: str) -> bool:
    return verb == "tick" or any("for each topic" in group.phrase for group in header(verb).keys)


def _needs_leases(said: Header) -> bool:
    return any(entry.name == "leases" for group in said.keys if not group.phrase for entry in group.entries)


def _bytes(value: Value) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def refusable(call: Call) -> Iterator[tuple[int, str]]:
    """Numbers of arguments, and what they may not be."""
    for number, (_, entry) in enumerate(call.args):
        bad = BAD[entry.kind.rstrip("?")]
        if entry.name in ("t", "T", "N"):  # they say how the rest is to be read
            bad = [*bad, "77"]
        yield from ((number, value) for value in bad if value or not entry.kind.endswith("?"))


#: A state: which jobs, as topic and id, are in it.
States = dict[str, set[tuple[str, bytes]]]


def states(contents: Contents, keys: Keys, topics: Sequence[str]) -> States:
    """Which jobs are in which state."""

    def of(name: str) -> set[tuple[str, bytes]]:
        return {(topic, id) for topic in topics for id in _ids(contents, getattr(keys, name)(topic))}

    ready: dict[bytes, int] = {}
    for topic in topics:
        for key in DELIVERIES.get(topic, PLAIN).lists:
            for body in _ids(contents, key):
                ready[body] = ready.get(body, 0) + 1
    return {
        "waiting": of("schedule"),
        "reserved": of("leases"),
        "dead": of("dead"),
        "aside": {("", name) for name in _ids(contents, keys.aside)},
        "ready": {(str(number), body) for body, many in ready.items() for number in range(many)},
        "delivered": {("", tag) for tag in _ids(contents, "unacked")},
    }


def _ids(contents: Contents, key: str) -> list[bytes]:
    held: Any = contents.get(key.encode(), ())
    return list(held)


def disagreements(contents: Contents, keys: Keys, topics: Sequence[str]) -> list[str]:
    """What does not go together in Redis: ids without bodies, an index that is not right, and so on."""
    wrong: list[str] = []

    def table(key: str) -> dict[bytes, Any]:
        held: Any = contents.get(key.encode(), {})
        return dict(held)

    def same(topic: str, *names: str) -> None:
        first, *others = [set(table(getattr(keys, name)(topic))) for name in names]
        wrong.extend(
            f"{topic}: {names[0]} and {names[1 + n]} differ" for n, other in enumerate(others) if other != first
        )

    index, holds, expiries = table(keys.index), table(keys.holds), table(keys.expiries)
    for topic in topics:
        name = topic.encode()
        same(topic, "schedule", "jobs")
        same(topic, "leases", "tickets", "reserved")
        same(topic, "dead", "letters", "causes")
        schedule, held = table(keys.schedule(topic)), table(keys.leases(topic))
        for side in ("steps", "firsts", "graces", "attempts"):
            if not set(table(getattr(keys, side)(topic))) <= set(schedule):
                wrong.append(f"{topic}: {side} has more than the schedule")
        if set(schedule) & set(held):
            wrong.append(f"{topic}: an id waits and is reserved")
        place = max(min(schedule.values()), holds.get(name, 0)) if schedule else math.inf
        if index.get(name, math.inf) != place:
            wrong.append(f"{topic}: the index says {index.get(name)}, and not {place}")
        if expiries.get(name) != min(held.values(), default=None):
            wrong.append(f"{topic}: expiries is not the first lease")
        if bool(schedule) != (name in table(keys.topics)):
            wrong.append(f"{topic}: its delivery is there without jobs, or missing")
        if bool(held or table(keys.dead(topic))) != (name in table(keys.ways)):
            wrong.append(f"{topic}: its way is there without jobs, or missing")
        if not schedule and table(keys.ties(topic)):
            wrong.append(f"{topic}: ties without jobs")
    if set(table(keys.aside)) != set(table(keys.remains)):
        wrong.append("aside and remains differ")
    if not set(table(keys.rates)) <= set(holds):
        wrong.append("a rate without a hold")
    return wrong
