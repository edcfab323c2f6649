"""Where an app's delayed tasks wait: in the broker's own Redis, or in another one, from where they are relayed.

Decided once for an app, from ``broker_url`` and ``delayq_store_url``, without connecting anywhere. Both kinds of Redis
are reached by Kombu's Redis transport and its pools (:mod:`~celery_delayq.broker`), so that whatever URL Kombu takes
for a broker will do for a store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from kombu import Connection, pools
from kombu.utils.url import url_to_parts
from redis.exceptions import NoPermissionError

from . import broker
from .delivery import Delivery
from .errors import ImproperlyConfigured
from .job import OnConflict, Put
from .liveness import Liveness
from .settings import Settings
from .store import Store

if TYPE_CHECKING:
    from celery import Celery

#: What Kombu itself reads from a URL's query; the rest are transport options.
_READ_BY_KOMBU = ("ssl_", "virtual_host", "credential_provider")

#: Socket timeout (s) of connections of their own, where the transport options name none: a Redis that has vanished
#: without closing its connections is noticed after so long. Less where Sentinel may have another one.
SOCKET_TIMEOUT, SENTINEL_SOCKET_TIMEOUT = 5.0, 2.0

#: Names of one and the same machine: this one.
_HERE = frozenset((None, "", "localhost", "127.0.0.1", "::1"))


class Home:
    """The Redis in which the delayed tasks of one app wait, and the broker that they are for.

    Args:
        settings: gives the app's settings; called when something is first asked for.
    """

    def __init__(self, app: Celery, settings: Callable[[], Settings]) -> None:
        self._app = app
        self._settings = settings
        self._claimed = False

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
    def _store(self) -> Connection | None:
        """A connection to the store, never opened, if ``delayq_store_url`` names another Redis than the broker's.

        Raises:
            ImproperlyConfigured: it names no Redis.
        """
        url = self._settings().store_url
        if url is None:
            return None
        target = self._app.connection_for_write()
        inherited = self._app.conf.broker_transport_options if broker.goes_to_redis(target) else None
        store = _connection(url, inherited or {})
        return None if broker.goes_to_redis(target) and _place(store) == _place(target) else store

    @property
    def is_relayed(self) -> bool:
        """Whether tasks wait in a Redis that is not the broker's, and are published to the broker when they are due."""
        return self._store is not None

    @property
    def is_there(self) -> bool:
        """Whether delayed tasks have a Redis to wait in."""
        return self.is_relayed or broker.goes_to_redis(self._app.connection_for_write())

    @property
    def setting(self) -> str:
        """The setting that says where it is."""
        return "delayq_store_url" if self.is_relayed else "broker_url"

    @property
    def template(self) -> Any:
        """A Kombu connection to it, not opened: for who wants to name it, or to clone it."""
        return self._store if self._store is not None else self._app.connection_for_write()

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
    def channel(self, retry: bool = True, policy: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """A Redis channel to it; what happens to it is told as Kombu tells it.

        Raises:
            ImproperlyConfigured: there is no Redis.
            kombu.exceptions.OperationalError: Redis cannot be reached, after *policy*, or refuses.
        """
        with self._pool.acquire(block=True) as connection:
            if not broker.goes_to_redis(connection):
                raise self.missing(connection)
            connection.ensure_connection(**(policy or self._app.conf.task_publish_retry_policy if retry else _ONCE))
            with connection._reraise_as_library_errors():
                yield connection.default_channel

    @staticmethod
    def missing(connection: Any) -> ImproperlyConfigured:
        """What to say if there is no Redis, and *connection* goes to the broker."""
        return ImproperlyConfigured(
            f"the broker {broker.url_of(connection)} is not Redis: name a Redis in which delayed tasks can wait with "
            "delayq_store_url, or set broker_url to a redis://, rediss:// or sentinel:// URL"
        )

    def store_of(self, channel: Any) -> Store:
        """The store on one of its own channels."""
        return broker.store_of(channel, self.prefix, leases=self.is_relayed)

    @property
    def _pool(self) -> Any:
        return self._app.pool if self._store is None else pools.connections[self._store]

    def put(self, jobs: Sequence[Put], on_conflict: OnConflict, retry: bool, policy: Mapping[str, Any]) -> int:
        """Store jobs that are to be relayed, with Kombu's retries; return how many were written.

        Raises:
            AlreadyScheduled: as :meth:`~celery_delayq.store.Store.put` does.
            ImproperlyConfigured: the store holds the tasks of another broker.
            Unattended: no dispatcher lives, and the settings want no task to wait then.
            ReplicasMissing: all are stored, but too few replicas have acknowledged them.
            kombu.exceptions.OperationalError: Redis cannot be reached, or is full.
        """
        deliveries = dict.fromkeys((job.topic for job in jobs), Delivery.relayed())
        terms = {name: value for name, value in policy.items() if name in _POLICY} if retry else _ONCE
        with self._pool.acquire(block=True) as connection:

            def put() -> int:
                channel = connection.default_channel
                if not self._claimed:
                    self.claim(self.store_of(channel))
                return self.put_on(channel, jobs, on_conflict, deliveries)

            # Else a channel that Kombu has to make anew would be tried for ever.
            connection.transport_options.update(terms)
            with connection._reraise_as_library_errors():
                count: int = connection.ensure(_Nothing(), put, **terms)() if retry else put()
                return count

    def put_on(
        self, channel: Any, jobs: Sequence[Put], on_conflict: OnConflict, deliveries: dict[str, Delivery] | None = None
    ) -> int:
        """Store jobs on one of the store's own channels, once, as the settings want it; return how many were written.

        Args:
            deliveries: where they go, if they are relayed; else their topics are queues of this channel's broker.

        Raises:
            AlreadyScheduled, Unattended: as :meth:`~celery_delayq.store.Store.put` does.
            ReplicasMissing: all are stored, but too few replicas have acknowledged them.
            kombu.exceptions.OperationalError: Redis is full.
        """
        return broker.put(
            channel, self.prefix, jobs, on_conflict, deliveries, self.liveness, self._settings().wait_replicas
        )

    def claim(self, store: Store) -> None:
        """Make sure that *store* is for the broker that this app publishes to; asked once in a process.

        Raises:
            ImproperlyConfigured: it holds the tasks of another broker.
        """
        check(store, store.serve(self.broker), self.broker)
        self._claimed = True

    def connect(self, connection: Any, *, claims: bool = True) -> Store:
        """Open the store on *connection*, which is to be made by :meth:`connection`.

        Args:
            claims: if nobody has said yet which broker the store is for, it is for ours from now on.

        Raises:
            ImproperlyConfigured: the store holds the tasks of another broker.
        """
        store = broker.connect(connection, self.prefix, leases=self.is_relayed)
        try:
            if not self.is_relayed:
                with suppress(NoPermissionError):  # each script will say so, and what is missing the doctor
                    check(store, store.serves(), None)
            elif claims:
                self.claim(store)
            else:
                check(store, store.serves(), self.broker)
        except BaseException:
            store.close()
            raise
        return store

    def connection(self, timeout: float | None = None) -> Any:
        """A Kombu connection to it of its own, not opened; to the URL that workers read from, if the broker has two.

        Args:
            timeout: seconds that Redis may take for anything, whatever the transport options say.
        """
        if self._store is None:
            connection = self._app.connection_for_read()
            given = self._app.conf.broker_transport_options or {}
        else:
            connection, given = self._store.clone(), self._store.transport_options
        limit = SENTINEL_SOCKET_TIMEOUT if broker.has_sentinels(connection) else SOCKET_TIMEOUT
        own = {"socket_timeout": limit, "socket_connect_timeout": limit}
        asked = {} if timeout is None else dict.fromkeys(own, timeout)
        connection.transport_options = {**own, **broker.quick_to_find_a_master(given), **asked}
        return connection

    def deliveries(self, queues: set[str]) -> dict[str, Delivery]:
        """Where the due tasks of each queue go."""
        if self.is_relayed:
            return dict.fromkeys(queues, Delivery.relayed())
        with self.channel() as channel:
            return broker.deliveries_of(channel, self.prefix, queues)


class _Nothing:
    """What Kombu's ``ensure`` may revive: nothing of ours outlives a lost connection."""

    def revive(self, channel: object) -> None: ...


#: What Kombu's ``ensure`` takes of a ``retry_policy``; and a policy of one attempt.
_POLICY = ("max_retries", "interval_start", "interval_step", "interval_max", "errback", "retry_errors")
_ONCE: Mapping[str, Any] = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


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


def name_of(connection: Any) -> str:
    """The broker behind a Kombu connection: transport, hosts and virtual host, without credentials."""
    transport = connection.get_transport_cls()
    kind, default = transport.driver_type, transport.default_port
    if not connection.alt:
        return _named(kind, connection.hostname, connection.port or default, connection.virtual_host)
    parts = [url_to_parts(url if "://" in url else f"any://{url}") for url in connection.alt]
    return ",".join(sorted({_named(kind, part.hostname, part.port or default, part.path) for part in parts}))


def _named(kind: str, host: str | None, port: int | None, path: str | None) -> str:
    if host and "://" in host:  # a URL in a URL, as of SQLAlchemy's transport, or a socket's
        return f"{kind}+{re.sub('//[^/@]*@', '//', host)}"
    path = (path or "").strip("/") or ("0" if kind == "redis" else "")
    return f"{kind}://{'localhost' if host in _HERE else host}{f':{port}' if port else ''}/{path}"


def _connection(url: str, inherited: Mapping[str, Any]) -> Connection:
    """A Kombu connection to the store; what its URL asks for and Kombu does not know are transport options."""
    options = dict(inherited)
    urls = []
    for one in url.split(";"):
        address, _, query = one.partition("?")
        words = parse_qsl(query)
        options.update({name: _read(text) for name, text in words if not name.startswith(_READ_BY_KOMBU)})
        kept = urlencode([(name, text) for name, text in words if name.startswith(_READ_BY_KOMBU)])
        urls.append(f"{address}?{kept}" if kept else address)
    shown = re.sub("//[^/@]*@", "//**@", urls[0])
    try:
        connection = Connection(";".join(urls), transport_options=options)
        if broker.goes_to_redis(connection):
            return connection
    except Exception as error:  # noqa: BLE001  # whatever Kombu, or a module that the URL names, makes of it
        raise ImproperlyConfigured(f"delayq_store_url {shown} cannot be used: {error}") from None
    raise ImproperlyConfigured(f"delayq_store_url {shown} is no Redis; it must be redis://, rediss://, sentinel:// …")


def _read(text: str) -> Any:
    """A value in a URL's query as it is meant."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _place(connection: Any) -> tuple[object, ...]:
    """What two connections to the same keys of the same Redis have in common."""
    options = connection.transport_options
    return name_of(connection), options.get("global_keyprefix") or "", options.get("master_name")
