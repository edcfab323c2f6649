"""Adoption: what a worker does with a delayed message that somebody else has published. One delivery at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis
from celery import Celery
from celery.worker import state
from kombu import Consumer, Message, Producer, Queue
from kombu.common import Broadcast
from kombu.exceptions import ContentDisallowed

from celery_delayq.adoption import Adopting
from celery_delayq.clock import to_us

from .conftest import Inside
from .test_parity import OPTIONS, QUEUES, bind_everything, everything_ready

#: Redis is seen through the store, whose own tests run on every version.
ONE_REDIS = True

THEN = datetime(2100, 1, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)


class Worker:
    """The part of a worker that matters here: a consumer of some queues, and strategies that adopt.

    Attributes:
        held: the messages that were left to stock Celery.
    """

    def __init__(self, app: Celery, channel: Any, queues: list[Queue], dispatches: bool, accept: Sequence[str]) -> None:
        self.held: list[Message] = []
        self.channel = channel
        adoption = app.delayq.adoption(lambda: dispatches, lambda: self._consumer)
        assert adoption is not None
        self.adoption = adoption
        self._strategies = Adopting(adoption, channel.connection.connection_errors)
        self._strategies["add"] = lambda message, *_: self.held.append(message)
        self._got: list[Message] = []
        self._consumer = Consumer(channel, queues, on_message=self._got.append, accept=accept)
        self._consumer.consume()

    def receive(self) -> Message:
        """Take the next message from the broker."""
        while not self._got:
            self.channel.connection.client.drain_events(timeout=10)
        return self._got.pop()

    def judge(self, message: Message) -> None:
        """Do what a worker does with it, by protocol 2."""
        payload = None if "task" in message.headers else message.decode()
        self._strategies["add"](message, payload, message.ack_log_error, message.reject_log_error, ())

    def work(self) -> Message:
        """Receive and judge one message."""
        message = self.receive()
        self.judge(message)
        return message

    @property
    def unacknowledged(self) -> int:
        """How many deliveries count against the prefetch limit."""
        qos = self.channel.qos
        return len(qos._delivered) - len(qos._dirty)


@contextmanager
def worker(app: Celery, *queues: Queue, dispatches: bool = True, accept: Sequence[str] = ("json",)) -> Iterator[Worker]:
    with app.connection_for_read() as connection, connection.channel() as channel:
        yield Worker(app, channel, [queue(channel) for queue in queues or [Queue("celery")]], dispatches, accept)


@pytest.fixture
def stock(make_app: Callable[..., Celery]) -> Celery:
    """A producer without celery_delayq."""
    return make_app(joined=False)


def in_hand(inside: Inside) -> int:
    """How many messages the broker holds for a worker that has not acknowledged them."""
    return int(inside.client.hlen("unacked"))


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "topic exchange"])
def test_an_adopted_message_is_as_our_own_publisher_makes_it(
    make_app: Callable[..., Celery], inside: Inside, name: str
) -> None:
    """In the schedule, and when it is handed over: queue, step, body, headers and properties."""
    options = {"task_id": "the-id", "reply_to": "us", **OPTIONS[name]}
    app, stock = (make_app(joined=joined, task_queues=QUEUES) for joined in (True, False))
    bind_everything(app)
    queues = {queue.name: queue for queue in QUEUES}
    found = []
    for sender in (app, stock):
        sender.send_task("add", (1, 2), {}, **options, eta=THEN)
        for key in inside.client.scan_iter(_type="list"):
            queue = key.decode().partition("\x06\x16")[0]
            with worker(app, queues.get(queue) or Queue(queue), accept=["json", "pickle", "yaml", "msgpack"]) as one:
                one.work()
                assert one.held == []
        job = inside.one()
        assert (job.id, job.due_us) == ("the-id", to_us(THEN))
        waits = {**job.message, "properties": {**job.message["properties"], "delivery_tag": "", "delayq_put": 0}}
        assert inside.hand_over() == 1
        found.append((waits, everything_ready(inside)))
        inside.client.delete(*found[-1][1])

    assert found[0] == found[1]


def test_its_delivery_is_acknowledged_and_its_tag_is_new(app: Celery, stock: Celery, inside: Inside) -> None:
    """Nothing of it is left with the broker or in the prefetch count, and the old delivery tag means nothing now."""
    stock.send_task("add", eta=THEN, task_id="a")
    with worker(app) as one:
        message = one.receive()
        assert (in_hand(inside), one.unacknowledged) == (1, 1)
        one.judge(message)

        assert (in_hand(inside), one.unacknowledged, one.adoption.count) == (0, 0, 1)
        assert inside.client.zcard("unacked_index") == 0
        assert message.acknowledged
        assert inside.one().message["properties"]["delivery_tag"] != message.delivery_tag
    assert inside.ready() == []


def test_a_delivery_that_is_another_worker_s_by_now(app: Celery, stock: Celery, inside: Inside) -> None:
    """Restored after the visibility timeout and given out anew: the first puts nothing and leaves the other's alone."""
    stock.send_task("add", eta=THEN, task_id="a")
    with worker(app) as slow, worker(app) as quick:
        late = slow.receive()
        slow.channel.qos.restore_by_tag(late.delivery_tag)
        again = quick.receive()
        assert again.headers["redelivered"] is True
        inside.client.hdel("unacked", late.delivery_tag)  # as if the other had not taken it up yet
        slow.judge(late)
        assert (slow.held, slow.unacknowledged, inside.waiting()) == ([], 0, [])

        quick.channel.qos.append(again, again.delivery_tag)
        quick.judge(again)
        assert (quick.held, in_hand(inside)) == ([], 0)
        assert inside.one().message["headers"]["redelivered"] is True


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"eta": datetime.now(timezone.utc) - timedelta(seconds=1)}, id="past"),
        pytest.param({"countdown": 59.0}, id="shorter than the least delay"),
        pytest.param({"eta": THEN, "expires": datetime.now(timezone.utc) - timedelta(hours=1)}, id="expired"),
        pytest.param({"eta": THEN, "task_id": "revoked"}, id="revoked"),
        pytest.param({"eta": THEN, "stamped_headers": ["order"], "order": 42}, id="revoked by a stamp"),
        pytest.param({"eta": "2300-01-01T00:00:00+00:00"}, id="beyond what can be kept"),
        pytest.param({}, id="not delayed"),
    ],
)
def test_what_stock_celery_handles_it_handles(
    make_app: Callable[..., Celery], stock: Celery, inside: Inside, given: dict[str, Any]
) -> None:
    """What is due, revoked, expired or too far ahead reaches Celery's own strategy as it came, unacknowledged."""
    app = make_app(delayq_min_delay=60)
    state.revoked.add("revoked")
    state.revoked_stamps["order"] = 42
    try:
        stock.send_task("add", **given)
        with worker(app) as one:
            message = one.work()
            assert (one.held, in_hand(inside)) == ([message], 1)
    finally:
        state.revoked.discard("revoked")
        state.revoked_stamps.clear()
    assert inside.waiting() == []


