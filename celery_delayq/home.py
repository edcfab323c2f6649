"""Where an app's delayed tasks wait: in the broker's own Redis, or in another one, from where they are relayed.

Decided once for an app, from ``broker_url`` and ``delayq_store_url``, without connecting anywhere. How that Redis is
reached is a source's matter (:mod:`~celery_delayq.sources`); here it is decided which, whose and how many shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any

from kombu import pools
from redis.exceptions import NoPermissionError

from . import broker
from .addresses import cluster_at, connection_to, name_of, place_of
from .cluster import is_cluster_url
from .delivery import Delivery
from .errors import ImproperlyConfigured
from .job import OnConflict, Origin, Put
from .liveness import Liveness
from .settings import Settings
from .sharding import Sharded, StoreOf, joined, known_counts, raise_count
from .sources import ClusterSource, KombuSource, Opened, Source
from .store import Store

if TYPE_CHECKING:
    from celery import Celery

#: For so long (s) a process takes for true how many shards there are. After that it asks, when it needs to know.
COUNTS_FRESH = 5.0


class Home:
    """The Redis in which the delayed tasks of one app wait, and the broker that they are for.

    Args:
        settings: gives the app's settings; called when something is first asked for.
    """

    def __init__(self, app: Celery, settings: Callable[[], Settings]) -> None:
        self._app = app
        self._settings = settings
        self._claimed = False
        self._checked = 0  # so many shards are known to be of a version that we know
        self._counts: tuple[tuple[int, ...], float] = (), 0.0  # of shards; and when they were read (s, monotonic)

    @property
    def prefix(self) -> str:
        """The setting ``delayq_prefix``."""
        return self._settings().prefix

    @cached_property
    def liveness(self) -> Liveness:
        """What this process has found of whether a dispatcher lives."""
        settings = self._settings()
        return Liveness(settings.max_poll_interval, refuses=settings.fallback == "native")

    @cached_property
    def _relayed(self) -> Source | None:
        """The way to ``delayq_store_url``, if that names another Redis than the broker's.

        Raises:
            ImproperlyConfigured: it names no Redis; or the broker's own shall have several shards.
        """
        settings = self._settings()
        source = None if settings.store_url is None else self._elsewhere(settings.store_url, settings.prefix)
        if source is None and settings.shards > 1:
            raise ImproperlyConfigured(
                f"delayq_shards = {settings.shards} needs a delayq_store_url that is not the broker: a broker's own "
                "Redis hands a due task over within itself, and has one shard"
            )
        return source

    def _elsewhere(self, url: str, prefix: str) -> Source | None:
        target = self._app.connection_for_write()
        to_redis = broker.goes_to_redis(target)
        inherited = (self._app.conf.broker_transport_options if to_redis else None) or {}
        if is_cluster_url(url):
            cluster, more = cluster_at(url, inherited)
            return ClusterSource(cluster, prefix, more.get("global_keyprefix", ""))
        store = connection_to(url, inherited)
        if to_redis and place_of(store) == place_of(target):
            return None
        return KombuSource(
            lambda: pools.connections[store],
            lambda: store,
            store.clone,
            lambda: store.transport_options,
            prefix,
            leases=True,
        )

    @cached_property
    def _direct(self) -> KombuSource:
        """The way to the broker's own Redis."""
        app = self._app
        return KombuSource(
            lambda: app.pool,
            app.connection_for_write,
            app.connection_for_read,
            lambda: app.conf.broker_transport_options or {},
            self._settings().prefix,
            leases=False,
        )

    @property
    def _source(self) -> Source:
        return self._relayed or self._direct

    @property
    def is_relayed(self) -> bool:
        """Whether tasks wait in a Redis that is not the broker's, and are published to the broker when they are due."""
        return self._relayed is not None

    @property
    def is_there(self) -> bool:
        """Whether delayed tasks have a Redis to wait in."""
        return self.is_relayed or broker.goes_to_redis(self._app.connection_for_write())

    @property
    def setting(self) -> str:
        """The setting that says where it is."""
        return "delayq_store_url" if self.is_relayed else "broker_url"

    @property
    def url(self) -> str:
        """Where it is; a password is masked."""
        return self._source.url

    def connect_within(self, seconds: float) -> None:
        """Take no longer for a connection to ``delayq_store_url``, where nothing else is said."""
        self._source.connect_within(seconds)

    @cached_property
    def broker(self) -> str:
        """The broker that tasks are published to: transport, hosts and virtual host, without credentials."""
        return name_of(self._app.connection_for_write())

    def serves(self, connection: Any) -> bool:
        """Whether what is published over *connection*, a Kombu connection, may as well go by way of us: it goes to the
        app's own broker.
        """
        return connection is not None and name_of(connection) == self.broker

    @contextmanager
    def store(self) -> Iterator[Store | Sharded]:
        """The store, on connections that are shared; what happens to it is told as Kombu tells it.

        Raises:
            ImproperlyConfigured: there is no Redis.
            Outdated: what is there is of a later version than we know.
            kombu.exceptions.OperationalError: Redis cannot be reached, after Celery's publish retries, or refuses.
        """
        self._check_there()
        with self._source.lent(self._policy) as store_of:
            yield self._checked_once(self._joined(store_of))

    def _checked_once(self, store: Store | Sharded) -> Store | Sharded:
        """*store*, of shards each of which this process has found to be of a version that we know."""
        for part in store.parts[self._checked :]:
            part.check_version()
            self._checked += 1
        return store

    @property
    def _policy(self) -> Mapping[str, Any]:
        policy: Mapping[str, Any] = self._app.conf.task_publish_retry_policy
        return policy

    def _check_there(self) -> None:
        if not self.is_there:
            raise self.missing(self._app.connection_for_write())

    def _joined(self, store_of: StoreOf) -> Store | Sharded:
        """All shards, as many as are known a moment ago."""
        if not self.is_relayed:
            return store_of(0)
        counts, read = self._counts
        if not counts or monotonic() - read > COUNTS_FRESH:
            counts = known_counts(store_of(0), self._settings().shards)
            self._counts = counts, monotonic()
        return joined(store_of, counts)

    @staticmethod
    def missing(connection: Any) -> ImproperlyConfigured:
        """What to say if there is no Redis, and *connection* goes to the broker."""
        return ImproperlyConfigured(
            f"the broker {broker.url_of(connection)} is not Redis: name a Redis in which delayed tasks can wait with "
            "delayq_store_url, or set broker_url to a redis://, rediss:// or sentinel:// URL"
        )

    def put(self, jobs: Sequence[Put], on_conflict: OnConflict, retry: bool, policy: Mapping[str, Any]) -> int:
        """Store jobs that are to be relayed, with Kombu's retries; return how many were written.

        Raises:
            AlreadyScheduled: as :meth:`~celery_delayq.store.Store.put` does.
            ImproperlyConfigured: the store holds the tasks of another broker.
            Outdated: the store is of a later version than we know.
            Unattended: no dispatcher lives, and the settings want no task to wait then.
            ReplicasMissing: all are stored, but too few replicas have acknowledged them.
            kombu.exceptions.OperationalError: Redis cannot be reached, or is full.
        """
        deliveries = dict.fromkeys((job.topic for job in jobs), Delivery.relayed())
        replicas = self._settings().wait_replicas

        def put(store_of: StoreOf) -> int:
            if not self._claimed:
                self.claim(store_of)
            store = self._checked_once(self._joined(store_of))
            return store.put(
                jobs, deliveries, on_conflict, origin=Origin.RETRIED, liveness=self.liveness, replicas=replicas
            )

        return self._source.call(put, retry, policy)

    def put_on(self, channel: Any, jobs: Sequence[Put], on_conflict: OnConflict) -> int:
        """Store jobs on a channel of the broker, once, as the settings want it; return how many were written.

        Raises:
            AlreadyScheduled, Unattended: as :meth:`~celery_delayq.store.Store.put` does.
            Outdated: what is there is of a later version than we know.
            ReplicasMissing: all are stored, but too few replicas have acknowledged them.
            kombu.exceptions.OperationalError: Redis is full.
        """
        return broker.put(channel, self.prefix, jobs, on_conflict, self.liveness, self._settings().wait_replicas)

    def claim(self, store_of: StoreOf) -> None:
        """Make sure that the store is for the broker that this app publishes to, and known to have our shards; done
        once in a process before it puts.

        Raises:
            ImproperlyConfigured: it holds the tasks of another broker.
            Outdated: it is of a later version than we know.
        """
        first = store_of(0)
        first.check_version()
        check(first, first.serves(), self.broker)
        raise_count(store_of, self._settings().shards)
        check(first, first.serve(self.broker), self.broker)
        self._counts = (), 0.0  # read anew: from now on whoever raises the number knows of us
        store = self._joined(store_of)
        if store is not first:
            check(first, store.serve(self.broker), self.broker)
        self._claimed = True

    def opener(self, timeout: float | None = None) -> Callable[[], Opened]:
        """What opens connections of their own, to the URL that workers read from, if the broker has two. For
        :meth:`connect` and :meth:`connect_to`; to be asked for in the main thread.

        Args:
            timeout: seconds that Redis may take for anything, whatever the transport options say.
        """
        return self._source.opener(timeout)

    def connect(self, opener: Callable[[], Opened], *, claims: bool = True) -> Store | Sharded:
        """Open the store, all shards of it, on connections of its own.

        Args:
            claims: if nobody has said yet which broker the store is for, and of which version it is, that is ours
                from now on.

        Raises:
            ImproperlyConfigured: the store holds the tasks of another broker.
            Outdated: it is of a later version than we know.
        """
        opened = opener()
        try:
            if claims and self.is_relayed:
                self.claim(opened.store_of)
            store = self._joined(opened.store_of)
            for part in store.parts:
                part.check_version(marks=claims)
            if not (claims and self.is_relayed):
                self._check_served(store)
        except BaseException:
            opened.close()
            raise
        return store

    def connect_to(self, opener: Callable[[], Opened], shard: int) -> Store:
        """Open the store of one shard, for a dispatcher; else like :meth:`connect`."""
        opened = opener()
        try:
            store = opened.store_of(shard)
            store.check_version()
            if self.is_relayed:
                check(store, store.serve(self.broker), self.broker)
            else:
                self._check_served(store)
        except BaseException:
            opened.close()
            raise
        return store

    def _check_served(self, store: Store | Sharded) -> None:
        with suppress(NoPermissionError):  # each script will say so, and what is missing the doctor
            check(store.parts[0], store.serves(), self.broker if self.is_relayed else None)

    def deliveries(self, queues: set[str]) -> dict[str, Delivery]:
        """Where the due tasks of each queue go."""
        if self.is_relayed:
            return dict.fromkeys(queues, Delivery.relayed())
        self._check_there()
        with self._direct.channel(self._policy) as channel:
            return broker.deliveries_of(channel, self.prefix, queues)


def check(store: Store, served: str | None, broker_name: str | None) -> None:
    """Refuse a store that holds the tasks of another broker.

    Args:
        served: the broker whose tasks the store holds; None if it does not say.
        broker_name: our own; None if the store is the broker.

    Raises:
        ImproperlyConfigured: they differ.
    """
    if served is not None and served != broker_name:
        ours = broker_name or "this very Redis"
        place = store.keys.beginning.removesuffix(":")
        raise ImproperlyConfigured(
            f"the delayed tasks under {place} are for the broker {served}, but ours "
            f"is {ours}: give this app another delayq_store_url or delayq_prefix; or, if it is the same broker under "
            f"another name, delete the key {store.keys.serves}"
        )
