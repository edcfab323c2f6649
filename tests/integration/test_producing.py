"""The app's producers publish what was reserved: what each broker makes of it, and what we make of that."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from kombu import Connection, Exchange, Queue

from celery_delayq.embedded import RedisServer, free_port
from celery_delayq.job import Reserved
from celery_delayq.message import DUE_PROPERTY, envelope
from celery_delayq.producing import ProducerPublisher
from celery_delayq.relay import BrokerAway, Fate, Published

ONE_REDIS = True

OK = Published(Fate.CONFIRMED)


class Kept:
    """Leases that hold, until *ends* jobs were sent."""

    def __init__(self, ends: int = 10**9) -> None:
        self._ends = ends

    def may_send(self, number: int) -> bool:
        return number < self._ends

    def tend(self) -> bool:
        return True


def reserved(
    topic: str,
    count: int = 1,
    *,
    exchange: str = "",
    routing_key: str | None = None,
    body: str = "[[], {}, {}]",
    own: str | None = None,
    **more: Any,
) -> list[Reserved]:
    """Jobs as a publish would have put them, with a header of their own and more properties."""
    key = topic if routing_key is None else routing_key
    jobs = []
    for _ in range(count):
        id = uuid4().hex
        headers = {"id": id, "task": "add", "eta": None, "own": own}
        properties = {"correlation_id": id, "delivery_mode": 2, DUE_PROPERTY: "2030-01-01T00:00:00+00:00", **more}
        raw = envelope(body, 3, "application/json", "utf-8", headers, properties, exchange, key)
        jobs.append(Reserved(topic, id.encode(), raw, 0, 0, 1, "t.1"))
    return jobs


@pytest.fixture
def name() -> str:
    """A queue that no other test has."""
    return f"q-{uuid4().hex}"


@pytest.fixture
def make_publisher() -> Iterator[Callable[..., ProducerPublisher]]:
    made: list[tuple[Celery, ProducerPublisher]] = []

    def make(url: str, queues: Sequence[Queue] = (), **conf: Any) -> ProducerPublisher:
        app = Celery("relayed", broker=url, set_as_current=False)
        app.conf.update(task_queues=queues, **conf)
        publisher = ProducerPublisher(app)
        made.append((app, publisher))
        return publisher

    yield make
    for app, publisher in made:
        publisher.close()
        app.close()


def publish(publisher: ProducerPublisher, jobs: Sequence[Reserved], leases: Any = None) -> list[Published]:
    publisher.reach()
    return publisher.publish(jobs, leases or Kept())


def drained(url: str, queue: str, **options: Any) -> list[Any]:
    """All messages of a queue."""
    found = []
    with Connection(url, **options) as connection, connection.channel() as channel:
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            found.append(message)
    return found


class TestRabbit:
    """RabbitMQ: all is sent, then all is confirmed."""

    @pytest.mark.parametrize("kind", ["classic", "quorum"])
    def test_a_batch(
        self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str, kind: str
    ) -> None:
        """A queue is declared as the app has it; each message comes there once, as it was put, its due time in a
        header.
        """
        queue = Queue(name, queue_arguments={"x-queue-type": kind})
        publisher = make_publisher(rabbit_url, [queue])
        jobs = reserved(name, 300)

        assert publish(publisher, jobs) == [OK] * 300
        messages = drained(rabbit_url, name)
        assert [message.headers["id"].encode() for message in messages] == [job.id for job in jobs]
        first = messages[0]
        assert (first.headers["eta"], first.headers[DUE_PROPERTY]) == (None, "2030-01-01T00:00:00+00:00")
        assert (first.properties["delivery_mode"], first.properties["priority"]) == (2, 3)
        assert first.properties["correlation_id"] == first.headers["id"]
        assert json.loads(first.body) == [[], {}, {}]

    def test_the_users_confirmations(
        self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str
    ) -> None:
        """``confirm_publish`` is the app's for its own publishes; here it makes none wait for each."""
        publisher = make_publisher(rabbit_url, broker_transport_options={"confirm_publish": True})
        assert publish(publisher, reserved(name, 20)) == [OK] * 20
        assert publish(publisher, reserved(name, 20)) == [OK] * 20
        assert len(drained(rabbit_url, name)) == 40

    def test_unroutable(self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str) -> None:
        """What no queue is bound for comes back: refused, not dropped."""
        publisher = make_publisher(rabbit_url)
        some = reserved(f"amq.topic/{name}", 3, exchange="amq.topic", routing_key=name)
        assert {(one.fate, one.reason.partition(" to ")[0]) for one in publish(publisher, some)} == {
            (Fate.REFUSED, "no queue is bound")
        }
        assert publish(publisher, reserved(name, 2)) == [OK] * 2  # the channel is as good as before
        assert len(drained(rabbit_url, name)) == 2

    def test_no_such_exchange(
        self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str
    ) -> None:
        """RabbitMQ would close the channel: found out beforehand, so that it costs nobody else his confirmation."""
        publisher = make_publisher(rabbit_url, [Queue(name)])
        jobs = [*reserved(name, 2), *reserved(name, 1, exchange=f"no-{name}"), *reserved(name, 2)]
        done = publish(publisher, jobs)
        assert [one.fate for one in done] == [Fate.CONFIRMED] * 2 + [Fate.REFUSED] + [Fate.CONFIRMED] * 2
        assert "NOT_FOUND" in done[2].reason
        assert len(drained(rabbit_url, name)) == 4

    def test_a_full_queue(self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str) -> None:
        """A nack is a refusal."""
        queue = Queue(name, queue_arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
        publisher = make_publisher(rabbit_url, [queue])
        fates = [one.fate for one in publish(publisher, reserved(name, 5))]
        assert sorted(fate.value for fate in fates) == ["confirmed"] * 2 + ["refused"] * 3

    def test_a_queue_of_other_arguments(
        self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str, caplog: Any
    ) -> None:
        """A queue that somebody else has declared otherwise gets its messages all the same."""
        assert publish(make_publisher(rabbit_url, [Queue(name, queue_arguments={"x-max-length": 9})]), reserved(name))
        publisher = make_publisher(rabbit_url, [Queue(name)])
        assert publish(publisher, reserved(name, 2)) == [OK] * 2
        assert publish(publisher, reserved(name, 2)) == [OK] * 2
        assert caplog.text.count("cannot be declared as this app has it") == 1

    def test_a_queue_that_was_deleted(
        self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str
    ) -> None:
        """It is declared anew for the next attempt."""
        publisher = make_publisher(rabbit_url)
        assert publish(publisher, reserved(name)) == [OK]
        with Connection(rabbit_url) as connection, connection.channel() as channel:
            channel.queue_delete(name)
        assert [one.fate for one in publish(publisher, reserved(name))] == [Fate.REFUSED]
        assert publish(publisher, reserved(name)) == [OK]

    def test_a_queue_that_nobody_may_create(
        self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str
    ) -> None:
        """Without ``task_create_missing_queues`` none is made that the app does not know."""
        publisher = make_publisher(rabbit_url, [Queue("celery")], task_create_missing_queues=False)
        assert [one.fate for one in publish(publisher, reserved(name))] == [Fate.REFUSED]

    def test_what_cannot_be_encoded(
        self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str
    ) -> None:
        """A message that AMQP cannot carry, or that is none, is refused alone."""
        publisher = make_publisher(rabbit_url, [Queue(name)])
        wrong = Reserved(name, b"x", b"no message", 0, 0, 1, "t.1")
        long = reserved(name, 1, exchange="amq.topic", routing_key="x" * 300)
        done = publish(publisher, [*reserved(name), wrong, *long, *reserved(name)])
        assert [one.fate for one in done] == [Fate.CONFIRMED, Fate.REFUSED, Fate.REFUSED, Fate.CONFIRMED]
        assert len(drained(rabbit_url, name)) == 2

    def test_large_messages(self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str) -> None:
        """They are sent alone, between the others."""
        publisher = make_publisher(rabbit_url, [Queue(name)])
        large = reserved(name, 2, body=json.dumps("x" * 2_000_000))
        assert publish(publisher, [*reserved(name, 3), *large, *reserved(name, 3)]) == [OK] * 8
        assert len(drained(rabbit_url, name)) == 8

    @pytest.mark.parametrize("wrong", [{"own": "x" * 140_000}, {"user_id": "somebody"}], ids=["connection", "channel"])
    def test_a_message_that_the_broker_hangs_up_on(
        self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str, wrong: dict[str, str]
    ) -> None:
        """RabbitMQ closes the connection or the channel over one, and does not say over which. So what is open is
        refused; and at the next attempt each goes alone, and only that one is refused.
        """
        publisher = make_publisher(rabbit_url, [Queue(name)])
        (bad,) = reserved(name, **wrong)
        jobs = [*reserved(name, 3), bad, *reserved(name, 3)]
        first = publish(publisher, jobs)
        assert first[3].fate is Fate.REFUSED
        again = [
            job._replace(attempts=2) for job, one in zip(jobs, first, strict=True) if one.fate is not Fate.CONFIRMED
        ]
        while again:
            done = publish(publisher, again)
            refused = [job for job, one in zip(again, done, strict=True) if one.fate is Fate.REFUSED]
            assert [job.id for job in refused] in ([], [bad.id])
            again = [job for job, one in zip(again, done, strict=True) if one.fate is Fate.UNSENT]
        found = Counter(message.headers["id"].encode() for message in drained(rabbit_url, name))
        assert set(found) == {job.id for job in jobs} - {bad.id}
        assert max(found.values()) <= 2

    def test_leases_that_are_lost(
        self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str
    ) -> None:
        """What is no longer ours is not sent."""
        publisher = make_publisher(rabbit_url, [Queue(name)])
        assert publish(publisher, reserved(name, 5), Kept(3)) == [OK] * 3 + [Published(Fate.UNSENT)] * 2
        assert len(drained(rabbit_url, name)) == 3

    def test_exchanges_of_a_queue(
        self, rabbit_url: str, make_publisher: Callable[..., ProducerPublisher], name: str
    ) -> None:
        """A queue's exchange and binding are declared with it; a message goes to the exchange that was given."""
        queue = Queue(name, Exchange(f"ex-{name}", type="topic"), routing_key="order.#")
        publisher = make_publisher(rabbit_url, [queue])
        jobs = reserved(name, 2, exchange=f"ex-{name}", routing_key="order.paid")
        assert publish(publisher, jobs) == [OK] * 2
        assert [message.delivery_info["routing_key"] for message in drained(rabbit_url, name)] == ["order.paid"] * 2


def test_no_broker_at_all(make_publisher: Callable[..., ProducerPublisher]) -> None:
    """To reach nobody is told at once."""
    publisher = make_publisher(f"amqp://127.0.0.1:{free_port()}//")
    begin = time.monotonic()
    with pytest.raises(BrokerAway, match="refused"):
        publisher.reach()
    assert time.monotonic() - begin < 5


class TestRedis:
    """Another Redis: Kombu's own list, priority steps and all."""

    def test_a_batch(self, server: RedisServer, make_publisher: Callable[..., ProducerPublisher], name: str) -> None:
        """Each message comes there once, as if it were sent without a delay; the due time is a property."""
        publisher = make_publisher(server.url())
        jobs = reserved(name, 300)
        assert publish(publisher, jobs) == [OK] * 300
        with server.client() as client:
            raw = [json.loads(message) for message in client.lrange(f"{name}\x06\x163", 0, -1)[::-1]]
        assert [message["headers"]["id"].encode() for message in raw] == [job.id for job in jobs]
        assert raw[0]["properties"][DUE_PROPERTY] == "2030-01-01T00:00:00+00:00"
        assert DUE_PROPERTY not in raw[0]["headers"]

    def test_unroutable(self, server: RedisServer, make_publisher: Callable[..., ProducerPublisher], name: str) -> None:
        """Kombu would drop it without a word; here it is refused, and nobody else with it."""
        queue = Queue(name, Exchange("ex", type="topic"), routing_key="a.#")
        publisher = make_publisher(server.url(), [queue])
        jobs = [
            *reserved(name, 1, exchange="ex", routing_key="b"),
            *reserved(name, 1, exchange="ex", routing_key="a.b"),
        ]
        assert [one.fate for one in publish(publisher, jobs)] == [Fate.REFUSED, Fate.CONFIRMED]

    def test_it_goes_away(self, own_server: RedisServer, make_publisher: Callable[..., ProducerPublisher]) -> None:
        """A lost connection is noticed before a batch, and in the midst of one."""
        publisher = make_publisher(own_server.url())
        assert publish(publisher, reserved("q", 3)) == [OK] * 3
        own_server.stop()
        with pytest.raises(BrokerAway):
            publisher.reach()
        own_server.start()
        publisher.reach()

        class Stopping(Kept):
            def may_send(self, number: int) -> bool:
                if number == 1:
                    own_server.stop()
                return True

        fates = [one.fate for one in publisher.publish(reserved("q", 3), Stopping())]
        assert Fate.REFUSED not in fates
        assert Fate.UNKNOWN in fates
        own_server.start()
        assert publish(publisher, reserved("q", 3)) == [OK] * 3

    def test_it_is_full(self, own_server: RedisServer, make_publisher: Callable[..., ProducerPublisher]) -> None:
        """That is no fault of any message's."""
        publisher = make_publisher(own_server.url())
        publisher.reach()
        with own_server.client() as client:
            client.config_set("maxmemory", 1)
        fates = {one.fate for one in publisher.publish(reserved("q", 3), Kept())}
        assert fates <= {Fate.UNKNOWN, Fate.UNSENT}
        with own_server.client() as client:
            client.config_set("maxmemory", 0)
        assert publish(publisher, reserved("q", 3)) == [OK] * 3

    def test_a_key_of_another_type(
        self, server: RedisServer, make_publisher: Callable[..., ProducerPublisher], name: str
    ) -> None:
        """What Redis says of one queue's key is no word on the others, and none on the broker."""
        publisher = make_publisher(server.url())
        with server.client() as client:
            client.set(f"{name}\x06\x163", "taken")
        assert {one.fate for one in publish(publisher, reserved(name, 2))} == {Fate.REFUSED}
        assert publish(publisher, reserved(f"{name}-2")) == [OK]


@contextmanager
def filesystem(folder: Any) -> Iterator[dict[str, Any]]:
    """Kombu's filesystem transport: queues are folders."""
    options = {"data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": str(folder / "control")}
    yield options


def test_a_filesystem(tmp_path: Any, make_publisher: Callable[..., ProducerPublisher], name: str) -> None:
    """An embedded transport: what its call has returned for is confirmed."""
    with filesystem(tmp_path) as options:
        publisher = make_publisher("filesystem://", broker_transport_options=options)
        jobs = reserved(name, 5)
        assert publish(publisher, jobs) == [OK] * 5
        messages = drained("filesystem://", name, transport_options=options)
        assert {message.headers["id"].encode() for message in messages} == {job.id for job in jobs}
        assert messages[0].properties[DUE_PROPERTY] == "2030-01-01T00:00:00+00:00"
