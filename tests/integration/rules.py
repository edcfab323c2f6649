"""What the tests of the rules share: rules in a few words, watchers in this process or in a fork of it."""

from __future__ import annotations

import os
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread
from typing import Any

import redis

from celery_delayq.embedded import RedisServer
from celery_delayq.keys import WatcherKeys
from celery_delayq.plain_client import client_at
from celery_delayq.rules import Watcher, validated
from celery_delayq.rules.list_source import ListSource, token_of
from celery_delayq.rules.watching import Watch

#: Resc's first example.
TREATMENT = {
    "name": "treatment",
    "on": r"^acq/(?P<process>\w+)/(?P<product>\w+)$",
    "make": {"task": "trt/${process}/${product}", "queue": "trt/${process}/todo", "set": "trt/${process}/set"},
}


def watcher_of(*rules: Mapping[str, Any], **more: Any) -> Watcher:
    """The only watcher of a configuration, on the list "events"."""
    data = {"watchers": [{"input_queue": "events", "rules": list(rules) or [TREATMENT], **more}]}
    return validated(data).watchers[0]


def nothing_fetched(*_: object) -> list[Mapping[str, Any]]:
    raise AssertionError("no rule fetches")


def source_of(server: RedisServer, watcher: Watcher, channel: str = "") -> ListSource:
    token = token_of(uuid.uuid4().hex)
    return ListSource(client_at(server.url()), WatcherKeys(watcher.taken), watcher.input_queue, token, channel)


def watch_of(server: RedisServer, watcher: Watcher, fetching: Any = nothing_fetched, **more: Any) -> Watch:
    return Watch(watcher, source_of(server, watcher, "channel"), fetching, **more)


@contextmanager
def running(watch: Watch) -> Iterator[Watch]:
    """It works in a thread, and ends with the context."""
    stop, failures = Flag(), []

    def run() -> None:
        try:
            watch.run(stop)
        except BaseException as error:  # noqa: BLE001  # raised again below
            failures.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        for failure in failures:
            raise failure


def work_off(watch: Watch) -> None:
    """Begin, do all there is to do, end: all in this thread."""
    watch._begin()
    while watch.work_once(0):
        pass
    watch._end()


def pushed(client: redis.Redis, pattern: str = "trt/*/todo") -> Counter[str]:
    """All tasks in the lists of such a name."""
    return Counter(task.decode() for key in client.scan_iter(pattern) for task in client.lrange(key, 0, -1))


@contextmanager
def listening(client: redis.Redis, channel: str = "channel") -> Iterator[Callable[[], list[str]]]:
    """Gives the lines that were published since the last time."""
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(channel)
        listener.get_message(timeout=60)

        def read() -> list[str]:
            client.publish(channel, "end")
            lines: list[str] = []
            while (message := listener.get_message(timeout=60)) and message["data"] != b"end":
                lines.append(message["data"].decode(errors="replace"))
            return lines

        yield read


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do *work* in a fork that is killed right before its command of that number, counted from 0, or right after its
    answer, if the number is odd (2 n + 1); whether it came so far.
    """
    pid = os.fork()
    if not pid:
        status = 1
        try:
            _kill_at(step)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _kill_at(step: int) -> None:
    count = -1
    connection: Any = redis.connection.Connection
    send, read = connection.send_packed_command, connection.read_response

    def sending(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == step / 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return send(self, *args, **options)

    def reading(self: Any, *args: Any, **options: Any) -> Any:
        reply = read(self, *args, **options)
        if step % 2 and count >= step // 2:  # several may be sent before the first is answered
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    connection.send_packed_command, connection.read_response = sending, reading
