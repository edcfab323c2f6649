"""What the headers of the scripts claim, and what the scripts do: calls made of the headers alone.

What a header allows is taken, in every state of things, and answered in a shape that it announces; only the keys that
were given are touched, and are of the types announced; jobs move as it says. What it does not allow is refused, and
nothing has changed. See tests/lua/calls.py for how calls are made, tests/lua/contract.py for how headers are read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from celery_delayq.embedded import RedisServer
from celery_delayq.scripts import Value, script
from celery_delayq.store import Store

from .calls import BAD, Call, Scene, disagreements, refusable, states
from .conftest import Contents, contents_of
from .contract import ORDER, SOURCES, Header, Reply, header

ONE_REDIS = True

#: Calls that are made of each header; more of one that answers some words seldom.
MANY, MORE = 30, {"adopt": 150}

#: What the names in replies stand for.
NUMBERS = {"stored", "silent", "moved", "dropped", "orphans", "left", "now", "next", "requeued", "buried", "expired"}
NUMBERS |= {"n", "number", "aside", "version", "since", "delayed", "ready", "wait"}
BYTES = {"id", "topic", "delivery", "tickets", "name", "dues", "found", "due", "body"}
PERHAPS = {"step", "first", "grace", "cause"}  # of jobs that may have none

#: States in which nobody sees a job, or which are not ours.
UNSEEN = {"(nothing)", "zset", "list"}

VERBS = sorted(SOURCES)


@pytest.fixture
def caller(server: RedisServer) -> Iterator[redis.Redis]:
    """A user who may do everything, but to no key; a test allows him what a call names."""
    with server.client() as admin:
        admin.execute_command("ACL SETUSER caller reset on >secret +@all allchannels")
        with redis.Redis(
            port=server.port, username="caller", password="secret", single_connection_client=True
        ) as client:
            yield client
        admin.execute_command("ACL DELUSER caller")


def run(store: Store, client: redis.Redis, call: Call) -> Any:
    """Make the call, as one who may touch no key but those that it names."""
    store.client.execute_command("ACL", "SETUSER", "caller", "resetkeys", *[f"~{name}" for name in call.names])
    return raw(client, call.verb, call.names, call.values)


def raw(client: redis.Redis, verb: str, keys: list[str], args: list[Value]) -> Any:
    """Make a call and let errors be."""
    return client.eval(script(verb).text, len(keys), *keys, *args)


def test_every_verb_is_told_of() -> None:
    """In one of the three parts of the docs."""
    assert sorted(verb for verbs in ORDER for verb in verbs) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_headers_say_what_arguments_may_be(verb: str) -> None:
    """In the words of docs/lua.md."""
    for group in header(verb).args:
        for entry in group.entries:
            kind = entry.kind.removesuffix("?")
            assert kind in BAD, f"{entry.name} is {kind}"
            assert bool(entry.words) is (kind == "word")
            assert "''" in entry.text or not entry.kind.endswith("?"), entry.name


@pytest.mark.parametrize("verb", VERBS)
def test_what_the_header_allows_is_done_as_it_says(store: Store, caller: redis.Redis, verb: str) -> None:
    """Taken, answered as announced, no other key touched, types and moves as announced, nothing half done."""
    said = header(verb)
    met, left, entered = set(), set(), set()
    for number in range(MORE.get(verb, MANY)):
        scene = Scene(store, random.Random(f"{verb} {number}"))
        scene.set(verb)
        call = scene.call(verb)
        before = contents_of(store)
        assert disagreements(before, store.keys, ["q", "r"]) == []

        reply = run(store, caller, call)

        after = contents_of(store)
        about = f"{number}: {call.names} {call.values} -> {reply}"
        answers = [one for one in said.replies if not one.error and fits(one, reply, said)]
        assert answers, about
        met |= {one.shape for one in answers}
        changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        assert changed <= {name.encode() for name in call.names}, about
        assert not changed or not said.changes_nothing, about
        assert not changed or not all("nothing was written" in one.text for one in answers), about
        check_types(store, call)
        for state, (gone, come) in moved(before, after, store).items():
            left |= {state} if gone else set()
            entered |= {state} if come else set()
        assert left <= {one for one, _ in said.moves}, about
        assert entered <= {one for _, one in said.moves}, about
        check_counts(said, call, reply, about)
        assert disagreements(after, store.keys, ["q", "r"]) == [], about
    assert met == {one.shape for one in said.replies if not one.error}
    assert {(one, other) for one, other in said.moves if one != other and one not in left | UNSEEN} == set()
    assert {(one, other) for one, other in said.moves if one != other and other not in entered | UNSEEN} == set()


def check_types(store: Store, call: Call) -> None:
    """Each key that is there has the type announced."""
    for name, entry in call.keys:
        kind = store.client.type(name).decode()
        assert kind in ("none", entry.kind), name


def moved(before: Contents, after: Contents, store: Store) -> dict[str, tuple[bool, bool]]:
    """State -> whether a job has left it, and whether one has entered it."""
    old, new = (states(contents, store.keys, ["q", "r"]) for contents in (before, after))
    return {state: (bool(old[state] - new[state]), bool(new[state] - old[state])) for state in old}


def check_counts(said: Header, call: Call, reply: Any, about: str) -> None:
    """Where a reply is for each id, or for each job, there are as many."""
    if any(re.match(r"for each (id|job)", one.text) for one in said.replies):
        assert len(reply) == len(call.given("id")), about


@pytest.mark.parametrize("verb", VERBS)
def test_what_the_header_does_not_allow_is_refused_whole(store: Store, verb: str) -> None:
    """Each argument that may not be everything, with all that its kind excludes: an error that is announced."""
    said = header(verb)
    all_of_it = {
        entry.name
        for group in said.args
        for entry in group.entries
        if any(value or not entry.kind.endswith("?") for value in BAD[entry.kind.rstrip("?")])
    }
    tried = set[str]()
    for number in range(9):
        if tried == all_of_it:
            break
        scene = Scene(store, random.Random(f"refused {verb} {number}"))
        scene.set(verb)
        call = scene.call(verb)
        minding = {"progress": "so far", "on_conflict": "replace", "unattended": "store"}  # what else is not looked at
        call.args = [(minding.get(entry.name, value), entry) for value, entry in call.args]
        before = contents_of(store)
        for position, value in refusable(call):
            args = [*call.values[:position], value, *call.values[position + 1 :]]
            name = call.args[position][1].name
            with pytest.raises(ResponseError) as raised:
                assert raw(store.client, verb, call.names, args) is None, f"{name} = {value!r} of {args}"
            assert str(raised.value).startswith("BADARG "), f"{name} = {value!r} of {args}"
            tried.add(name)
        assert contents_of(store) == before
    assert tried == all_of_it
    assert "BADARG" in {one.error for one in said.replies}


@pytest.mark.parametrize("verb", VERBS)
def test_other_numbers_of_keys_and_arguments_are_refused_whole(store: Store, verb: str) -> None:
    """One key less or more, none; one argument less or more, none: where the header does not allow it."""
    said = header(verb)
    groups = {len(group.entries) for group in said.args if group.phrase}
    for number in range(2):
        scene = Scene(store, random.Random(f"numbers {verb} {number}"))
        scene.set(verb)
        call = scene.call(verb)
        before = contents_of(store)
        keys, args = call.names, call.values
        allowed = scene.counts_of_keys(call)
        tries = [(some, args) for some in ([], keys[:-1], [*keys, "more"], keys[:1]) if len(some) not in allowed]
        tries.append((keys, []))
        if 1 not in groups:
            tries += [(keys, [*args, "1"]), (keys, args[:-1])]
        for some, words in tries:
            with pytest.raises(ResponseError) as raised:
                assert raw(store.client, verb, some, words) is None, f"{some} {words}"
            assert str(raised.value).startswith("BADARG "), f"{some} {words}"
            assert contents_of(store) == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_key_of_another_type_is_refused_whole(store: Store, verb: str) -> None:
    """Each key of each script, of a type that it is not: the error names it, and nothing has changed. Or it was of
    no use to this very call: then it is as it was.
    """
    many, refused = len(scene_of(store, verb).keys), 0
    for number in range(many):
        call = scene_of(store, verb)
        name, entry = call.keys[number]
        kind = sorted({"string", "list", "hash", "zset"} - {entry.kind})[number % 3]
        store.client.delete(name)
        make(store.client, name, kind)
        before = contents_of(store)
        with suppress(ResponseError):
            raw(store.client, verb, call.names, call.values)
            assert contents_of(store)[name.encode()] == before[name.encode()]
            continue
        refused += 1
        with pytest.raises(ResponseError, match="^WRONGTYPE ") as raised:
            raw(store.client, verb, call.names, call.values)
        assert f"{name} is a {kind}, expected a {entry.kind}" in str(raised.value)
        assert contents_of(store) == before
    assert refused >= many / 2


def scene_of(store: Store, verb: str) -> Call:
    """Always the same scene, and a call."""
    scene = Scene(store, random.Random(f"types {verb}"))
    scene.set(verb)
    return scene.call(verb)


def make(client: redis.Redis, name: str, kind: str) -> None:
    """A key of that type."""
    if kind == "string":
        client.set(name, "1")
    elif kind == "list":
        client.lpush(name, "x")
    elif kind == "hash":
        client.hset(name, "x", "1")
    else:
        client.zadd(name, {"x": 1})


# How replies are written in the headers.


@dataclass(frozen=True)
class Listed:
    """A list: what comes once, and what comes any number of times after that."""

    once: tuple[Any, ...]
    again: tuple[Any, ...]


def fits(announced: Reply, reply: Any, said: Header) -> bool:
    """Whether *reply* has the shape that was announced."""
    shape = announced.shape
    if shape.startswith("{..., "):  # the first one, and more
        shape = said.replies[0].shape[:-1] + shape.removeprefix("{...")
    tokens = re.findall(r"\.\.\.|'\w+'|\w+|[{},;|]", shape)
    node = read(tokens)
    assert not tokens, shape
    words = set(re.findall(r"'([A-Z]+)'", announced.text))
    return agrees(node, reply, words, may_be_text=any("Instead of {" in one.text for one in said.replies))


def read(tokens: list[str]) -> Any:
    """One shape, of the tokens that begin it."""
    token = tokens.pop(0)
    if token != "{":
        choices = [token]
        while tokens and tokens[0] == "|":
            tokens.pop(0)
            choices.append(tokens.pop(0))
        return choices
    groups: list[list[Any]] = [[]]
    while (ahead := tokens[0]) != "}":
        if ahead in (",", ";", "..."):
            tokens.pop(0)
            if ahead == ";":
                groups.append([])
            elif ahead == "...":
                assert tokens[0] == "}", "what repeats stands at the end"
                tokens.pop(0)
                *once, again = groups
                return Listed(tuple(item for group in once for item in group), tuple(again))
        else:
            groups[-1].append(read(tokens))
    tokens.pop(0)
    return Listed(tuple(item for group in groups for item in group), ())


def agrees(node: Any, value: Any, words: set[str], *, may_be_text: bool) -> bool:
    if isinstance(node, Listed):
        if may_be_text and node.again and not node.once and node.again[0] == ["id"] and isinstance(value, bytes):
            return True
        if not isinstance(value, list):
            return False
        rest = value[len(node.once) :]
        if len(value) < len(node.once) or (rest and (not node.again or len(rest) % len(node.again))):
            return False
        items = [*node.once, *(node.again * (len(rest) // len(node.again)) if rest else ())]
        return all(agrees(one, part, words, may_be_text=may_be_text) for one, part in zip(items, value, strict=True))
    return any(is_called(choice, value, words) for choice in node)


def is_called(name: str, value: Any, words: set[str]) -> bool:
    if name.isdigit():
        return bool(value == int(name) and isinstance(value, int))
    if name.startswith("'"):
        return bool(value == name.strip("'").encode())
    if name == "word":
        return isinstance(value, bytes) and value.decode() in words
    assert name in NUMBERS | BYTES | PERHAPS, f"what is {name}?"
    return (
        isinstance(value, int) if name in NUMBERS else isinstance(value, bytes) or (name in PERHAPS and value is None)
    )
