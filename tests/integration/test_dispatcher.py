"""The dispatcher on a real Redis, without Celery: in time, in turn, through every fault, and gone when told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_delayq.delivery import Delivery
from celery_delayq.direct import Direct
from celery_delayq.dispatcher import Dispatcher
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Put
from celery_delayq.keys import Keys
from celery_delayq.scripts import Prepared, script
from celery_delayq.store import Store

QUEUE = Delivery.plain("q")
NOW = 1_800_000_000_000_000


@pytest.fixture
def start(server: RedisServer) -> Iterator[Callable[..., Dispatcher]]:
    """Starts dispatchers on the server, and stops them. Their clients show every loss, as Kombu's connections do."""
    running: list[Dispatcher] = []

    def start(on: RedisServer = server, **options: Any) -> Dispatcher:
        def connect() -> Store:
            return Store(redis.Redis(port=on.port, retry=Retry(NoBackoff(), 0)), Keys("delayq"))

        dispatcher = Dispatcher(connect, **options)
        dispatcher.start()
        running.append(dispatcher)
        return dispatcher

    yield start
    for dispatcher in running:
        dispatcher.stop()


def put(store: Store, *ids: str, topic: str = "q", in_us: int = 0) -> None:
    jobs = [Put(topic, id, id.encode(), in_us=in_us) for id in ids]
    store.put(jobs, {topic: Delivery.plain(topic)})


def arrived(store: Store, count: int, topic: str | bytes = "q", seconds: float = 20) -> list[bytes]:
    """Wait until *count* jobs are ready; what consumers would get, in their order."""
    deadline = time.monotonic() + seconds
    while store.client.llen(topic) < count:
        assert time.monotonic() < deadline, f"{store.client.llen(topic)} of {count} arrived"
        time.sleep(0.005)
    return store.client.lrange(topic, 0, -1)[::-1]


def test_due_jobs_are_moved(store: Store, start: Callable[..., Dispatcher]) -> None:
    """What was due before the start, what becomes due later, and what is put as due now."""
    put(store, "before")
    start()
    put(store, "later", in_us=300_000)
    put(store, "now")

    assert arrived(store, 3) == [b"before", b"now", b"later"]


@pytest.mark.parametrize(
    ("name", "delivery"),
    [
        *[("r", text) for text in ("", "garbage", "null", "[]", "[[0],[],null]", "[[0],[7],null]", "\xff")],
        *[("r", text) for text in ('[["x"],["r"],null]', '[[0],["r"],"soon"]', '{"a":1}')],
        (b"\xff\x00\xfe", '[[0],["r"],null]'),
        (b"\xff\x00\xfe", "garbage"),
    ],
)
def test_what_another_client_has_put_oddly_holds_up_nobody(
    store: Store, start: Callable[..., Dispatcher], name: str | bytes, delivery: str
) -> None:
    """A delivery that is none, a topic that is no text: its jobs leave, to the list of its name, and all others do."""
    topic = name.decode(errors="surrogateescape") if isinstance(name, bytes) else name
    keys = store.keys
    names = [keys.index, keys.topics, keys.holds, keys.beat, *keys.of_topic(topic)]
    words = ("", "", "error", "new", "", "store", 1, topic, delivery, 1, "odd", "+0", 0, "", "", "body")
    Prepared(script("put"), names, words)(store.client, ())
    assert store.topics()[topic].lists
    start()
    put(store, "even")

    assert arrived(store, 1) == [b"even"]
    ready = "r" if delivery.endswith('["r"],null]') else name
    assert arrived(store, 1, topic=ready) == [b"body"]


def test_a_put_wakes_a_sleeping_dispatcher(store: Store, start: Callable[..., Dispatcher]) -> None:
    """A dispatcher that would sleep for an hour hears of an earlier job at once."""
    dispatcher = start(max_poll_interval=3600)
    put(store, "far", in_us=3600_000_000)
    while not dispatcher.counts.passes:
        time.sleep(0.005)
    put(store, "near", in_us=200_000)

    assert arrived(store, 1) == [b"near"]


