"""The version of the key space, on Celery's side: asked for once, and minded by all who use it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from celery_delayq.doctor import Level
from celery_delayq.embedded import RedisServer
from celery_delayq.errors import DelayQError, Outdated
from celery_delayq.keys import VERSION
from celery_delayq.scripts import Script

from .conftest import Inside
from .worker import wait_for

ONE_REDIS = True


@pytest.fixture
def called() -> Iterator[Counter[str]]:
    """How often each script was called, from now on."""
    counter: Counter[str] = Counter()

    def count(verb: str, _: float) -> None:
        counter[verb] += 1

    before, Script.timers = Script.timers, (*Script.timers, count)
    yield counter
    Script.timers = before


@pytest.fixture(params=["direct", "relayed", "in four shards"])
def place(request: pytest.FixtureRequest, make_app: Callable[..., Celery], server: RedisServer) -> Celery:
    """An app whose tasks wait in the broker's Redis; in another; in several shards of it."""
    if request.param == "direct":
        return make_app()
    shards = 4 if request.param == "in four shards" else 1
    return make_app(broker_url="memory://", delayq_store_url=server.url(), delayq_shards=shards)


def newer(inside: Inside) -> None:
    """Somebody with a later celery_delayq was here first."""
    for shard in range(4):
        inside.client.set(f"delayq:{{{shard}}}:version", VERSION + 1)


def test_whoever_comes_first_marks_it(place: Celery, inside: Inside, called: Counter[str]) -> None:
    """A producer, with its first put; all shards that it may use, each asked once."""
    for _ in range(20):
        place.send_task("add", countdown=60)
        place.delayq.count()

    shards = place.delayq.settings.shards
    assert set(inside.client.scan_iter("delayq:*:version")) == {b"delayq:{%d}:version" % n for n in range(shards)}
    assert inside.client.get(inside.keys.version) == b"%d" % VERSION
    assert called["put"] == 20
    assert called["version"] <= 3 * shards  # a direct put and a look have a connection each


def test_nobody_touches_what_is_newer(place: Celery, inside: Inside) -> None:
    """A put, a look, a change and a dispatcher: each says what to do, and leaves everything as it was."""
    newer(inside)
    before = sorted(inside.client.scan_iter("delayq:*"))

    for use in (
        lambda: place.send_task("add", countdown=60),
        lambda: place.delayq.apply_delayed("add", 60),
        lambda: place.delayq.apply_many([(place.signature("add"), 1)]),
        place.delayq.count,
        lambda: place.delayq.cancel("x"),
        place.delayq.connect,
    ):
        with pytest.raises(Outdated, match="upgrade celery_delayq"):
            use()

    assert sorted(inside.client.scan_iter("delayq:*")) == before


def test_a_dispatcher_says_so_and_waits_until_it_may(
    app: Celery, inside: Inside, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning; once the key space is one that it knows, it goes on by itself."""
    app.delayq.apply_delayed("add", 0, task_id="x")
    newer(inside)
    dispatcher = app.delayq.dispatcher()
    dispatcher.start()
    try:
        wait_for(lambda: dispatcher.counts.errors >= 2, "it has tried twice")
        assert inside.client.llen("celery") == 0
        inside.client.set(inside.keys.version, VERSION)
        wait_for(lambda: inside.client.llen("celery") == 1, "it hands over")
    finally:
        dispatcher.stop()
    assert len([record for record in caplog.records if "upgrade celery_delayq" in record.getMessage()]) == 1


def test_the_doctor_tells_it(app: Celery, inside: Inside) -> None:
    """There is nothing more to look at then; and its look marks nothing."""
    assert "reachable" in {finding.check for finding in app.delayq.doctor(0.2) if finding.level is Level.OK}
    assert not inside.client.exists(inside.keys.version)
    newer(inside)
    (finding,) = app.delayq.doctor(0.2)
    assert (finding.level, finding.fix.split()[0]) == (Level.BROKEN, "upgrade")


def test_a_foreign_key_of_that_name(app: Celery, inside: Inside) -> None:
    """Is somebody else's: said as of any other key."""
    inside.client.lpush(inside.keys.version, "theirs")
    with pytest.raises(DelayQError, match="delayq_prefix"):
        app.send_task("add", countdown=60)


def test_a_full_redis_hands_over(app: Celery, inside: Inside) -> None:
    """What nobody has marked yet is used all the same: a put fails as it did, and what is due leaves."""
    app.delayq.apply_delayed("add", 0)
    inside.client.delete(inside.keys.version)
    inside.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(OperationalError, match="full"):
            app.send_task("add", countdown=60, connection=app.connection())
        with closing(app.delayq.connect()) as store:
            assert store.parts[0].tick().due
        assert app.delayq.count() == 1
    finally:
        inside.client.config_set("maxmemory", 0)
    assert not inside.client.exists(inside.keys.version)
