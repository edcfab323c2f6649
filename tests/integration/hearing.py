"""Ears for the tests of revoking: a real receiver of Celery's events, and a receiver of its signal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery import Celery, uuid
from celery.signals import task_revoked

from celery_delayq.embedded import RedisServer

#: Seconds after which a test gives up listening.
PATIENCE = 60.0


class Ear:
    """Hears every event of an app from the moment it was made."""

    def __init__(self, app: Celery, connection: Any, heard: list[dict[str, Any]]) -> None:
        self._app = app
        self._connection = connection
        self._heard = heard

    def events(self) -> list[dict[str, Any]]:
        """All so far: whatever was sent before this call is here, since Redis keeps the order."""
        mark = uuid()
        with self._app.events.default_dispatcher() as dispatcher:
            dispatcher.send("test-until-here", uuid=mark)
        while not any(event.get("uuid") == mark for event in self._heard):
            self._connection.drain_events(timeout=PATIENCE)
        return [event for event in self._heard if event["type"] != "test-until-here"]

    def revoked(self) -> list[tuple[str, bool]]:
        """The tasks of all events ``task-revoked``, each with whether it was too late; by id."""
        return sorted((event["uuid"], event["expired"]) for event in self.events() if event["type"] == "task-revoked")


@contextmanager
def listening(app: Celery, server: RedisServer) -> Iterator[Ear]:
    """An ear on the broker of *app*, on *server*."""
    heard: list[dict[str, Any]] = []
    with app.connection_for_read() as connection, server.client() as client:
        receiver = app.events.Receiver(connection, handlers={"*": heard.append})
        others = client.pubsub_numpat()
        with receiver.consumer_context(wakeup=False) as (own_connection, _, _):
            while client.pubsub_numpat() <= others:
                with suppress(TimeoutError):
                    own_connection.drain_events(timeout=0.01)
            yield Ear(app, own_connection, heard)


@contextmanager
def signalled() -> Iterator[list[dict[str, Any]]]:
    """What the signal ``task_revoked`` brings in this process: its arguments, call by call."""
    calls: list[dict[str, Any]] = []

    def hear(**arguments: Any) -> None:
        calls.append(arguments)

    task_revoked.connect(hear)
    try:
        yield calls
    finally:
        task_revoked.disconnect(hear)