def test_it_polls_when_nobody_wakes_it(store: Store, start: Callable[..., Dispatcher]) -> None:
    """The safety net: what came without an announcement is found within the poll interval."""
    dispatcher = start(max_poll_interval=0.2)
    while not dispatcher.counts.passes:
        time.sleep(0.005)
    store.client.zadd(store.keys.index, {"q": 1})
    store.client.zadd(store.keys.schedule("q"), {"silent": 1})
    store.client.hset(store.keys.jobs("q"), "silent", "body")

    assert arrived(store, 1) == [b"body"]


def test_a_burst_on_one_topic_delays_no_other(store: Store) -> None:
    """One pass takes one batch of each topic that is due."""
    jobs = [Put("big", f"{n}", b"x", at_us=NOW) for n in range(500)] + [Put("small", "s", b"x", at_us=NOW)]
    store.put(jobs, {"big": Delivery.plain("big"), "small": Delivery.plain("small")}, now_us=NOW)
    dispatcher = Dispatcher(lambda: store, Direct(batch_size=100))

    done = dispatcher.dispatch_once(store, now_us=NOW + 1000)

    assert (done.moved, done.again) == (101, True)
    assert (store.client.llen("big"), store.client.llen("small")) == (100, 1)


def test_a_topic_that_redis_refuses_stops_no_other(store: Store, caplog: Any) -> None:
    """A ready list of a wrong type: its jobs wait, an error says why, the other topics go on."""
    store.client.set("bad", "not a list")
    for topic in ("bad", "good"):
        store.put([Put(topic, "a", b"x", at_us=NOW)], {topic: Delivery.plain(topic)}, now_us=NOW)
    dispatcher = Dispatcher(lambda: store)

    with caplog.at_level(logging.ERROR, "celery_delayq"):
        done = dispatcher.dispatch_once(store, now_us=NOW)
        dispatcher.dispatch_once(store, now_us=NOW)

    assert (done.moved, store.client.llen("good"), store.client.zcard(store.keys.schedule("bad"))) == (1, 1, 1)
    assert len(caplog.records) == 1
    assert "'bad' wait" in caplog.text


def test_orphans_are_counted(store: Store, caplog: Any) -> None:
    """Ids that lost their body are dropped, with a warning and a count."""
    store.put([Put("q", id, b"x", at_us=NOW) for id in "abc"], {"q": QUEUE}, now_us=NOW)
    store.client.hdel(store.keys.jobs("q"), "b")
    dispatcher = Dispatcher(lambda: store)

    done = dispatcher.dispatch_once(store, now_us=NOW + 10)

    assert (done.moved, done.orphans, dispatcher.counts.orphans) == (2, 1, 1)
    assert "1 ids of 'q' had no body" in caplog.text


def test_an_unknown_delivery_goes_to_the_list_of_the_queue(store: Store) -> None:
    """When the way to the queue was lost, its plain ready list is the way."""
    put(store, "a")
    store.client.delete(store.keys.topics)

    Dispatcher(lambda: store).dispatch_once(store)

    assert store.client.lrange("q", 0, -1) == [b"a"]


def test_several_dispatchers_move_each_job_once(store: Store, start: Callable[..., Dispatcher]) -> None:
    """Five at once on one topic: every job arrives, none twice."""
    for _ in range(5):
        start(hand_over=Direct(batch_size=50))
    ids = [f"{n}" for n in range(3000)]
    for begin in range(0, 3000, 300):
        put(store, *ids[begin : begin + 300], in_us=begin * 100)

    bodies = arrived(store, 3000)

    assert sorted(bodies) == sorted(id.encode() for id in ids)


