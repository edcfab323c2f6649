"""The written contract of the scripts: headers, names and code agree."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import pytest

from celery_delayq.store import Store


def sources(folder: Any) -> dict[str, str]:
    """Verb -> source."""
    found = [file for file in folder.iterdir() if file.name.endswith(".lua")]
    return {file.name.removesuffix(".lua"): file.read_text(encoding="utf-8") for file in found}


SOURCES = sources(files("celery_delayq.lua"))

#: The scripts of the rules' watchers, whose keys are the users'.
OF_RULES = {f"rules/{verb}": source for verb, source in sources(files("celery_delayq.lua") / "rules").items()}

ALL = {**SOURCES, **OF_RULES}

#: Verbs for what is not a store's.
OF_NO_STORE = {"dispatch_zset"}


def header(source: str) -> str:
    """The comment block at the top."""
    lines = source.splitlines()
    return "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("--"))])


def code(source: str) -> str:
    """What is not comment."""
    return "\n".join(line.partition("--")[0] for line in source.splitlines())


def test_the_verbs_are_here() -> None:
    """Every verb of the store is one file."""
    reading = {"tick", "page"}
    writing = {"put", "restore", "adopt", "delete", "move", "drain", "dispatch", "pause", "resume", "purge"}
    leasing = {"reserve", "ack", "release", "extend", "requeue", "pull", "revive", "discard"}
    assert reading | writing | leasing | {"claim", "forget", "version", *OF_NO_STORE} == set(SOURCES)


def test_each_script_of_the_rules_has_its_test_file() -> None:
    """One word for one thing, there too."""
    assert {f"rules/{verb}" for verb in ("enlist", "take", "conclude", "give_back")} <= set(OF_RULES)
    for verb in OF_RULES:
        folder, name = verb.split("/")
        assert (files("tests.lua") / folder / f"test_{name}.py").is_file()


@pytest.mark.parametrize("verb", sorted(SOURCES))
def test_a_verb_is_a_method_of_the_store_and_has_its_test_file(verb: str) -> None:
    """One word for one thing: Lua file, method, test file."""
    assert callable(getattr(Store, verb, None)) is (verb not in OF_NO_STORE)
    assert (files("tests.lua") / f"test_{verb}.py").is_file()


@pytest.mark.parametrize("verb", sorted(ALL))
def test_a_header_tells_everything(verb: str) -> None:
    """Purpose first, then keys, arguments, replies and cost."""
    text = header(ALL[verb])

    assert text.startswith(f"-- {verb.rpartition('/')[2]}: ")
    for part in ("KEYS[1]", "ARGV[1]", "Returns", "error WRONGTYPE", "Cost"):
        assert part in text
    assert ("error BADARG" in text) is ("BADARG" in code(ALL[verb]))


@pytest.mark.parametrize("verb", sorted(ALL))
def test_the_code_uses_the_keys_and_arguments_that_the_header_numbers(verb: str) -> None:
    """No fixed index in the code that the header does not explain, and none explained that is not there."""
    text, body = header(ALL[verb]), code(ALL[verb])
    for name in ("KEYS", "ARGV"):
        told = set(re.findall(rf"{name}\[(\d+)", text))
        used = set(re.findall(rf"{name}\[(\d+)\]", body))
        assert used <= told
        assert told == {str(number) for number in range(1, len(told) + 1)} or (verb, name) == ("put", "KEYS")


@pytest.mark.parametrize("verb", sorted(ALL))
def test_a_script_that_changes_nothing_says_so(verb: str) -> None:
    """And no other does: by the commands that it calls."""
    called = set(re.findall(r"redis\.p?call\('(\w+)'", ALL[verb]))
    reads = {"EXISTS", "HEXISTS", "HGET", "HLEN", "HMGET", "LLEN", "TIME", "TYPE"}
    reads |= {"ZCARD", "ZCOUNT", "ZMSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZRANK", "ZREVRANGE", "ZSCORE"}

    assert ("Changes nothing." in header(ALL[verb]).replace("\n-- ", " ")) is (called <= reads)


@pytest.mark.parametrize("verb", sorted(ALL))
def test_lines_can_be_read_side_by_side(verb: str) -> None:
    """As long as those of the Python code, and no longer."""
    assert max(map(len, ALL[verb].splitlines())) <= 120


@pytest.mark.parametrize("verb", sorted(ALL))
def test_no_script_makes_a_key_or_reads_a_body(verb: str) -> None:
    """Keys arrive in KEYS, bodies stay bytes, and no due time becomes text but by an exact format."""
    body = code(ALL[verb])

    assert "cjson" not in body
    assert "tostring" not in body
    assert not re.search(r"redis\.p?call\('\w+', '", body)
    assert "KEYS'" not in body


@pytest.mark.parametrize("verb", sorted(ALL))
def test_no_script_leaks_a_global(verb: str) -> None:
    """Every name is local: a global would be an error on a newer Redis, and shared on none."""
    assigned = set(re.findall(r"^\s*(\w+)\s*=[^=]", code(ALL[verb]), re.MULTILINE))
    declared = set(re.findall(r"\blocal (?:function )?([\w, ]+)", code(ALL[verb])))
    names = {name.strip() for group in declared for name in group.split(",")}

    assert assigned <= names


def test_what_two_scripts_share_is_the_same() -> None:
    """Scripts have no imports, so this holds the copies together: how to choose a place among equals, how to take what
    is due, and how to end a lease.
    """

    def part(verb: str, first: str, last: str) -> str:
        source = SOURCES[verb]
        return source[source.index(first) : source.index(last, source.index(first))]

    slots = [
        part(verb, "local function slot", "\nend") for verb in ("put", "adopt", "move", "release", "requeue", "revive")
    ]
    assert len(set(slots)) == 1
    ends = [part(verb, "local function end_lease", "\nend") for verb in ("release", "requeue")]
    assert len(set(ends)) == 1
    tails = [part(verb, "-- pcall: a word", "local runs_out") for verb in ("release", "requeue")]
    assert len(set(tails)) == 1
    for first, last in (("local function read()", "\nend"), ("local left, place, held", "ZREMRANGEBYSCORE")):
        taken = [part(verb, first, last) for verb in ("reserve", "pull")]
        assert len({re.sub(r"KEYS\[\d+\]", "KEYS[n]", text) for text in taken}) == 1
