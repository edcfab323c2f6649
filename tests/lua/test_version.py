"""version.lua: whoever is too old for a key space is told so, and leaves it alone."""

from __future__ import annotations

import pytest
import redis

from celery_delayq.embedded import RedisServer
from celery_delayq.errors import DelayQError, Outdated
from celery_delayq.keys import VERSION
from celery_delayq.scripts import script
from celery_delayq.store import Store

from .conftest import Reader, full


def test_the_first_one_marks_the_key_space(store: Store, contents: Reader) -> None:
    """With his own version; whoever comes later finds it."""
    assert store.version() == VERSION
    assert contents() == {b"delayq:{0}:version": b"%d" % VERSION}
    assert store.version() == VERSION


def test_a_look_marks_nothing(store: Store, contents: Reader) -> None:
    """It is as if the key space had the caller's own version."""
    assert store.version(marks=False) == VERSION
    assert contents() == {}


def test_an_older_key_space_stays_as_it_is(store: Store) -> None:
    """Whoever knows more is told what is there, and decides himself."""
    store.version()

    assert script("version")(store.client, [store.keys.version], [7, "mark"]) == [b"OK", VERSION]
    assert store.client.get(store.keys.version) == b"%d" % VERSION


def test_a_newer_key_space_is_named_with_what_to_do(store: Store, contents: Reader) -> None:
    """Where it is, which version it has, which we know, and the way out; nothing has changed."""
    store.client.set(store.keys.version, VERSION + 1)
    before = contents()

    with pytest.raises(Outdated, match="upgrade celery_delayq") as raised:
        store.version()

    assert (raised.value.version, raised.value.known) == (VERSION + 1, VERSION)
    assert all(part in str(raised.value) for part in ("delayq:{0} ", f"version {VERSION + 1},", "delayq_prefix"))
    assert before == contents()


@pytest.mark.parametrize("garbage", ["", "0", "-1", "1.0", "1e3", " 1", "01", "one", "9999999999", "\x00"])
def test_what_is_no_version_is_somebody_elses(store: Store, contents: Reader, garbage: str) -> None:
    """As with any foreign key: refused, with the way out, and left as it is."""
    store.client.set(store.keys.version, garbage)
    before = contents()

    with pytest.raises(DelayQError, match=r"delayq:\{0\}:version is a string, expected a version.*delayq_prefix"):
        store.version()

    assert before == contents()


def test_a_full_redis_is_only_looked_at(store: Store, contents: Reader) -> None:
    """Out of memory: dispatchers must work all the same. Who comes later marks it."""
    with full(store):
        assert store.version() == VERSION
    assert contents() == {}
    assert store.version() == VERSION
    with full(store):
        assert store.version() == VERSION


def test_a_replica_is_only_looked_at(store: Store, own_server: RedisServer, contents: Reader) -> None:
    """Whoever was sent to a replica learns it from what he comes for, not from here."""
    with own_server.client() as client:
        client.replicaof("127.0.0.1", "1")
        assert Store(client, store.keys).version() == VERSION
        assert client.dbsize() == 0


@pytest.mark.parametrize("rules", ["~delayq:{0}:index +@all", "~* +@all -get", "~* +@all -type", "~* +@all -set"])
def test_where_it_is_forbidden_nobody_is_stopped(store: Store, server: RedisServer, rules: str) -> None:
    """An ACL that names our keys and commands one by one may have been written before this key was there."""
    store.client.execute_command(f"ACL SETUSER narrow reset on >secret {rules}")
    try:
        with redis.Redis(port=server.port, username="narrow", password="secret") as client:
            Store(client, store.keys).check_version()
    finally:
        store.client.execute_command("ACL DELUSER narrow")
