"""The relay: reserve, publish, ack. What it does with each answer of a broker, and with none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

from celery_delayq import relay
from celery_delayq.delivery import Delivery
from celery_delayq.dispatcher import Dispatcher
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Put, Reserved, Tell, Upcoming
from celery_delayq.keys import Keys
from celery_delayq.producing import STOP_PATIENCE
from celery_delayq.relay import BrokerAway, Fate, Published, Relay, Tended
from celery_delayq.store import Store

from .worker import PATIENCE, wait_for

#: A due time (us) that will not come here: in the year 2112.
FAR = 2**52

OK = Published(Fate.CONFIRMED)
NO = Published(Fate.REFUSED, "no such exchange")
LOST = Published(Fate.UNKNOWN, "reset by peer")
UNSENT = Published(Fate.UNSENT, "reset by peer")


class Broker:
    """A publisher whose answers a test sets.

    Attributes:
        sent: the ids of what was published, in order.
    """

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.away = False
        self.closed = False
        self.answer: Callable[[int, Reserved], Published] = lambda _number, _job: OK
        self.during: Callable[[Tended], object] = lambda _leases: None

    def reach(self) -> None:
        if self.away:
            raise BrokerAway("nobody is there")

    def publish(self, jobs: Sequence[Reserved], leases: Tended) -> list[Published]:
        done = []
        for number, job in enumerate(jobs):
            self.during(leases)
            answer = self.answer(number, job) if leases.may_send(number) else Published(Fate.UNSENT)
            if answer.fate is not Fate.UNSENT:
                self.sent.append(job.id.decode())
            done.append(answer)
        return done

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def store(server: RedisServer) -> Iterator[Store]:
    with server.client() as client:
        yield Store(client, Keys("delayq"), leases=True)


def put(store: Store, *ids: str, topic: str = "q", at_us: int = 1, **options: Any) -> None:
    jobs = [Put(topic, id, f"body of {id}".encode(), at_us=at_us, **options) for id in ids]
    store.put(jobs, {topic: Delivery.relayed()})


def hand_over(made: Relay, store: Store, topic: str = "q", *, now_us: int | None = None) -> Any:
    upcoming = Upcoming(1, topic, None)
    return made.hand_over(store, upcoming, lambda: True, now_us=now_us)


def test_published_and_acked(store: Store, broker: Broker, server: RedisServer) -> None:
    """What the broker has is gone here, and counted."""
    put(store, "a", "b", "c")
    done = hand_over(Relay(broker), store)

    assert broker.sent == ["a", "b", "c"]
    assert (done.moved, done.left) == (3, False)
    assert store.loads({"q": Delivery.relayed()})[1]["q"].moved == 3
    with server.client() as client:
        assert client.keys() == [store.keys.totals.encode()]


def test_a_refusal_is_tried_again_later_and_not_for_ever(store: Store, broker: Broker, caplog: Any) -> None:
    """Back-off 1, 2, 4 … seconds; then a dead letter with the broker's reason. Others are not held up."""
    put(store, "bad", "good")
    broker.answer = lambda _, job: NO if job.id == b"bad" else OK
    made = Relay(broker, max_attempts=3)
    now = store.now_us()
    for attempt in range(1, 4):
        assert hand_over(made, store, now_us=now).moved == (attempt == 1)
        found = store.find("bad")
        if attempt < 3:
            (job,) = found
            assert (job.state, job.due_us) == ("waiting", now + 2 ** (attempt - 1) * 1_000_000)
            now = job.due_us
    (letter,) = store.dead("q").jobs
    assert (letter.id, letter.attempts, letter.reason, letter.body) == (b"bad", 3, "no such exchange", b"body of bad")
    assert broker.sent == ["bad", "good", "bad", "bad"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2 + [logging.ERROR]
    assert store.revive("q", ["bad"]) == [True]
    broker.answer = lambda _number, _job: OK
    assert hand_over(made, store).moved == 1


def test_a_broker_that_is_away_is_no_attempt(
    store: Store, broker: Broker, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is reserved meanwhile; said once; and it goes on when the broker is back."""
    monkeypatch.setattr(relay, "PAUSE_FIRST", 0.0)
    monkeypatch.setattr(relay, "PAUSE_LAST", 0.0)
    caplog.set_level(logging.INFO)
    put(store, "a")
    made = Relay(broker, max_attempts=1)
    broker.away = True
    for _ in range(5):
        assert hand_over(made, store).moved == 0
    assert store.leased() == set()
    broker.away = False
    broker.answer = lambda _number, _job: LOST
    for _ in range(5):
        assert hand_over(made, store).moved == 0
        (job,) = store.find("a")
        assert job.state == "waiting"
    broker.answer = lambda _number, _job: OK
    assert hand_over(made, store).moved == 1
    said = [record.getMessage().partition(":")[2].strip() for record in caplog.records]
    assert said[0].startswith("the broker is away: nobody is there")
    assert said[-1] == "the broker is there again"


def test_lost_in_the_midst_of_a_batch(store: Store, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is confirmed is acked; what is open, or was not sent, waits again, due at once; nothing else is done before
    the broker is reached again.
    """
    monkeypatch.setattr(relay, "PAUSE_FIRST", 60.0)
    monkeypatch.setattr(relay, "PAUSE_LAST", 60.0)
    put(store, "a", "b", "c", "d")
    broker.answer = lambda number, _: (OK, OK, LOST, UNSENT)[number]
    made = Relay(broker)
    done = hand_over(made, store)

    assert done.moved == 2
    assert not done.left
    assert [job.id for job in store.page("q").jobs] == [b"c", b"d"]
    assert hand_over(made, store).moved == 0  # it pauses
    broker.answer = lambda _number, _job: OK
    made._away_until = 0.0
    assert hand_over(made, store).moved == 2
    assert broker.sent == ["a", "b", "c", "c", "d"]


def test_a_store_that_goes_away_before_the_ack(own_server: RedisServer, broker: Broker) -> None:
    """What is published is acked as soon as the store is back, so that it is not published again."""
    with own_server.client() as client:
        store = Store(client, Keys("delayq"), leases=True)
        put(store, "a", "b")
        made = Relay(broker, lease=60)
        ack = store.ack

        def broken(*_: Any) -> Any:
            raise redis.ConnectionError("gone")

        store.ack = broken  # type: ignore[method-assign]
        with pytest.raises(redis.ConnectionError):
            hand_over(made, store)
        assert store.loads({"q": Delivery.relayed()})[1]["q"].reserved == 2
        store.ack = ack  # type: ignore[method-assign]
        made.begin(store)
        load = store.loads({"q": Delivery.relayed()})[1]["q"]
        assert (load.reserved, load.waiting, load.moved) == (0, 0, 2)
        assert broker.sent == ["a", "b"]


def test_a_dispatcher_acks_when_it_is_connected_anew(store: Store, broker: Broker) -> None:
    """The store goes away before the ack, and then nothing is due here for long, or another dispatcher sees to it: the
    lease must not run out over what is published.
    """
    put(store, "a")
    connections = 0

    def connect() -> Store:
        nonlocal connections
        connections += 1
        made = Store(redis.Redis(connection_pool=store.client.connection_pool), store.keys, leases=True)
        if connections == 1:

            def broken(*_: Any) -> Any:
                raise redis.ConnectionError("gone")

            made.ack = broken  # type: ignore[method-assign]
        return made

    dispatcher = Dispatcher(connect, Relay(broker, lease=60))
    dispatcher.start()
    try:
        wait_for(lambda: store.loads({"q": Delivery.relayed()})[1]["q"].moved == 1, "it is acked")
    finally:
        dispatcher.stop()
    assert connections == 2
    assert broker.sent == ["a"]


def test_a_death_over_it(store: Store, broker: Broker, caplog: Any) -> None:
    """Whoever reserves and is never seen again: another takes over when the lease is over, and counts an attempt."""
    put(store, "a")
    store.reserve("q", 10, 1_000_000)
    now = store.now_us() + 2_000_000
    made = Relay(broker)
    assert hand_over(made, store, now_us=now).moved == 0
    assert "ran out" in caplog.text
    assert hand_over(made, store, now_us=now + 2_000_000).moved == 1


def test_a_slow_batch_keeps_its_leases(store: Store, broker: Broker) -> None:
    """They are extended while it lasts: nobody else can take the jobs."""
    put(store, *(str(number) for number in range(16)))
    stolen = []

    def slowly(leases: Tended) -> None:
        time.sleep(0.25)
        leases.tend()
        stolen.extend(store.reserve("q", 10, 1_000_000).jobs)

    broker.during = slowly
    assert hand_over(Relay(broker, lease=3.0), store).moved == 16
    assert stolen == []


def test_what_is_lost_is_not_sent(store: Store, broker: Broker) -> None:
    """A job that was put anew, or taken by another, in the midst of a slow batch is left to him."""
    put(store, "a", "b", "c")
    slept = []

    def hang(leases: Tended) -> None:
        if not slept:
            slept.append(True)
            time.sleep(0.6)
            put(store, "c", at_us=FAR)

    broker.during = hang
    assert hand_over(Relay(broker, lease=1.0), store).moved == 2
    assert broker.sent == ["a", "b"]
    (job,) = store.find("c")
    assert (job.state, job.due_us) == ("waiting", FAR)


def test_a_retry_of_the_task_outlives_a_late_ack(store: Store, broker: Broker) -> None:
    """The worker may run a task and retry it before the dispatcher has acked it: the new one stays."""
    put(store, "a")
    broker.answer = lambda _number, _job: (put(store, "a", at_us=FAR), OK)[1]
    hand_over(Relay(broker), store)
    (job,) = store.find("a")
    assert (job.state, job.due_us) == ("waiting", FAR)


def test_observers_are_told_as_by_dispatch(store: Store, broker: Broker) -> None:
    """When each was due and which it was, of what the broker has."""
    put(store, "a", "b", at_us=FAR)
    put(store, "c", at_us=FAR + 5)
    broker.answer = lambda _, job: NO if job.id == b"b" else OK
    question = (Tell.JOBS, rb"body (of) ")
    done = Relay(broker).hand_over(store, Upcoming(1, "q", None), lambda: True, question, now_us=FAR + 9)
    assert done.dues_us == (FAR, FAR + 5)
    assert done.jobs == ((b"a", b"of"), (b"c", b"of"))


def test_a_stop_in_the_midst(store: Store, broker: Broker) -> None:
    """What was not sent is given back at once."""
    put(store, "a", "b", "c")
    goes_on = iter([True, False, False, False])
    done = Relay(broker).hand_over(store, Upcoming(1, "q", None), lambda: next(goes_on))
    assert done.moved == 1
    assert [job.id for job in store.page("q").jobs] == [b"b", b"c"]


def test_a_stop_waits_for_the_broker(server: RedisServer, store: Store, broker: Broker) -> None:
    """A dispatcher that is told to stop in the midst of a batch acks what the broker takes: else it came twice."""
    clients = []

    def connect() -> Store:
        clients.append(server.client())
        return Store(clients[-1], Keys("delayq"), leases=True)

    begun = threading.Event()

    def slowly(leases: Tended) -> None:
        begun.set()
        while leases.tend():
            time.sleep(0.01)
        time.sleep(1.2)

    broker.answer = lambda _number, _job: slowly(leases[0]) or OK
    leases: list[Tended] = []
    broker.during = leases.append
    put(store, "a")
    made = Relay(broker)
    assert made.end_patience > STOP_PATIENCE
    made.end_patience = PATIENCE
    dispatcher = Dispatcher(connect, made)
    dispatcher.start()
    assert begun.wait(PATIENCE)
    dispatcher.stop()
    assert broker.sent == ["a"]
    assert dispatcher.counts.moved == 1
    assert store.leased() == set()


def test_batches_adapt(store: Store, broker: Broker) -> None:
    """A batch that takes long makes the next one smaller, a full and quick one larger."""
    made = Relay(broker, batch_size=1000)
    for _ in range(20):
        made._adapt(took=1.0, count=made._batch_limit)
    assert made._batch_limit == 10
    for _ in range(20):
        made._adapt(took=0.01, count=made._batch_limit)
    assert made._batch_limit == 1000


def test_a_dispatcher_over_it(server: RedisServer, store: Store, broker: Broker) -> None:
    """The same loop as ever: woken at the due time, expired leases included, and the broker's connection closed."""
    clients = []

    def connect() -> Store:
        clients.append(server.client())
        return Store(clients[-1], Keys("delayq"), leases=True)

    dispatcher = Dispatcher(connect, Relay(broker))
    put(store, "held")
    store.reserve("q", 10, 300_000)
    dispatcher.start()
    try:
        store.put([Put("q", "soon", b"", in_us=200_000)], {"q": Delivery.relayed()})
        store.put([Put("r", "late", b"", in_us=400_000)], {"r": Delivery.relayed()})
        wait_for(lambda: set(broker.sent) == {"held", "soon", "late"}, "all are handed over")
    finally:
        dispatcher.stop()
    assert broker.closed
    assert dispatcher.counts.moved == 3
    assert dispatcher.counts.errors == 0
