"""What the checks need to know, each looked up when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from time import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, ResponseError

from celery_delayq import broker
from celery_delayq.clock import SECOND_US
from celery_delayq.delivery import Delivery
from celery_delayq.home import Home
from celery_delayq.job import Load
from celery_delayq.settings import Settings
from celery_delayq.sharding import Sharded
from celery_delayq.store import Store

from . import rights

if TYPE_CHECKING:
    from celery import Celery

#: The settings of Redis that checks ask for.
ASKED = ("save", "appendfsync", "stop-writes-on-bgsave-error", "min-replicas-to-write")

#: Topics of which the rights are tried at most.
TRIED = 10


@dataclass(frozen=True)
class Server:
    """One Redis server.

    Attributes:
        name: where it is.
        info: what it says of itself, by its own names.
        config: some of its settings; None if it does not tell them, as managed ones do not.
    """

    name: str
    info: Mapping[str, Any]
    config: Mapping[str, str] | None


class Patient:
    """One app and the Redis in which its tasks wait. Each property may raise whatever its look-up does.

    Args:
        app: the app.
        settings: its settings.
        home: where its tasks wait.
        connect: opens the store, on connections that end soon where nobody answers.
        reply_timeout: how long (s) workers have to answer.
        clock: the time of this host (s since the epoch).
    """

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        home: Home,
        connect: Callable[[], Store | Sharded],
        *,
        reply_timeout: float = 1.0,
        clock: Callable[[], float] = time,
    ) -> None:
        self.app = app
        self.settings = settings
        self.home = home
        self._connect = connect
        self.reply_timeout = reply_timeout
        self._clock = clock

    def close(self) -> None:
        """Close what was opened."""
        store: Store | Sharded | None = vars(self).pop("store", None)
        if store is not None:
            store.close()

    @cached_property
    def store(self) -> Store | Sharded:
        """The store."""
        return self._connect()

    @property
    def first(self) -> Store:
        """The store of the first shard."""
        return self.store.parts[0]

    @cached_property
    def servers(self) -> Sequence[Server]:
        """The servers of the shards, each once; that of the first shard comes first."""
        found: dict[str, Server] = {}
        for part in self.store.parts:
            client: Any = part.client
            info = client.info()
            if info["run_id"] not in found:
                name = f"{client.connection.host}:{client.connection.port}" if client.connection else "another server"
                found[info["run_id"]] = Server(name, info, _config(client))
        return list(found.values())

    @cached_property
    def user(self) -> str:
        """As whom we have logged in."""
        return str(self.first.client.connection_pool.connection_kwargs.get("username") or "default")

    @cached_property
    def refused(self) -> Mapping[str, str]:
        """What Redis's ACL would refuse us, and what it says to that."""
        queues = [self.app.conf.task_default_queue, *self.app.amqp.queues]
        return rights.refused(self.first, list(dict.fromkeys(queues))[:TRIED], relayed=self.home.is_relayed)

    @property
    def now(self) -> float:
        """This host's clock (s since the epoch)."""
        return self._clock()

    @cached_property
    def skew(self) -> float:
        """By how much (s) this host's clock is ahead of Redis's."""
        began = self.now
        redis_us = self.store.now_us()
        return (began + self.now) / 2 - redis_us / SECOND_US

    @cached_property
    def now_us(self) -> int:
        """Redis's clock, when it was asked what waits."""
        return self._found[0]

    @cached_property
    def loads(self) -> Mapping[str, Load]:
        """What each queue holds and has done."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[int, dict[str, Load]]:
        store = self.store
        waiting = store.topics()
        others = {*store.paused(), *store.counted(), *store.leased()} - {*waiting}
        gone = Delivery.relayed() if self.home.is_relayed else None
        return store.loads(
            {**waiting, **{topic: gone or Delivery.plain(self.first.keys.ready(topic)) for topic in others}}
        )

    @cached_property
    def expiries(self) -> Mapping[str, int]:
        """When the first lease of each queue runs out, or ran out (us)."""
        return self.store.expiries()

    @cached_property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """How many ids, and how many messages each queue has."""
        return self.store.sizes(self.loads)

    @cached_property
    def listeners(self) -> tuple[int, int] | None:
        """How many dispatchers listen to the fleet, and how many to announcements, in the shard with the fewest; None:
        that cannot be seen.
        """
        if any(name.startswith("SUBSCRIBE") for name in self.refused):  # then they cannot listen, and live all the same
            return None
        try:
            told = [_listeners(part) for part in self.store.parts]
        except NoPermissionError:
            return None
        return min(told, key=sum)

    @cached_property
    def beat_age(self) -> float | None:
        """Seconds since a dispatcher last left a sign of life in Redis; None: never."""
        beat_us = self.store.beat_us()
        return None if beat_us is None else max(self.now_us - beat_us, 0) / SECOND_US

    @property
    def remote_control(self) -> bool:
        """Whether workers of this app answer at all."""
        return bool(self.app.conf.worker_enable_remote_control)

    @property
    def queues(self) -> Mapping[str, Any]:
        """Worker -> the queues that it consumes."""
        return self._replies["active_queues"]

    @property
    def active(self) -> Mapping[str, Any]:
        """Worker -> the tasks that it runs."""
        return self._replies["active"]

    @property
    def answers(self) -> Mapping[str, Any]:
        """Worker -> what it tells of its dispatcher."""
        return self._replies["delayq"]

    @cached_property
    def _replies(self) -> Mapping[str, Mapping[str, Any]]:
        """All questions at once: each takes the whole timeout, since nobody knows how many workers there are."""
        commands = ("active_queues", "active", "delayq")
        if not self.remote_control:
            return {command: {} for command in commands}
        with ThreadPoolExecutor(len(commands)) as threads:
            return dict(zip(commands, threads.map(self._asked, commands), strict=True))

    def _asked(self, command: str) -> dict[str, Any]:
        replies = self.app.control.broadcast(command, reply=True, timeout=self.reply_timeout) or []
        return {worker: said for reply in replies for worker, said in reply.items()}

    @property
    def visibility_timeout(self) -> float | None:
        """Seconds after which a message that nobody acknowledged is delivered again; None: never."""
        return broker.visibility_timeout(self.app.connection_for_read())

    @property
    def late_limits(self) -> Mapping[str, float]:
        """Tasks that acknowledge late -> their time limits (s)."""
        limits = {}
        for name, task in self.app.tasks.items():
            limit = task.time_limit or self.app.conf.task_time_limit
            if task.acks_late and limit:
                limits[name] = float(limit)
        return limits

    @property
    def task_queues(self) -> set[str]:
        """The queues that ``task_queues`` names."""
        return set(self.app.amqp.queues) if self.app.conf.task_queues else set()


def _config(client: Any) -> Mapping[str, str] | None:
    found: dict[str, str] = {}
    try:
        for name in ASKED:
            found |= {_text(key): _text(value) for key, value in client.config_get(name).items()}
    except (NoPermissionError, ResponseError):  # forbidden, or renamed away
        return None
    return found


def _listeners(part: Store) -> tuple[int, int]:
    client: Any = part.client
    (_, fleet), (_, wake) = client.pubsub_numsub(part.keys.fleet, part.keys.wake)
    return int(fleet), int(wake)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