def test_it_goes_on_after_every_kind_of_loss(store: Store, start: Callable[..., Dispatcher], caplog: Any) -> None:
    """Killed connections and forgotten scripts: it comes back, with one line for the loss and one for the return."""
    dispatcher = start()
    put(store, "a")
    arrived(store, 1)
    with caplog.at_level(logging.INFO, "celery_delayq"):
        store.client.script_flush()
        put(store, "b")
        arrived(store, 2)
        assert caplog.records == []
        for kind in ("normal", "pubsub"):
            store.client.client_kill_filter(_type=kind, skipme=True)
        put(store, "c", in_us=100_000)
        arrived(store, 3)
        deadline = time.monotonic() + 20  # the job may arrive before the line is written
        while len(caplog.records) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)

    assert dispatcher.counts.errors >= 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_it_waits_for_a_redis_that_is_gone(own_server: RedisServer, start: Callable[..., Dispatcher]) -> None:
    """Started without a Redis, and stopped without one: it works once there is one, and goes when told."""
    own_server.stop()
    dispatcher = start(own_server)
    while dispatcher.counts.errors < 2:
        time.sleep(0.005)
    own_server.start()
    with own_server.client() as client:
        store = Store(client, Keys("delayq"))
        put(store, "a")
        assert arrived(store, 1) == [b"a"]
    own_server.stop()

    dispatcher.stop(timeout=10)
    assert "delayq-dispatcher" not in {thread.name for thread in threading.enumerate()}


def test_a_forbidden_channel_means_polling(
    own_server: RedisServer, start: Callable[..., Dispatcher], caplog: Any
) -> None:
    """Where the ACL allows no channel: puts work, one warning, and due jobs are moved all the same."""
    with own_server.client() as admin:
        admin.execute_command("ACL SETUSER narrow on >secret ~delayq:* ~q +@all resetchannels")
    clients = []

    def connect() -> Store:
        client = redis.Redis(port=own_server.port, username="narrow", password="secret")
        clients.append(client)
        return Store(client, Keys("delayq"))

    dispatcher = Dispatcher(connect, max_poll_interval=0.2)
    dispatcher.start()
    try:
        store = connect()
        put(store, "a", in_us=100_000)
        assert arrived(store, 1) == [b"a"]
    finally:
        dispatcher.stop()
        for client in clients:
            client.close()

    assert len([record for record in caplog.records if "ACL forbids the channels" in record.getMessage()]) == 1
    assert dispatcher.counts.errors == 0


def test_a_slow_call_makes_smaller_batches() -> None:
    """The batch adapts to a time budget, down and up again, within what was set."""
    direct = Direct(batch_size=1000)
    for _ in range(20):
        direct._adapt(took=1.0, moved=1000)
    assert direct._batch_limit == 10
    for _ in range(20):
        direct._adapt(took=0.001, moved=direct._batch_limit)
    assert direct._batch_limit == 1000


def test_stop_is_prompt_and_repeatable(start: Callable[..., Dispatcher]) -> None:
    """From a sleep of an hour, before any start, and twice."""
    Dispatcher(lambda: None).stop()  # type: ignore[arg-type,return-value]  # never connected
    dispatcher = start(max_poll_interval=3600)
    while not dispatcher.counts.passes:
        time.sleep(0.005)

    dispatcher.stop(timeout=10)
    dispatcher.stop()

    assert "delayq-dispatcher" not in {thread.name for thread in threading.enumerate()}


def test_one_that_serves_some_topics_leaves_the_others_alone(store: Store, start: Callable[..., Dispatcher]) -> None:
    """Its own are moved in time: due before, due later, put as due now; also while another topic comes first."""
    put(store, "alien", topic="other")
    put(store, "before")
    start(topics=["q", "third"], max_poll_interval=0.2)
    put(store, "later", in_us=300_000)
    put(store, "alien-2", topic="other", in_us=100_000)
    put(store, "now")
    put(store, "third", topic="third", in_us=200_000)

    assert arrived(store, 3) == [b"before", b"now", b"later"]
    assert arrived(store, 1, "third") == [b"third"]
    assert store.client.llen("other") == 0


