"""The ways to a Redis in which jobs wait: by Kombu's Redis transport and its pools, or by a cluster's nodes.

A source gives the store of each shard, and tells what happens to Redis as Kombu tells it. Where jobs wait, and in how
many shards, it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import redis
from kombu.exceptions import OperationalError
from kombu.utils.functional import retry_over_time
from redis.exceptions import OutOfMemoryError

from . import broker
from .cluster import Cluster, slot_of
from .keys import Keys
from .scripts import PURPOSE
from .sharding import StoreOf
from .store import Store

T = TypeVar("T")

#: Socket timeout (s) of connections of their own, where the transport options name none: a Redis that has vanished
#: without closing its connections is noticed after so long. Less where another server may have taken its place.
SOCKET_TIMEOUT, REPLACED_SOCKET_TIMEOUT = 5.0, 2.0

#: What a Redis that cannot be reached makes of a call.
UNREACHABLE = (redis.ConnectionError, redis.TimeoutError, OSError)

#: What Kombu's ``ensure`` takes of a ``retry_policy``; and a policy of one attempt.
_POLICY = ("max_retries", "interval_start", "interval_step", "interval_max", "errback", "retry_errors")
ONCE: Mapping[str, Any] = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


class Opened(NamedTuple):
    """Connections of their own: gives the store of each shard on them, for one thread; and closes them."""

    store_of: StoreOf
    close: Callable[[], object]


class Source(Protocol):
    """A way to one Redis."""

    @property
    def url(self) -> str:
        """Where it is; a password is masked."""

    def connect_within(self, seconds: float) -> None:
        """Take no longer for a connection, where nothing else is said."""

    def lent(self, policy: Mapping[str, Any]) -> AbstractContextManager[StoreOf]:
        """The store of each shard, on connections that are shared.

        Raises:
            kombu.exceptions.OperationalError: Redis cannot be reached, after *policy*, or refuses.
        """

    def call(self, function: Callable[[StoreOf], T], retry: bool, policy: Mapping[str, Any]) -> T:
        """Call *function* with the store of each shard, again by *policy* while Redis cannot be reached.

        Raises:
            kombu.exceptions.OperationalError: Redis cannot be reached, is full, or refuses.
        """

    def opener(self, timeout: float | None = None) -> Callable[[], Opened]:
        """What opens connections of their own. To be asked for in the main thread, and used in any.

        Args:
            timeout: seconds that Redis may take for anything, whatever the options say.
        """


class KombuSource:
    """By Kombu's Redis transport, whatever server its URLs mean.

    Args:
        pool: gives the pool of the connections that are shared.
        write: gives a connection as of that pool, not opened.
        read: gives one for connections of their own, not opened;
        options: and its transport options.
        prefix: of the keys.
        leases: jobs are reserved.
    """

    def __init__(
        self,
        pool: Callable[[], Any],
        write: Callable[[], Any],
        read: Callable[[], Any],
        options: Callable[[], Mapping[str, Any]],
        prefix: str,
        *,
        leases: bool,
    ) -> None:
        self._pool = pool
        self._write = write
        self._read = read
        self._options = options
        self._prefix = prefix
        self._leases = leases

    @property
    def url(self) -> str:
        return broker.url_of(self._write())

    def connect_within(self, seconds: float) -> None:
        # Of a connection that is always the same; else they come from the app's configuration.
        self._write().transport_options.setdefault("socket_connect_timeout", seconds)

    @contextmanager
    def channel(self, policy: Mapping[str, Any]) -> Iterator[Any]:
        """A Redis channel; raises what :meth:`lent` does."""
        with self._pool().acquire(block=True) as connection:
            connection.ensure_connection(**{name: value for name, value in policy.items() if name != "retry_errors"})
            with connection._reraise_as_library_errors():
                yield connection.default_channel

    @contextmanager
    def lent(self, policy: Mapping[str, Any]) -> Iterator[StoreOf]:
        with self.channel(policy) as channel:
            yield self._stores_on(channel)

    def _stores_on(self, channel: Any) -> StoreOf:
        return partial(broker.store_of, channel, self._prefix, leases=self._leases)

    def call(self, function: Callable[[StoreOf], T], retry: bool, policy: Mapping[str, Any]) -> T:
        terms = _terms(retry, policy)
        with self._pool().acquire(block=True) as connection:

            def call() -> T:
                return _unless_full(function, self._stores_on(connection.default_channel))

            # Else a channel that Kombu has to make anew would be tried for ever.
            connection.transport_options.update(terms)
            with connection._reraise_as_library_errors():
                done: T = connection.ensure(_Nothing(), call, **terms)() if retry else call()
                return done

    def opener(self, timeout: float | None = None) -> Callable[[], Opened]:
        connection = self._read()
        limit = REPLACED_SOCKET_TIMEOUT if broker.has_sentinels(connection) else SOCKET_TIMEOUT
        given = broker.quick_to_find_a_master(self._options())
        connection.transport_options = {**_limits(limit), **given, **_limits(timeout)}
        return lambda: self._open(connection.clone())

    def _open(self, connection: Any) -> Opened:
        channel = broker.connect(connection)
        return Opened(broker.own_stores(channel, self._prefix, leases=self._leases), connection.close)


class ClusterSource:
    """By a pool for each shard, of connections to whichever node of a cluster owns the shard's slot.

    Args:
        global_prefix: what all keys begin with, before *prefix*.
    """

    def __init__(self, cluster: Cluster, prefix: str, global_prefix: str = "") -> None:
        self._cluster = cluster
        self._prefix = prefix
        self._global_prefix = global_prefix
        self._shared: dict[int, Store] = {}
        self._limited = cluster.limited(_limits(SOCKET_TIMEOUT))

    @property
    def url(self) -> str:
        return str(self._cluster)

    def connect_within(self, seconds: float) -> None:
        """It takes no longer than the socket timeout anyway."""

    def _store_of(self, cluster: Cluster, shard: int, *, own: bool = False) -> Store:
        keys = Keys(self._prefix, self._global_prefix, shard=shard)
        client = redis.Redis(connection_pool=cluster.pool(slot_of(keys.index)), single_connection_client=own)
        return Store(client, keys, _PoolOf(client), leases=True)

    def _shared_store_of(self, shard: int) -> Store:
        store = self._shared.get(shard)
        if store is None:  # if two threads come here at once one is used less: no harm
            store = self._shared[shard] = self._store_of(self._limited, shard)
        return store

    @contextmanager
    def lent(self, policy: Mapping[str, Any]) -> Iterator[StoreOf]:
        with _told_as_kombu_does():
            _again(self._reach, policy)
            yield self._shared_store_of

    def _reach(self) -> None:
        """Have a connection to the first shard. One that is open is only looked at."""
        pool = self._shared_store_of(0).client.connection_pool
        pool.release(pool.get_connection(*PURPOSE))

    def call(self, function: Callable[[StoreOf], T], retry: bool, policy: Mapping[str, Any]) -> T:
        with _told_as_kombu_does():
            call = partial(_unless_full, function, self._shared_store_of)
            return _again(call, _terms(retry, policy)) if retry else call()

    def opener(self, timeout: float | None = None) -> Callable[[], Opened]:
        cluster = self._cluster.limited(_limits(REPLACED_SOCKET_TIMEOUT))
        return partial(self._open, cluster if timeout is None else cluster.within(_limits(timeout)))

    def _open(self, cluster: Cluster) -> Opened:
        opened: dict[int, Store] = {}

        def store_of(shard: int) -> Store:
            if shard not in opened:
                opened[shard] = self._store_of(cluster, shard, own=True)
            return opened[shard]

        def close() -> None:
            for store in opened.values():
                store.close()

        return Opened(store_of, close)


class _PoolOf:
    """What a client's connections belong to."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def close(self) -> None:
        self._client.close()
        self._client.connection_pool.disconnect()


