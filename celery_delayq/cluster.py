"""Redis Cluster, as far as the store needs it: for each slot a pool of connections to whichever node owns it.

All keys of a shard are in one slot, so one node at a time serves the shard, and whoever uses the pool need not know
that there are others. When the slot has gone elsewhere, the connection goes there, too, and repeats what the old owner
has refused. While nobody serves it (it is on its way, or its owner has died) there is ``redis.ConnectionError``, as if
there were one server and that had died. So nobody needs another way of retrying or reconnecting than he has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection, parse_url
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from .errors import ImproperlyConfigured

#: What URLs of clusters begin with, -> whether TLS is meant.
SCHEMES = {"redis-cluster": False, "rediss-cluster": True}

DEFAULT_PORT = 6379

#: What a node has said of a slot is taken for true for so long (s). Who connects later asks anew: the node that has
#: owned it may hang, and its replica have been promoted.
FRESH = 1.0

#: How long (s) a node may take to say who owns what; one that is gone must not hold up the others.
ASKED_TIMEOUT = 1.0

#: By these words a node says that it does not serve the slot, or not now. Redis-py may have taken the word off the text
#: and made it a class, or not; that depends on its version.
ELSEWHERE = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY")
_CLASSES = (AskError, MovedError, TryAgainError, ClusterDownError, MasterDownError, ReadOnlyError)

#: What a script says that has emptied, and so removed, a key of a slot on its way. It may have done half of its work.
_GONE_MEANWHILE = "non local key"

#: Options of a URL, or of Kombu's transport, that connections take.
OPTIONS = frozenset(
    (
        "username",
        "password",
        "credential_provider",
        "client_name",
        "health_check_interval",
        "max_connections",
        "retry_on_timeout",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_keepalive_options",
        "socket_timeout",
    )
)


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_cluster_url(url: str) -> bool:
    """Whether *url* names a cluster."""
    return url.partition("://")[0] in SCHEMES


def slot_of(key: str) -> int:
    """The slot of a key."""
    return int(key_slot(key.encode()))


class Elsewhere(redis.ConnectionError):
    """The node does not serve the slot, or not now; nothing was done."""


class Cluster:
    """A cluster, and what its nodes have lately said of it.

    Safe for threads and across forks: it holds no connection and no lock, and whoever knows something older asks again.

    Args:
        nodes: some of its nodes; the others are learnt from them.
        options: of all connections, as redis-py takes them.
        tls: connect by TLS.
    """

    def __init__(self, nodes: Iterable[Address], options: Mapping[str, Any], *, tls: bool = False) -> None:
        self._seeds = tuple(nodes)
        self._nodes = self._seeds  # in the order in which they are asked
        self._options = dict(options)
        self._tls = tls
        self._owners: dict[int, tuple[Address, float]] = {}  # slot -> its owner, and when that was said (s, monotonic)

    @classmethod
    def from_url(cls, url: str, inherited: Mapping[str, Any] | None = None) -> tuple[Cluster, dict[str, str]]:
        """A cluster by its URL, ``redis-cluster://user:password@host:port,host:port/?option=value``.

        Args:
            inherited: options where the URL says nothing; those of no meaning here are left out.

        Returns:
            The cluster, and what the URL's query says beside the options of connections.

        Raises:
            ValueError: there can be no such cluster.
        """
        scheme, _, rest = url.partition("://")
        place, _, query = rest.partition("?")
        netloc, _, database = place.partition("/")
        if database not in ("", "0"):
            raise ValueError(f"a cluster has no database but 0, not {database!r}")
        credentials, _, hosts = netloc.rpartition("@")
        nodes = [_address(host) for host in hosts.split(",")]
        # Redis-py reads names, passwords and options, each of its own type.
        read = parse_url(f"rediss://{credentials}@{nodes[0]}?{query}")
        options = {name: value for name, value in (inherited or {}).items() if name in OPTIONS}
        tls = SCHEMES[scheme]
        options |= {name: value for name, value in read.items() if name in OPTIONS or (tls and _is_of_tls(name))}
        more = {name: text for name, text in parse_qsl(query) if not (name in OPTIONS or _is_of_tls(name))}
        return cls(nodes, options, tls=tls), more

    def __str__(self) -> str:
        scheme = next(scheme for scheme, tls in SCHEMES.items() if tls == self._tls)
        user = f"{self._options.get('username') or ''}:**@" if self._options.get("password") else ""
        return f"{scheme}://{user}{','.join(map(str, self._seeds))}"

    @property
    def nodes(self) -> tuple[Address, ...]:
        """Those that are known."""
        return self._nodes

    @property
    def options(self) -> dict[str, Any]:
        """What redis-py's own clients of a cluster take to connect as this does."""
        return {**self._options, "ssl": self._tls}

    def within(self, limits: Mapping[str, float]) -> Cluster:
        """The same cluster, over connections with these limits (``socket_timeout``, ``socket_connect_timeout``)."""
        return Cluster(self._seeds, {**self._options, **limits}, tls=self._tls)

    def limited(self, limits: Mapping[str, float]) -> Cluster:
        """The same cluster, with these limits where the options name none."""
        return Cluster(self._seeds, {**limits, **self._options}, tls=self._tls)

    def pool(self, slot: int) -> ConnectionPool:
        """A new pool of connections to whoever owns *slot*."""
        kind = SlotSSLConnection if self._tls else SlotConnection
        # Each version of redis-py reads one of the two.
        once_more: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 1, supported_errors=(Elsewhere,)),
            "retry_on_error": [Elsewhere],
        }
        return ConnectionPool(connection_class=kind, cluster=self, slot=slot, **self._options, **once_more)

    def owner(self, slot: int) -> Address:
        """The node that owns *slot*, as some node says now or has said a moment ago.

        Raises:
            redis.ConnectionError: no node can be reached, or none is said to own it.
            ImproperlyConfigured: that is no cluster.
        """
        known = self._owners.get(slot)
        if known is not None and monotonic() - known[1] < FRESH:
            return known[0]
        trouble: Exception | None = None
        for node in self._nodes:
            try:
                owners = self._ask(node)
            except (redis.RedisError, OSError) as error:
                if "cluster support disabled" in str(error):
                    raise ImproperlyConfigured(
                        f"{node} is a Redis, but no cluster: give delayq_store_url as redis:// …"
                    ) from None
                self._ask_last(node)
                trouble = error
                continue
            found = next((owner for first, last, owner, _ in owners if first <= slot <= last), None)
            if found is not None:
                others = [address for _, _, owner, replicas in owners for address in (owner, *replicas)]
                self._nodes = tuple(dict.fromkeys((node, *others, *self._seeds)))
                self.learn(slot, found)
                return found
            self._ask_last(node)
            trouble = redis.ConnectionError(f"{node} knows of no node that owns slot {slot}")
        if isinstance(trouble, redis.AuthenticationError):
            raise trouble
        raise redis.ConnectionError(f"no node of {self} tells who owns slot {slot}: {trouble}") from trouble

    def learn(self, slot: int, owner: Address) -> None:
        """Somebody has said who owns *slot*."""
        self._owners[slot] = owner, monotonic()

    def forget(self, slot: int) -> None:
        """Whoever was said to own *slot* does not serve it. Who has said so is asked last the next time."""
        self._owners.pop(slot, None)
        self._ask_last(self._nodes[0])

    def _ask_last(self, node: Address) -> None:
        self._nodes = (*(one for one in self._nodes if one != node), node)

    def _ask(self, node: Address) -> list[tuple[int, int, Address, list[Address]]]:
        """First and last slot, owner and replicas of each range."""
        limits = ("socket_timeout", "socket_connect_timeout")
        given = (self._options.get(name) for name in limits)
        timeouts = {name: min(limit or ASKED_TIMEOUT, ASKED_TIMEOUT) for name, limit in zip(limits, given, strict=True)}
        pool = ConnectionPool(
            connection_class=SSLConnection if self._tls else Connection,
            host=node.host,
            port=node.port,
            **{**self._options, **timeouts, "max_connections": 1},
        )
        try:
            # By two words: redis-py gives the reply as it is.
            reply: Any = redis.Redis(connection_pool=pool).execute_command("CLUSTER", "SLOTS")
        finally:
            pool.disconnect()
        return [
            (int(first), int(last), _node(owner, node), [_node(one, node) for one in replicas])
            for first, last, owner, *replicas in reply
        ]


