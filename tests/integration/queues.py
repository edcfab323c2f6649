"""Both kinds of queues for the same tests: that of asyncio is run on a loop of the test's own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_delayq import DelayQueue
from celery_delayq import asyncio as twin
from celery_delayq.embedded import RedisServer

#: Makes a queue: ``make_queue("emails", shards=2)``.
MakeQueue = Callable[..., Any]


class Awaited:
    """A queue of asyncio as if it were the other kind: whatever it gives is waited for."""

    def __init__(self, queue: twin.DelayQueue, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = queue
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._queue, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            result = found(*args, **options)
            if inspect.isawaitable(result):
                return self._loop.run_until_complete(result)
            return self._all(result) if hasattr(result, "__anext__") else result

        return call

    def __len__(self) -> int:
        return int(self.stats().waiting)

    def __iter__(self) -> Iterator[Any]:
        return self._all(self._queue)

    def _all(self, source: Any) -> Iterator[Any]:
        jobs = aiter(source)
        while True:
            try:
                yield self._loop.run_until_complete(anext(jobs))
            except StopAsyncIteration:
                return

    def close(self) -> None:
        self._loop.run_until_complete(self._queue.aclose())


@pytest.fixture(params=["threads", "asyncio"])
def make_queue(request: pytest.FixtureRequest, server: RedisServer) -> Iterator[MakeQueue]:
    """Makes queues of either kind, on the test's own server or at another place."""
    loop = asyncio.new_event_loop()
    queues: list[Any] = []

    def make(topic: str = "emails", url_or_client: Any = None, **options: Any) -> Any:
        place = server.url() if url_or_client is None else url_or_client
        if request.param == "threads":
            queues.append(DelayQueue(place, topic, **options))
        else:
            queues.append(Awaited(twin.DelayQueue(place, topic, **options), loop))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()
    loop.close()
