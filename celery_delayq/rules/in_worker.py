"""The rules that a worker runs beside its tasks: those of the files that ``delayq_rules`` names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from celery_delayq import broker
from celery_delayq.addresses import url_for_redis
from celery_delayq.errors import ImproperlyConfigured

from .loading import Fault, InvalidRules, load
from .model import Redis, Rules
from .running import Runner
from .task_events import TaskEvents

if TYPE_CHECKING:
    from celery import Celery


class InWorker:
    """The rules of one worker. To be made before its pool, so that the pool's children have the signals.

    Args:
        app: the worker's; where a watcher names no Redis, it is the app's broker, if that is one.
        paths: of the files.

    Raises:
        InvalidRules: with the faults of all files.
        ImproperlyConfigured: a watcher names no Redis, and the broker's cannot be named by one URL.
    """

    def __init__(self, app: Celery, paths: Sequence[str]) -> None:
        self._app = app
        rules: list[Rules] = []
        faults: list[Fault] = []
        for path in paths:
            try:
                rules.append(_at_broker(load(path), app, path))
            except InvalidRules as error:
                faults += error.faults
        if faults:
            raise InvalidRules(faults)
        self._rules = rules
        TaskEvents(rules).connect()

    def runner(self) -> Runner:
        """What runs the watchers, not started; to be made when the pool has forked."""
        return Runner(self._rules, self._app)


def _at_broker(rules: Rules, app: Celery, path: str) -> Rules:
    """*rules*, at the broker's Redis if they name none."""
    if "redis" in rules.model_fields_set or all(watcher.redis is not None for watcher in rules.watchers):
        return rules
    connection = app.connection_for_write()
    if not broker.goes_to_redis(connection):
        return rules
    url = url_for_redis(connection)
    if url is None:
        raise ImproperlyConfigured(f"{path}: name the Redis of the queues with redis.url; the broker is not one alone")
    return rules.model_copy(update={"redis": Redis(url=url)})
