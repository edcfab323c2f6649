"""What every script refuses whole: a key that holds something else, an argument that is unusable.

One table for all of them, so that no key and no argument of any script is left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from celery_delayq.clock import LATEST_US
from celery_delayq.errors import DelayQError
from celery_delayq.keys import Keys
from celery_delayq.scripts import Value, script
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, job, put
from .test_headers import OF_NO_STORE, SOURCES, header

#: What no argument that wants a number may be.
NO_NUMBER = ("soon", "nan", "1.5")
NO_NUMBER_NOR_NONE = ("", *NO_NUMBER)
NO_TIME = (*NO_NUMBER, "inf", "-1", "1e300", str(2**53))
#: A step that is no whole number would be read by no consumer.
NO_STEP = ("", "high", "nan", "inf", "1.5", "1e3", "0x10", "1" * 19)
NO_DUE = (*NO_NUMBER_NOR_NONE, "inf", "+inf", "-inf", "1e300", str(LATEST_US + 1))
NO_LIMIT = (*NO_NUMBER_NOR_NONE, "0", "-1", "inf", "1e300", str(2**53))
NO_DIGEST = ("abc", "a" * 39, "a" * 41)

#: Of an argument that may be whatever it likes, such as a topic.
ANY: Sequence[str] = ()


@dataclass(frozen=True)
class Call:
    """One call of a script.

    Attributes:
        keys: all that it takes, in order.
        args: one that works, and what it may not be, for each argument.
    """

    keys: Callable[[Keys], list[str]]
    args: Sequence[tuple[Value, Sequence[str]]]

    def __call__(self, verb: str, store: Store, number: int = -1, value: str = "") -> object:
        """Make it, with another *value* for the argument of that number."""
        args = [value if position == number else good for position, (good, _) in enumerate(self.args)]
        return script(verb)(store.client, self.keys(store.keys), args)


CALLS = {
    "put": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, keys.beat, *keys.of_topic("q")),
            *(keys.expiries, *keys.of_leases("q")),
        ],
        [
            ("", ANY),
            (NOW, NO_TIME),
            ("error", ("", "perhaps")),
            ("new", ("", "old")),
            (60, NO_TIME),
            ("store", ("", "perhaps")),
            (1, (*NO_NUMBER_NOR_NONE, "0", "2", "-1")),
            ("q", ANY),
            (QUEUE.dumps(), ANY),
            (1, (*NO_NUMBER_NOR_NONE, "0", "2", "-1")),
            ("new", ("",)),
            (NOW, NO_DUE),
            (6, NO_STEP),
            (LATEST_US, NO_TIME),
            (60, NO_TIME),
            ("body", ANY),
        ],
    ),
    "adopt": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, keys.beat, "unacked", "unacked_index"),
            *keys.of_topic("q"),
        ],
        [
            ("", ANY),
            (NOW, NO_TIME),
            ("tag", ANY),
            (3, (*NO_NUMBER_NOR_NONE, "-1")),
            (60, NO_TIME),
            ("replace", ("", "perhaps")),
            ("q", ANY),
            (QUEUE.dumps(), ANY),
            ("new", ("",)),
            (NOW + 9, (*NO_DUE, "1e15", "-1", " 5", "+5")),
            (6, NO_STEP),
            (LATEST_US, NO_TIME),
            (60, NO_TIME),
            ("body", ANY),
        ],
    ),
    "restore": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, *keys.of_topic("q")),
            *(keys.expiries, *keys.of_leases("q")),
        ],
        [
            ("", ANY),
            ("error", ("", "perhaps")),
            (1, (*NO_NUMBER_NOR_NONE, "0", "2", "-1")),
            ("q", ANY),
            (QUEUE.dumps(), ANY),
            (1, (*NO_NUMBER_NOR_NONE, "0", "2", "-1")),
            (1, (*NO_NUMBER_NOR_NONE, "0", "2", "-1")),
            (2, (*NO_NUMBER_NOR_NONE, "0", "-1")),
            (6, NO_STEP[1:]),
            (NOW, NO_TIME),
            (60, NO_TIME),
            (2, (*NO_NUMBER_NOR_NONE, "1", "3", "-1")),
            ("new", ("",)),
            ("newer", ("",)),
            (NOW, (*NO_DUE, "1e15", "-1", " 5")),
            (NOW, NO_DUE),
            ("body", ANY),
            ("body", ANY),
        ],
    ),
    "delete": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains),
            *(*keys.of_topic("q"), keys.attempts("q"), keys.expiries, keys.ways, *keys.of_leases("q")[1:]),
            keys.dead("q"),
        ],
        [(NOW, NO_TIME), ("q", ANY), (60, NO_TIME), ("a", ANY), ("", NO_DIGEST)],
    ),
    "move": Call(
        lambda keys: [
            *(keys.index, keys.holds, keys.schedule("q"), keys.jobs("q"), keys.ties("q"), keys.journal("shift")),
        ],
        [
            ("", ANY),
            (NOW, NO_TIME),
            ("q", ANY),
            ("so far", ANY),
            (60_000, (*NO_NUMBER_NOR_NONE, "0", "-1", "1e300")),
            ("late", ANY),
            (NOW + 7, (*NO_NUMBER_NOR_NONE, "inf", "+inf", "1e300", str(LATEST_US + 1))),
            (NOW + 900_000, ("soon",)),
            ("", NO_DIGEST),
        ],
    ),
    "dispatch": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains),
            *keys.of_topic("q"),
            *(*QUEUE.lists, keys.attempts("q")),
        ],
        [
            (NOW + 100, NO_TIME),
            ("q", ANY),
            (10, NO_LIMIT),
            ("back", ("", "middle")),
            (60_000, (*NO_NUMBER, "0", "-1", "1e300")),
            (50, (*NO_NUMBER, "-1")),
            *((step, NO_STEP) for step in QUEUE.steps),
            ("jobs", ("", "all", "due")),
            ("body", ANY),
        ],
    ),
    "drain": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, keys.rates, keys.totals),
            *keys.of_topic("q"),
            *QUEUE.lists,
        ],
        [
            ("q", ANY),
            (60_000, (*NO_NUMBER, "0", "-1", "1e300")),
            *((step, NO_STEP) for step in QUEUE.steps),
            ("late", ANY),
            (NOW + 900_000, (*NO_NUMBER_NOR_NONE, "inf")),
            (hashlib.sha1(b"body of late").hexdigest(), ("", *NO_DIGEST)),
            ("other", ANY),
        ],
    ),
    "tick": Call(
        lambda keys: [keys.index, keys.topics, keys.aside, keys.beat, keys.expiries],
        [(NOW, NO_TIME), (100, NO_LIMIT), ("a", ANY), ("fleet", ANY), ("q", ANY)],
    ),
    "pause": Call(lambda keys: [keys.index, keys.holds, keys.rates], [("q", ANY)]),
    "resume": Call(
        lambda keys: [keys.index, keys.holds, keys.rates, keys.schedule("q")],
        [("", ANY), (NOW, NO_TIME), ("q", ANY), (2.5, ("soon", "nan", "0", "-1", "inf"))],
    ),
    "purge": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, keys.rates, keys.totals, *keys.of_topic("q"), keys.attempts("q")),
        ],
        [("q", ANY)],
    ),
    "reserve": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains),
            *(keys.expiries, keys.ways, *keys.of_topic("q"), *keys.of_leases("q")),
        ],
        [
            (NOW + 100, NO_TIME),
            ("q", ANY),
            (10, NO_LIMIT),
            (60, (*NO_NUMBER_NOR_NONE, "0", "-1", "inf")),
            ("abc", ("", "a b", "a.b", "a-b")),
            ("", ("soon", "1.5", "-1", "nan")),
        ],
    ),
    "ack": Call(
        lambda keys: [keys.totals, keys.expiries, keys.ways, *keys.of_leases("q")[1:], keys.dead("q")],
        [("q", ANY), ("mine", ANY), ("n.3", ANY)],
    ),
    "release": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, keys.totals, keys.expiries, keys.ways),
            *(*keys.of_topic("q"), *keys.of_leases("q"), *keys.of_dead("q")),
        ],
        [
            ("", ANY),
            (NOW + 100, NO_TIME),
            ("q", ANY),
            (NOW + 900, NO_DUE),
            (5, (*NO_NUMBER, "0", "-1", "inf")),
            ("the broker is away", ANY),
            (1, (*NO_NUMBER, "2", "-1")),
            ("mine", ANY),
            ("n.3", ANY),
        ],
    ),
    "extend": Call(
        lambda keys: [keys.expiries, keys.leases("q"), keys.tickets("q")],
        [(NOW, NO_TIME), ("q", ANY), (60, (*NO_NUMBER_NOR_NONE, "0", "-1", "inf")), ("mine", ANY), ("n.3", ANY)],
    ),
    "requeue": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, keys.totals, keys.expiries, keys.ways),
            *(*keys.of_topic("q"), *keys.of_leases("q"), *keys.of_dead("q")),
        ],
        [
            ("", ANY),
            (NOW + 100, NO_TIME),
            ("q", ANY),
            (10, NO_LIMIT),
            (1_000_000, (*NO_NUMBER_NOR_NONE, "-1", "inf")),
            (5, (*NO_NUMBER, "0", "-1", "inf")),
        ],
    ),
    "pull": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains),
            *(*keys.of_topic("q"), keys.attempts("q")),
        ],
        [(NOW + 100, NO_TIME), ("q", ANY), (10, NO_LIMIT)],
    ),
    "revive": Call(
        lambda keys: [
            *(keys.index, keys.topics, keys.holds, keys.ways, *keys.of_topic("q")[:5], keys.tickets("q")),
            *keys.of_dead("q"),
        ],
        [("", ANY), (NOW, NO_TIME), ("q", ANY), ("lost", ANY)],
    ),
    "discard": Call(lambda keys: [keys.ways, keys.leases("q"), *keys.of_dead("q")], [("q", ANY), ("lost", ANY)]),
    "claim": Call(
        lambda keys: [keys.aside, keys.remains],
        [(NOW, NO_TIME), (60, (*NO_NUMBER_NOR_NONE, "-1")), (10, NO_LIMIT)],
    ),
    "version": Call(
        lambda keys: [keys.version],
        [(1, (*NO_NUMBER_NOR_NONE, "0", "-1", "01", "1e3", "9999999999")), ("mark", ("", "perhaps"))],
    ),
    "forget": Call(lambda keys: [keys.aside, keys.remains], [("revoked:gone", ANY)]),
    "page": Call(
        lambda keys: [keys.schedule("q"), keys.jobs("q"), keys.steps("q"), keys.firsts("q"), keys.graces("q")],
        [
            ("asc", ("", "sideways")),
            (NOW, ("soon", "nan")),
            (NOW + 900, ("soon", "nan")),
            (NOW, ("soon", "nan")),
            ("a", ANY),
            (10, NO_LIMIT),
            (1000, ("", "soon", "nan", "-1")),
            ("body", ("",)),
            ("", ANY),
            ("", ANY),
        ],
    ),
}

KEYS = [(verb, number) for verb, call in CALLS.items() for number in range(len(call.keys(Keys("delayq"))))]
ARGUMENTS = [
    (verb, number, value) for verb, call in CALLS.items() for number, (_, bad) in enumerate(call.args) for value in bad
]


@pytest.fixture
def store(store: Store) -> Store:
    """Every kind of key is there, and every script has reason to look at it: jobs of all options, ties, a rate; one
    that came back, a dead one, and one whose lease will have run out.
    """
    store = Store(store.client, store.keys, leases=True)
    put(store, job("back", 0), job("lost", 1), job("mine", 2, step=3))
    back, lost, _ = store.reserve("q", 3, 60, now_us=NOW + 2, nonce="n").jobs
    store.release("q", [back], in_us=800_000, now_us=NOW + 2)
    store.release("q", [lost], max_attempts=1, reason="why", now_us=NOW + 2)
    put(store, job("a", 5, step=3, max_wait_us=50, grace_us=70), job("tie", 5), job("late", 900_000), job("gone", 9))
    store.resume("q", 2.0, now_us=NOW + 10)
    store.delete("q", ["gone"], lease_us=0, now_us=NOW)
    store.client.hset("unacked", "tag", "message")
    store.client.zadd("unacked_index", {"tag": 1})
    return store


def test_the_table_has_every_script() -> None:
    """A new script is not forgotten here, nor a key or an argument that a header numbers."""
    assert set(CALLS) == set(SOURCES) - OF_NO_STORE
    for verb, call in CALLS.items():
        for name, given in (("KEYS", call.keys(Keys("delayq"))), ("ARGV", call.args)):
            numbered = re.findall(rf"{name}\[(\d+)\]", header(SOURCES[verb]))
            assert max(map(int, numbered)) <= len(given)


@pytest.mark.parametrize("verb", CALLS)
def test_nothing_is_refused_without_a_reason(store: Store, verb: str) -> None:
    """The calls of the table work as they are: what is refused below is refused for what is wrong with it."""
    CALLS[verb](verb, store)


@pytest.mark.parametrize(("verb", "number"), KEYS)
def test_a_foreign_key_is_refused_before_anything_is_written(
    store: Store, contents: Reader, verb: str, number: int
) -> None:
    """A wrong type under any key of any script: the error names it and the way out, and nothing has changed."""
    key = CALLS[verb].keys(store.keys)[number]
    store.client.set(key, "somebody else's")
    before = contents()

    with pytest.raises(DelayQError, match=r"is a string, expected.*delayq_prefix") as raised:
        CALLS[verb](verb, store)

    assert key in str(raised.value)
    assert before == contents()


@pytest.mark.parametrize(("verb", "number", "value"), ARGUMENTS)
def test_an_unusable_argument_is_refused_before_anything_is_written(
    store: Store, contents: Reader, verb: str, number: int, value: str
) -> None:
    """What is no number, no word that is known or out of all bounds: refused, and nothing has changed."""
    before = contents()

    with pytest.raises(DelayQError, match=f"^{verb}: "):
        CALLS[verb](verb, store, number, value)

    assert before == contents()


@pytest.mark.parametrize("verb", CALLS)
def test_no_keys_and_no_arguments_are_refused(store: Store, contents: Reader, verb: str) -> None:
    """Also by a script that takes any number of ids: what it is about must be said. Never in words of Lua's own."""
    before = contents()
    names, args = CALLS[verb].keys(store.keys), [good for good, _ in CALLS[verb].args]

    for keys, words in (([], args), ([*names[:1]], args) if len(names) > 1 else ([], []), ([], []), (names, [])):
        with pytest.raises(DelayQError, match=f"^{verb}: "):
            script(verb)(store.client, keys, words)

    assert before == contents()


@pytest.mark.parametrize(
    "verb",
    [
        *("put", "restore", "adopt", "delete", "move", "drain", "dispatch", "pause", "purge", "page"),
        *("reserve", "ack", "release", "extend", "requeue", "pull", "version", "claim", "resume"),
    ],
)
def test_one_argument_too_many_is_refused(store: Store, contents: Reader, verb: str) -> None:
    """Where the number of arguments tells what they are, a wrong number is no guess."""
    call = CALLS[verb]
    before = contents()

    with pytest.raises(DelayQError, match=f"^{verb}: "):
        Call(call.keys, [*call.args, ("1", ANY)])(verb, store)

    assert before == contents()
