"""Nonsense for arguments, of every script: a word or a clean error, and never a half-done move.

Each call is one that works, with some of its arguments made into something else; each is made in a scene of its own.
What comes of it must be announced by the script's header; after an error nothing has changed; and after whatever it was
all of Redis agrees: ids and bodies, leases and tickets, the index.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from redis.exceptions import ResponseError

from celery_delayq.scripts import Value
from celery_delayq.store import Store

from .calls import ODD, Call, Scene, disagreements
from .conftest import contents_of, full
from .contract import SOURCES, header
from .test_contract import fits, raw

ONE_REDIS = True

#: Calls of each script.
MANY = 40

#: What an argument is made into.
NONSENSE: list[Value] = ["", "0", "-0", "-1", "1", "+", "+-5", "+5", "5 ", " 5", "05", "1.5", ".5", "1e3", "1e-320"]
NONSENSE += [" ", "0x10", "nan", "-nan", "inf", "-inf", "infinity", "1e300", "-1e300", "9" * 30, "9" * 400]
NONSENSE += [str(2**53), str(2**63), str(-(2**63)), str(2**64), "\x00", "1\x002", "\n", "nil", "true", "{}"]
NONSENSE += ["%", "[", "(", "%b", "^", ".-.-b", "é", "revoked:", "late:", "moved:q", "EXISTS", "a" * 40]
NONSENSE += [b"\xff\xfe", b"\x00\xff\r\n$5\r\n", b"x" * 2**20]

#: What a reply may hold of numbers: all that we write are times and counts.
GREATEST = 2**55

VERBS = sorted(SOURCES)


def spoiled(call: Call, scene: Scene, dice: random.Random) -> tuple[list[str], list[Value]]:
    """The call with some of its arguments made into nonsense, or taken away, or doubled. Topics stay as they are, and
    so does whether there are leases: a script cannot know that it is given the wrong ones of our keys.
    """
    keys, args = call.names, call.values
    taboo = ("topic", "keep", "expires")  # the last two would have a key vanish while we look
    free = [number for number, (_, entry) in enumerate(call.args) if entry.name not in taboo]
    for number in dice.sample(free, k=min(len(free), dice.choice([0, 1, 1, 1, 2, 5]))):
        args[number] = dice.choice(NONSENSE)
    if dice.random() < 0.1:
        args = args[: dice.randint(0, len(args))]
    if dice.random() < 0.1:
        args += dice.choices(NONSENSE, k=dice.randint(1, 4))
    some = keys[: dice.randint(0, len(keys))]
    if dice.random() < 0.05 and len(some) not in scene.counts_of_keys(call):
        keys = some
    elif dice.random() < 0.05:
        keys = [*keys, *dice.choices(["more", "and more", "é\x00"], k=dice.randint(1, 3))]
    return keys, args


def numbers(reply: Any) -> list[int]:
    """All numbers in a reply."""
    if isinstance(reply, list):
        return [number for part in reply for number in numbers(part)]
    return [reply] if isinstance(reply, int) else []


@pytest.mark.parametrize("verb", VERBS)
def test_nonsense_does_no_harm(store: Store, verb: str) -> None:
    """One word or another, as the header says; and the next one finds everything in order."""
    said, refused, taken = header(verb), 0, 0
    topics = ("q", ODD)
    errors = {one.error for one in said.replies if one.error}
    for number in range(MANY):
        dice = random.Random(f"fuzz {verb} {number}")
        scene = Scene(store, dice, topics)
        scene.set(verb)
        keys, args = spoiled(scene.call(verb), scene, dice)
        before = contents_of(store)
        about = f"{number}: {keys} {[word[:60] if isinstance(word, (str, bytes)) else word for word in args]}"
        try:
            reply = raw(store.client, verb, keys, args)
        except ResponseError as error:
            assert str(error).split()[0] in errors, f"{error}, {about}"  # noqa: PT017
            assert contents_of(store) == before, about
            refused += 1
        else:
            assert any(fits(one, reply, said) for one in said.replies if not one.error), f"{reply}, {about}"
            assert all(abs(one) < GREATEST for one in numbers(reply)), f"{reply}, {about}"
            taken += 1
        assert disagreements(contents_of(store), store.keys, topics) == [], about
    assert refused >= MANY / 20
    assert taken >= MANY / 20


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_redis_is_left_as_it_was_or_better(store: Store, verb: str) -> None:
    """Out of memory: refused whole, in Redis's words; or done whole."""
    for number in range(3):
        scene = Scene(store, random.Random(f"full {verb} {number}"))
        scene.set(verb)
        call = scene.call(verb)
        before = contents_of(store)
        with full(store):
            try:
                raw(store.client, verb, call.names, call.values)
            except ResponseError as error:
                assert re.search("OOM|maxmemory", str(error)), call.values  # noqa: PT017
                assert contents_of(store) == before, call.values
        assert disagreements(contents_of(store), store.keys, ("q", "r")) == [], call.values


def test_nothing_of_lua_itself_is_ever_told() -> None:
    """What the tests above take for a clean error is a word that a header announces; and there are few of them."""
    told = {one.error for verb in VERBS for one in header(verb).replies if one.error}
    assert told == {"WRONGTYPE", "BADARG", "READONLY"}
    assert all(re.fullmatch(r"[A-Z]+", word) for word in told)