def test_protocol_1(make_app: Callable[..., Celery], app: Celery, inside: Inside) -> None:
    """Its eta stands in the body: held, as ever."""
    make_app(joined=False, task_protocol=1).send_task("add", eta=THEN)
    with worker(app) as one:
        assert one.held == [one.work()]
    assert inside.waiting() == []


def test_a_message_half_of_protocol_1(app: Celery, stock: Celery, inside: Inside) -> None:
    """A task in the headers, arguments in a mapping: some libraries send these; held."""
    with stock.producer_or_acquire() as producer:
        headers = {"task": "add", "id": "a", "eta": THEN.isoformat(), "lang": "js"}
        producer.publish({"args": [1], "kwargs": {}}, routing_key="celery", serializer="json", headers=headers)
    with worker(app) as one:
        assert one.held == [one.work()]
    assert inside.waiting() == []


def test_what_a_worker_does_not_accept(app: Celery, stock: Celery, inside: Inside) -> None:
    """Content that the worker would refuse is refused now, and not kept for later."""
    stock.send_task("add", eta=THEN, serializer="yaml")
    with worker(app) as one, pytest.raises(ContentDisallowed):
        one.work()
    assert inside.waiting() == []


@pytest.mark.parametrize(
    "broken", [{"eta": "tomorrow"}, {"eta": 12}, {"id": None}, {"id": ""}, {"expires": "soon"}], ids=repr
)
def test_what_cannot_be_read_is_left_to_celery(
    app: Celery, stock: Celery, inside: Inside, broken: dict[str, Any]
) -> None:
    """Which rejects it with an error of its own."""
    with stock.producer_or_acquire() as producer:
        headers = {"task": "add", "id": "a", "eta": THEN.isoformat(), **broken}
        producer.publish([[], {}, {}], routing_key="celery", serializer="json", headers=headers)
    with worker(app) as one:
        assert one.held == [one.work()]
    assert inside.waiting() == []


