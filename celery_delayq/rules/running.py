"""All watchers of some files, each in a thread of its own: the one place that puts their parts together."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from threading import Event as Flag
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import redis

from celery_delayq.errors import ImproperlyConfigured
from celery_delayq.keys import WatcherKeys
from celery_delayq.plain_client import client_at

from .fetching import Fetchers
from .list_source import ListSource, event_of, token_of
from .model import CeleryMake, Rules, Watcher
from .outlet import Outlet
from .source import Source
from .stream_source import StreamSource
from .task_events import read as read_task_event
from .watching import Counts, Watch

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

#: How long (s) the end waits for a call that is under way.
PATIENCE = 0.7


#: All of this process that were not stopped, for their metrics.
RUNNERS: WeakSet[Runner] = WeakSet()


class Runner:
    """Runs all watchers of *rules*, until :meth:`stop`.

    Args:
        rules: of any number of files.
        app: whose Celery tasks rules may make; None: such a rule is refused.

    Raises:
        ImproperlyConfigured: a rule needs an app; two files have one queue.
    """

    def __init__(self, rules: Sequence[Rules], app: Celery | None = None) -> None:
        self._stop = Flag()
        self._fetchers: list[Fetchers] = []
        self._outlets: list[Outlet] = []
        #: The first error that ended a watcher.
        self.failure: BaseException | None = None
        self._ended = Flag()
        self.watches: list[tuple[Watcher, Watch]] = []
        seen: set[tuple[str, str]] = set()
        for whole in rules:
            for watcher in whole.watchers:
                url = whole.url_of(watcher)
                if (url, watcher.taken) in seen:
                    raise ImproperlyConfigured(f"two files have a watcher with the taken_queue {watcher.taken!r}")
                seen.add((url, watcher.taken))
                self.watches.append((watcher, self._watch(whole, watcher, url, app)))
        self._threads = [
            Thread(target=self._run, args=(watch,), name=f"delayq-rules-{watcher.input_queue}", daemon=True)
            for watcher, watch in self.watches
        ]
        RUNNERS.add(self)

    def start(self) -> None:
        """Begin; a thread for each watcher."""
        for thread in self._threads:
            thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until one watcher has ended, on its own or by :meth:`stop`; whether it has."""
        return self._ended.wait(timeout)

    def stop(self) -> None:
        """End all, and give back what is in work. What is under way for longer than a moment is left behind."""
        self._stop.set()
        deadline = monotonic() + PATIENCE
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - monotonic()))
        RUNNERS.discard(self)
        for fetchers in self._fetchers:
            fetchers.close()
        for outlet in self._outlets:
            outlet.close()

    @property
    def counts(self) -> Mapping[str, Counts]:
        """What each watcher has done, by its queue."""
        return {watcher.input_queue: watch.counts for watcher, watch in self.watches}

    def _run(self, watch: Watch) -> None:
        try:
            watch.run(self._stop)
        except BaseException as error:  # whoever waits for the end raises it
            logger.critical("%s", error, exc_info=not isinstance(error, ImproperlyConfigured))
            self.failure = self.failure or error
        finally:
            self._ended.set()

    def _watch(self, rules: Rules, watcher: Watcher, url: str, app: Celery | None) -> Watch:
        if app is None and any(isinstance(make, CeleryMake) for rule in watcher.rules for make in rule.make):
            raise ImproperlyConfigured(
                f"the watcher of {watcher.input_queue!r} makes Celery tasks: name the app that they belong to (-A)"
            )
        client = client_at(url)
        fetchers = Fetchers()
        self._fetchers.append(fetchers)
        outlet = None if app is None else Outlet(app, url)
        self._outlets += [outlet] if outlet else []
        return Watch(watcher, _source(rules, watcher, client), fetchers, outlet)


def _source(rules: Rules, watcher: Watcher, client: redis.Redis) -> Source:
    keys = WatcherKeys(watcher.taken)
    token = token_of(uuid.uuid4().hex)
    channel = rules.listener_channel or ""
    if watcher.source == "stream":
        return StreamSource(
            client, keys, watcher.input_queue, watcher.group, token, watcher.field, watcher.claim_after, channel
        )
    read: Callable[[bytes], Any] = read_task_event if watcher.source == "task" else event_of
    return ListSource(client, keys, watcher.input_queue, token, channel, read)
