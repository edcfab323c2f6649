"""DelayQ(app): joins any app, at any moment, and reads nothing before its time."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.app.amqp import AMQP
from kombu import Producer

from celery_delayq import DelayQ, ImproperlyConfigured, broker
from celery_delayq.embedded import RedisServer

from .conftest import Inside


class OwnAMQP(AMQP):  # type: ignore[misc]  # Celery is untyped
    """An app's own AMQP, which counts."""

    sent = 0

    class Producer(Producer):  # type: ignore[misc]  # Kombu is untyped
        """A producer of the user's, with a publish of its own."""

        def publish(self, *args: Any, **options: Any) -> Any:
            OwnAMQP.sent += 1
            return super().publish(*args, **options)


class OwnCelery(Celery):  # type: ignore[misc]  # Celery is untyped
    amqp_cls = f"{__name__}:OwnAMQP"


def test_nothing_is_read_when_it_is_made() -> None:
    """No configuration, no queues, no connection: an app may be configured after DelayQ(app)."""

    def broken() -> dict[str, Any]:
        raise AssertionError("the configuration was read")

    app = Celery("x", set_as_current=False, changes=None)
    app.add_defaults(broken)
    delayq = DelayQ(app)

    assert app.delayq is delayq
    assert not app.configured
    assert "amqp" not in vars(app)


def test_before_and_after_amqp_exists(make_app: Callable[..., Celery], inside: Inside) -> None:
    """It does not matter whether app.amqp was made, or even used, before."""
    fresh = make_app(joined=False)
    DelayQ(fresh)
    fresh.send_task("add", countdown=60)

    used = make_app(joined=False)
    used.send_task("add")
    assert "send_task_message" in vars(used.amqp)
    DelayQ(used)
    used.send_task("add", countdown=60)

    assert len(inside.waiting()) == 2


def test_twice(make_app: Callable[..., Celery], inside: Inside) -> None:
    """Called again, and by another DelayQ: one joint, one put, each step once."""
    app = make_app()
    first = app.delayq
    first.init_app(app)
    DelayQ(app)
    app.send_task("add", countdown=60)
    DelayQ(app)
    app.send_task("add", countdown=60)

    assert app.delayq is first
    assert len(inside.waiting()) == 2
    assert sorted(step.__name__ for step in app.steps["worker"]) == ["CheckUpStep", "DispatcherStep", "RulesStep"]
    assert sorted(step.__name__ for step in app.steps["consumer"]) == ["AdoptionStep", "MasterStep", "RecordStep"]
    assert len(app.user_options["worker"]) == 1


def test_init_app(make_app: Callable[..., Celery], inside: Inside) -> None:
    """DelayQ() first, its app later, as Flask's extensions do."""
    delayq = DelayQ()
    app = make_app(joined=False)
    delayq.init_app(app)

    delayq.apply_delayed("add", 60)

    assert len(inside.waiting()) == 1


def test_one_app_each(make_app: Callable[..., Celery]) -> None:
    """A DelayQ reads one app's settings: a second app needs its own, and is told so."""
    delayq = make_app().delayq

    with pytest.raises(ImproperlyConfigured, match="make another DelayQ"):
        delayq.init_app(make_app(joined=False))


def test_a_closed_channel_is_forgotten(app: Celery, inside: Inside) -> None:
    """Reconnecting again and again leaves no clients behind."""
    gc.collect()
    before = len(broker._links)
    for _ in range(5):
        with app.connection_for_write() as connection:
            app.send_task("add", countdown=60, connection=connection)
    del connection
    gc.collect()

    assert len(broker._links) <= before
    assert len(inside.waiting()) == 5


def test_an_amqp_and_a_producer_of_ones_own(make_app: Callable[..., Celery], inside: Inside, server: Any) -> None:
    """Custom classes keep their methods, super() and isinstance."""
    app = make_app(OwnCelery)
    app.send_task("add", countdown=60)
    assert isinstance(app.amqp, OwnAMQP)
    assert len(inside.waiting()) == 1

    sent = OwnAMQP.sent
    with app.connection_for_write() as connection:
        app.send_task("add", countdown=60, producer=app.amqp.Producer(connection))
    assert (2, sent + 1) == (len(inside.waiting()), OwnAMQP.sent)


def test_what_others_put_in_place_is_called(app: Celery, inside: Inside) -> None:
    """A tool that replaces app.amqp.send_task_message is called with what it would be called with."""
    stock = app.amqp.send_task_message
    calls: list[str] = []

    def traced(producer: Any, name: str, message: Any, **options: Any) -> Any:
        calls.append(name)
        return stock(producer, name, message, **options)

    app.amqp.send_task_message = traced
    app.send_task("add", countdown=60)

    assert calls == ["add"]
    assert len(inside.waiting()) == 1


def test_an_app_can_still_be_pickled(make_app: Callable[..., Celery]) -> None:
    """As Celery allows it; the copy is a stock app."""
    app = make_app()
    copy = pickle.loads(pickle.dumps(app))

    assert app.main == copy.main
    assert type(copy.amqp) is AMQP


def test_after_a_fork(app: Celery, inside: Inside) -> None:
    """A child of a process that has published publishes on connections of its own."""
    app.send_task("add", countdown=60)
    child = os.fork()
    if not child:
        status = 1
        try:
            app.send_task("add", countdown=60)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    app.send_task("add", countdown=60)

    assert len(inside.waiting()) == 3


def test_many_threads(app: Celery, inside: Inside) -> None:
    """Threads that publish at once, the first time included, lose and mix nothing."""
    start = threading.Barrier(8)

    def publish(number: int) -> None:
        start.wait()
        for n in range(50):
            app.send_task("add", (number, n), countdown=60 + number)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    jobs = inside.waiting()
    assert {f"({number}, {n})" for number in range(8) for n in range(50)} == {
        job.message["headers"]["argsrepr"] for job in jobs
    }
    assert all(job.id == job.message["headers"]["id"] for job in jobs)


def test_an_unknown_setting_is_refused_by_name(make_app: Callable[..., Celery]) -> None:
    """At the first use: the setting, and the one that was meant."""
    app = make_app(delayq_min_dealy=5)

    with pytest.raises(ImproperlyConfigured, match=r"delayq_min_dealy; did you mean delayq_min_delay\?"):
        app.send_task("add", countdown=60)


def test_django_style_settings(server: RedisServer) -> None:
    """With a namespace, as Django projects have it, settings are upper case behind its prefix."""

    class DjangoSettings:
        CELERY_BROKER_URL = server.url()
        CELERY_DELAYQ_MIN_DELAY = 30
        CELERY_DELAYQ_PREFIX = "site"
        DELAYQ_PREFIX = "not ours: no namespace"

    app = Celery("x", set_as_current=False)
    app.config_from_object(DjangoSettings, namespace="CELERY")
    delayq = DelayQ(app)

    assert (delayq.settings.min_delay, delayq.settings.prefix) == (30.0, "site")

    class Wrong(DjangoSettings):
        CELERY_DELAYQ_PREFIKS = "x"

    app = Celery("y", set_as_current=False)
    app.config_from_object(Wrong, namespace="CELERY")
    with pytest.raises(ImproperlyConfigured, match="delayq_prefiks"):
        _ = DelayQ(app).settings