def test_a_foreign_producer(app: Celery, stock: Celery, inside: Inside) -> None:
    """The least that Celery's protocol asks for, an eta without an offset: UTC, as Celery reads it."""
    with stock.producer_or_acquire() as producer:
        headers = {"task": "add", "id": "a", "lang": "js", "eta": "2100-01-01T12:30:15.123456"}
        producer.publish([[1], {}, None], routing_key="celery", serializer="json", headers=headers)
    with worker(app) as one:
        one.work()
        assert one.held == []
    job = inside.one()
    assert job.due_us == to_us(THEN)
    assert job.message["headers"] == {**headers, "eta": None}
    assert json.loads(job.raw)["properties"]["delayq_due"] == "2100-01-01T12:30:15.123456"


def test_a_broadcast(make_app: Callable[..., Celery], inside: Inside) -> None:
    """Each worker has its own copy; none of them may put it for all."""
    queue = Broadcast("all", queue="mine", auto_delete=False)
    app = make_app()
    with worker(app, queue) as one:
        while not inside.client.pubsub_numpat():
            with suppress(OSError):  # nothing comes, but it subscribes
                one.channel.connection.client.drain_events(timeout=0.1)
        headers = {"task": "add", "id": "a", "eta": THEN.isoformat()}
        with Producer(one.channel) as producer:
            producer.publish([[], {}, {}], exchange=queue.exchange, routing_key="", serializer="json", headers=headers)
        message = one.work()
        assert one.held == [message]
    assert inside.waiting() == []


def test_a_message_that_went_to_several_queues(make_app: Callable[..., Celery], inside: Inside) -> None:
    """They share a delivery tag, so nobody can say whose delivery is whose: held, and none is lost."""
    app, stock = make_app(task_queues=QUEUES), make_app(joined=False, task_queues=QUEUES)
    bind_everything(app)
    stock.send_task("add", exchange="events", exchange_type="topic", routing_key="order.paid", eta=THEN)
    with worker(app, QUEUES[1]) as one, worker(app, QUEUES[2]) as other:
        for each in (one, other):
            each.work()
            assert len(each.held) == 1
    assert inside.waiting() == []


def test_a_queue_that_the_worker_does_not_read(app: Celery, stock: Celery, inside: Inside) -> None:
    """A message that somebody has moved to another queue says where it was sent, and not where it is: held."""
    stock.send_task("add", eta=THEN, queue="original")
    inside.client.rename("original", "celery")
    with worker(app) as one:
        assert one.held == [one.work()]
    assert inside.waiting() == []


def test_the_options_of_its_task(app: Celery, stock: Celery, inside: Inside) -> None:
    """Attributes of the task hold as if the producer had known them."""

    @app.task(shared=False, name="add", late="drop", grace=90, max_wait=5)
    def add() -> None: ...

    app.finalize()
    stock.send_task("add", eta=THEN, task_id="a")
    with worker(app) as one:
        one.work()
    (waits,) = inside.store.find("a")
    assert waits.grace_us == 90_000_000
    assert waits.first_us is not None
    assert waits.due_us == waits.first_us + 5_000_000


@pytest.mark.parametrize(("on_conflict", "due", "held"), [("replace", 1, 0), ("keep", 0, 0), ("error", 0, 1)], ids=str)
def test_the_id_waits_already(
    app: Celery, stock: Celery, inside: Inside, on_conflict: str, due: int, held: int
) -> None:
    """As with apply_async: the later message takes its place, unless the task says otherwise."""

    @app.task(shared=False, name="add", on_conflict=on_conflict)
    def add() -> None: ...

    app.finalize()
    times = [THEN, THEN + timedelta(days=1)]
    app.send_task("add", eta=times[0], task_id="a")
    stock.send_task("add", eta=times[1], task_id="a")
    with worker(app) as one:
        one.work()
        assert len(one.held) == held
    assert inside.one().due_us == to_us(times[due])


def test_the_same_message_again_changes_nothing(app: Celery, stock: Celery, inside: Inside) -> None:
    """Two deliveries of one message, should there ever be two, are one task."""
    stock.send_task("add", eta=THEN, task_id="a")
    (raw,) = inside.client.lrange("celery", 0, -1)
    inside.client.lpush("celery", raw)
    with worker(app) as one:
        one.work()
        first = inside.one()
        one.work()
        assert one.held == []
    again = inside.one()
    assert (first.id, first.due_us, first.message["body"]) == (again.id, again.due_us, again.message["body"])