class _Nothing:
    """What Kombu's ``ensure`` may revive: nothing of ours outlives a lost connection."""

    def revive(self, channel: object) -> None: ...


def _limits(seconds: float | None) -> dict[str, float]:
    return {} if seconds is None else dict.fromkeys(("socket_timeout", "socket_connect_timeout"), seconds)


def _terms(retry: bool, policy: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in policy.items() if name in _POLICY} if retry else ONCE


def _unless_full(function: Callable[[StoreOf], T], store_of: StoreOf) -> T:
    try:
        return function(store_of)
    except OutOfMemoryError as error:
        raise broker.full(error) from error


def _again(function: Callable[[], T], policy: Mapping[str, Any]) -> T:
    """Call *function* by a policy of Kombu's ``ensure``."""
    terms = dict(policy)
    errback, more = terms.pop("errback", None), terms.pop("retry_errors", None) or ()

    def pause(error: BaseException, pauses: Iterator[float], _: int) -> float:
        length = next(pauses)
        if errback is not None:
            errback(error, length)
        return length

    done: T = retry_over_time(function, (*UNREACHABLE, *more), errback=pause, **terms)
    return done


@contextmanager
def _told_as_kombu_does() -> Iterator[None]:
    try:
        yield
    except OperationalError:
        raise
    except (redis.RedisError, OSError) as error:
        raise OperationalError(str(error)) from error