class _Owned:
    """Mixed into a connection: it goes to the owner of a slot, whoever that is when it connects."""

    def __init__(self, *, cluster: Cluster, slot: int, **options: Any) -> None:
        self._cluster = cluster
        self._slot = slot
        super().__init__(**options)

    def _connect(self) -> Any:
        self.host, self.port = self._cluster.owner(self._slot)
        try:
            return super()._connect()  # type: ignore[misc]  # Connection's
        except OSError:
            self._cluster.forget(self._slot)
            raise

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]  # Connection's
        except ResponseError as error:
            text = str(error)
            word = text.partition(" ")[0]
            if not (isinstance(error, _CLASSES) or word in ELSEWHERE or _GONE_MEANWHILE in text):
                raise
            if isinstance(error, MovedError) or word == "MOVED":
                host, _, port = text.rpartition(" ")[2].rpartition(":")
                self._cluster.learn(self._slot, Address(host or self.host, int(port)))
            else:
                self._cluster.forget(self._slot)
            self.disconnect()  # type: ignore[attr-defined]  # Connection's
            kind = redis.ConnectionError if _GONE_MEANWHILE in text else Elsewhere
            raise kind(
                f"{Address(self.host, self.port)} does not serve slot {self._slot} of the cluster now: {text}"
            ) from error


class SlotConnection(_Owned, Connection):
    """A connection to the owner of a slot."""


class SlotSSLConnection(_Owned, SSLConnection):
    """The same, by TLS."""


def _address(text: str) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no host:port")
    return Address(parts.hostname, parts.port or DEFAULT_PORT)


def _node(said: Sequence[Any], asked: Address) -> Address:
    """A node as another has named it. One that does not know its own name is where it was reached."""
    host, port = said[0], said[1]
    name = host.decode() if isinstance(host, bytes) else host
    return Address(name if name and name != "?" else asked.host, int(port))


def _is_of_tls(name: str) -> bool:
    return name.startswith("ssl_")