def test_without_a_dispatcher(app: Celery, stock: Celery, inside: Inside) -> None:
    """A worker without one adopts only while another lives."""
    stock.send_task("add", eta=THEN, task_id="a")
    stock.send_task("add", eta=THEN, task_id="b")
    with worker(app, dispatches=False) as one:
        one.work()
        assert (len(one.held), in_hand(inside)) == (1, 1)
        inside.client.set(inside.keys.beat, time.time_ns() // 1000)
        one.work()
        assert (len(one.held), in_hand(inside)) == (1, 1)
    assert inside.one().id == "b"


def test_a_redis_that_refuses(app: Celery, stock: Celery, inside: Inside, caplog: Any) -> None:
    """It is full, or a key is somebody else's: the worker holds the message as stock Celery does, and says so once."""
    for number in range(3):
        stock.send_task("add", eta=THEN, task_id=f"{number}")
    with worker(app) as one:
        messages = [one.receive() for _ in range(3)]
        inside.client.config_set("maxmemory", "1")
        try:
            one.judge(messages[0])
            one.judge(messages[1])
        finally:
            inside.client.config_set("maxmemory", "0")
        inside.client.set(inside.keys.schedule("celery"), "somebody else's")
        one.judge(messages[2])

        assert (one.held, in_hand(inside)) == (messages, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "this worker holds delayed tasks in memory, as stock Celery does: OutOfMemoryError" in caplog.text


def test_a_lost_connection_ends_it_as_kombu_s_own_does(
    app: Celery, stock: Celery, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether the script has run: the worker connects anew; what was adopted is not given out again."""
    stock.send_task("add", eta=THEN, task_id="a")
    with worker(app) as one:
        message = one.receive()
        store = type(inside.store)
        adopt = store.adopt

        def adopt_and_lose(*args: Any, **options: Any) -> Any:
            adopt(*args, **options)
            raise redis.ConnectionError("reset by peer")

        monkeypatch.setattr(store, "adopt", adopt_and_lose)
        with pytest.raises(redis.ConnectionError):
            one.judge(message)
    assert inside.ready() == []
    assert inside.one().id == "a"


def test_keys_of_the_transport_s_own(make_app: Callable[..., Celery], server: Any) -> None:
    """global_keyprefix, other names for the unacknowledged, other steps: all as the worker's own transport has them."""
    options = {
        "global_keyprefix": "shop.",
        "unacked_key": "held",
        "unacked_index_key": "held_index",
        "priority_steps": list(range(10)),
        "sep": ":",
    }
    app, stock = (make_app(joined=joined, broker_transport_options=options) for joined in (True, False))
    inside = Inside(server, global_prefix="shop.")
    stock.send_task("add", eta=THEN, priority=7)
    with worker(app) as one:
        message = one.receive()
        assert inside.client.hlen("shop.held") == 1
        one.judge(message)
        assert one.held == []
    assert inside.client.exists("shop.held", "shop.held_index") == 0
    assert inside.hand_over() == 1
    assert inside.client.llen("shop.celery:7") == 1
    assert all(key.startswith(b"shop.") for key in inside.client.scan_iter())


def test_a_transport_without_acknowledgements(make_app: Callable[..., Celery], inside: Inside) -> None:
    """ack_emulation off: Redis keeps no record of deliveries, so there is none to take away; adopted all the same."""
    options = {"ack_emulation": False}
    app, stock = (make_app(joined=joined, broker_transport_options=options) for joined in (True, False))
    stock.send_task("add", eta=THEN, task_id="a")
    with worker(app) as one:
        one.work()
        assert (one.held, one.unacknowledged) == ([], 0)
    assert inside.one().id == "a"
    assert inside.ready() == []


@pytest.mark.parametrize("off", ["delayq_adopt", "delayq_intercept"])
def test_off(make_app: Callable[..., Celery], off: str) -> None:
    """A worker adopts nothing if told so; nor if plain delayed tasks are to go the stock way."""
    assert make_app(**{off: False}).delayq.adoption(lambda: True, lambda: None) is None


def test_a_broker_that_is_not_redis(make_app: Callable[..., Celery]) -> None:
    """Nothing to adopt into."""
    assert make_app(broker_url="memory://").delayq.adoption(lambda: True, lambda: None) is None