def test_one_that_serves_some_topics_silences_nobody(store: Store, start: Callable[..., Dispatcher]) -> None:
    """It tells nobody of its beat, hears none, and takes nobody's place; only those who put see that it lives."""
    some = [start(topics=["q"], name="0"), start(topics=["q"], name="1")]
    while not all(one.counts.passes > 3 for one in some):
        time.sleep(0.005)
    assert store.client.pubsub_numsub(store.keys.fleet)[0][1] == 0
    assert store.beat_us() is not None
    everything = start(name="9")
    put(store, "alien", topic="other", in_us=2_500_000)

    assert arrived(store, 1, "other") == [b"alien"]
    assert [one.active for one in (*some, everything)] == [True] * 3


def test_one_that_serves_some_topics_works_through_a_backlog(store: Store, start: Callable[..., Dispatcher]) -> None:
    """In batches without a pause, while others are overdue all the time."""
    put(store, "alien", topic="other")
    put(store, *(f"{number:04}" for number in range(3000)))
    start(topics=["q"], hand_over=Direct(batch_size=100), max_poll_interval=3600)

    assert arrived(store, 3000)[0] == b"0000"


def test_what_somebody_else_reserved_and_left(start: Callable[..., Dispatcher], store: Store, caplog: Any) -> None:
    """A direct dispatcher gives back what has outlived its lease, and hands it over after the back-off, to the list of
    its step; also of a topic of which something is due; and nothing is left of its attempts.
    """
    leasing = Store(store.client, store.keys, leases=True)
    ways = {"q": Delivery((0, 5), ("q", "q5")), "r": Delivery.plain("r")}
    leasing.put([Put("q", "lost", b"lost", at_us=1, step=5), Put("r", "gone", b"gone", at_us=1)], ways)
    for topic in ways:
        assert len(leasing.reserve(topic, 10, 50_000).jobs) == 1
    start()
    store.put([Put("q", "plain", b"plain", in_us=100_000)], ways)

    assert arrived(store, 1) == [b"plain"]
    assert arrived(store, 1, topic="q5") == [b"lost"]
    assert arrived(store, 1, topic="r") == [b"gone"]
    assert not leasing.leased()
    assert not store.client.exists(store.keys.attempts("q"), store.keys.attempts("r"))
    assert "ran out; they wait again" in caplog.text


def test_a_lease_that_cannot_be_ended(start: Callable[..., Dispatcher], store: Store, caplog: Any) -> None:
    """It is said once, and holds up nobody."""
    leasing = Store(store.client, store.keys, leases=True)
    leasing.put([Put("r", "lost", b"lost", at_us=1)], {"r": Delivery.plain("r")})
    leasing.reserve("r", 10, 1)
    store.client.set(store.keys.dead("r"), "somebody else's")
    dispatcher = start(max_poll_interval=0.05)
    for number in range(3):
        put(store, f"{number}", in_us=50_000)
        arrived(store, number + 1)
    assert dispatcher.counts.passes > 2
    assert caplog.text.count("do not come back") == 1


def test_what_was_put_for_a_broker_elsewhere(start: Callable[..., Dispatcher], store: Store, caplog: Any) -> None:
    """If this Redis is the broker now, it goes to the list of its queue; what is for an exchange waits, with a word."""
    store.put(
        [Put("q", "mine", b"mine", at_us=1), Put("ex/key", "theirs", b"theirs", at_us=1)],
        dict.fromkeys(("q", "ex/key"), Delivery.relayed()),
    )
    start()
    assert arrived(store, 1) == [b"mine"]
    deadline = time.monotonic() + 20
    while "celery delayq drain" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert [job.id for job in store.find("theirs")] == [b"theirs"]
    assert not store.client.exists("ex/key")
