"""The broker's Redis as Kombu knows it: which queues a message goes to, under which keys, over which connections.

With :mod:`~celery_delayq.unacked` the only module that reads Kombu's Redis transport. Connections come from Kombu's own
pools, so that TLS, Sentinel, ACL users, credential providers, sockets and database numbers need no settings of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import redis
from kombu import Message
from kombu.exceptions import OperationalError
from kombu.transport.redis import Channel, SentinelTransport, Transport
from kombu.transport.virtual import Channel as VirtualChannel
from kombu.transport.virtual import QoS as VirtualQoS
from kombu.utils.json import JSONEncoder
from redis.exceptions import OutOfMemoryError

from . import failover
from .delivery import Delivery
from .job import Adopted, OnConflict, Origin, Put
from .keeping import Keeping, can_keep
from .keys import Keys
from .liveness import Liveness
from .store import Store


@dataclass
class _Link:
    """What we know of a channel: its store (making a Redis client costs more than a put), those of further shards, and
    its deliveries.

    Attributes:
        pool: the channel's.
        keeping: what stands for it where we put often.
        checked: the version of the key space is known to be one that we know.
    """

    pool: redis.ConnectionPool
    keeping: Keeping | None
    store: Store
    shards: dict[int, Store] = field(default_factory=dict)
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    checked: bool = False

    def check_version(self) -> None:
        """Raise :class:`~celery_delayq.errors.Outdated` if we don't know the version of the key space; ask once."""
        if not self.checked:
            self.store.check_version()
            self.checked = True


#: As Kombu's ``dumps``, which makes one for each message: that takes longer than to encode it.
dumps = JSONEncoder().encode

#: Weak, and no value refers to its channel: a closed channel takes its link along.
_links: WeakKeyDictionary[Channel, _Link] = WeakKeyDictionary()


def is_redis(channel: object) -> bool:
    """Whether *channel* belongs to Kombu's Redis transport, Sentinel included."""
    return isinstance(channel, Channel)


def goes_to_redis(connection: Any) -> bool:
    """Whether *connection*, a Kombu connection, goes to a Redis; without opening it."""
    return issubclass(connection.get_transport_cls(), Transport)


def has_sentinels(connection: Any) -> bool:
    """Whether *connection*, a Kombu connection, asks Sentinels for its Redis; without opening it."""
    return issubclass(connection.get_transport_cls(), SentinelTransport)


def quick_to_find_a_master(options: Mapping[str, Any]) -> dict[str, Any]:
    """Transport options by which a Sentinel that is gone holds up nobody, unless *options* say how to ask one.

    By default redis-py tries one four times before it asks the next, for seven seconds, and for ever one whose machine
    has vanished; and a machine that goes often takes a master and a Sentinel with it.
    """
    return {**options, "sentinel_kwargs": {**failover.SENTINEL_OPTIONS, **(options.get("sentinel_kwargs") or {})}}


def asking_often(connection: Any) -> Any:
    """*connection*, a Kombu connection, with pauses of two seconds at most where a worker tries to open it.

    Kombu's grow to thirty, which would be for how long a worker notices nothing of a new master. It gives up as late.
    """
    stock = connection.ensure_connection

    def ensure_connection(errback: Any = None, max_retries: int | None = None, **options: Any) -> Any:
        often = {"interval_start": 1, "interval_step": 1, "interval_max": 2}
        return stock(errback, max_retries and 15 * max_retries, **{**often, **options})

    connection.ensure_connection = ensure_connection
    return connection


def url_of(connection: Any) -> str:
    """Where *connection*, a Kombu connection, goes; a password is masked."""
    url: str = connection.as_uri()
    return url if connection.password else url.replace(":**@", "")  # it masks one that is not there, too


def visibility_timeout(connection: Any) -> float | None:
    """Seconds after which a message that nobody acknowledged is delivered again; None: not by a Redis of Kombu's."""
    if not goes_to_redis(connection):
        return None
    return float((connection.transport_options or {}).get("visibility_timeout", Channel.visibility_timeout))


def _link(channel: Channel, prefix: str, *, leases: bool = False) -> _Link:
    """Ours to the channel's own Redis database, under *prefix*, on the channel's connections.

    Waits while Sentinel promotes a replica: what would be written meanwhile would be lost.

    Args:
        leases: the store is for jobs that are relayed; in a process it is the one or the other.
    """
    pool = channel.pool
    watch = failover.follow(pool)
    if watch is not None:
        watch.settle()
    link = _links.get(channel)
    # After a fork, and after a lost connection, the channel has another pool.
    if link is None or link.pool is not pool or link.store.keys.prefix != prefix:
        keeping = Keeping(pool) if can_keep(pool) else None
        # Not the channel's client: with a global_keyprefix that one prefixes the first key of a script only.
        stands: Any = keeping or pool
        client = redis.Redis(connection_pool=stands)
        database = int(pool.connection_kwargs.get("db") or 0)
        if watch is not None:
            connection = channel.connection.client
            connection.transport_options = quick_to_find_a_master(connection.transport_options)
        store = Store(client, Keys(prefix, channel.global_keyprefix, database), leases=leases)
        link = _links[channel] = _Link(pool, keeping, store)
    return link


def give_back(channel: object) -> None:
    """Leave the connection that we keep of that channel to Kombu, before it needs one."""
    link = _links.get(channel) if isinstance(channel, Channel) else None
    if link is not None and link.keeping is not None:
        link.keeping.give_back()


def queues_of(channel: VirtualChannel, exchange: str, routing_key: str) -> list[str] | None:
    """The queues that Kombu would push a message to, by the bindings of this moment. None: it would be broadcast."""
    if not exchange:
        return [routing_key]
    if channel.typeof(exchange).type == "fanout":
        return None
    return [queue for queue in channel._lookup(exchange, routing_key) if queue]


def _delivery(channel: Channel, link: _Link, queue: str) -> Delivery:
    """Where Kombu's consumers pop the messages of *queue*."""
    # x-expires: kombu 5.7 keeps it here, by queue; earlier ones have no queues that expire.
    expires_ms: int | None = (getattr(channel, "_expires", None) or {}).get(queue)
    delivery = link.deliveries.get(queue)
    if delivery is None or delivery.expires_ms != expires_ms:
        steps = tuple(channel.priority_steps)
        lists = tuple(f"{channel.global_keyprefix}{channel._q_for_pri(queue, step)}" for step in steps)
        delivery = link.deliveries[queue] = Delivery(steps, lists, expires_ms)
    return delivery


def put(
    channel: Channel,
    prefix: str,
    jobs: Sequence[Put],
    on_conflict: OnConflict,
    liveness: Liveness | None = None,
    replicas: int = 0,
) -> int:
    """Store *jobs*, whose topics are queues of this channel, in its Redis; returns and raises what
    :meth:`~celery_delayq.store.Store.put` does.

    "retried" always: their bytes hold a delivery tag that is given once, so whoever holds them is this publish, sent
    again by Kombu or by redis-py.

    Raises:
        kombu.exceptions.OperationalError: Redis is full.
    """
    link = _link(channel, prefix)
    link.check_version()
    deliveries = {job.topic: _delivery(channel, link, job.topic) for job in jobs}
    try:
        return link.store.put(
            jobs, deliveries, on_conflict, origin=Origin.RETRIED, liveness=liveness, replicas=replicas
        )
    except OutOfMemoryError as error:
        raise full(error) from error


def push(channel: Channel, prefix: str, jobs: Iterable[Put]) -> None:
    """Push the bodies of *jobs* to this channel's queues as Kombu pushes messages: all, or none.

    Raises:
        kombu.exceptions.OperationalError: Redis is full.
    """
    link = _link(channel, prefix)
    by_list: dict[str, list[bytes]] = {}
    expiring: dict[str, int] = {}
    for job in jobs:
        delivery = _delivery(channel, link, job.topic)
        by_list.setdefault(delivery.list_of(job.step), []).append(job.body)
        if delivery.expires_ms is not None:
            expiring.update(dict.fromkeys(delivery.lists, delivery.expires_ms))
    try:
        with link.store.client.pipeline(transaction=True) as pipe:
            for key, bodies in by_list.items():
                pipe.lpush(key, *bodies)
            for key, expires_ms in expiring.items():
                pipe.pexpire(key, expires_ms)
            pipe.execute()
    except OutOfMemoryError as error:
        raise full(error) from error


def declare(producer: Any, channel: Channel, entities: Iterable[Any]) -> None:
    """Declare what a message needs and this connection has not declared yet.

    Kombu's ``maybe_declare`` says the same of a known entity, after binding a copy of it.
    """
    known = channel.connection.client.declared_entities if channel.connection else ()
    for entity in entities:
        if not entity.can_cache_declaration or hash(entity) not in known:
            try:
                producer.maybe_declare(entity)
            except OutOfMemoryError as error:
                raise full(error) from error


def full(error: OutOfMemoryError) -> OperationalError:
    """What to raise if Redis is full."""
    return OperationalError(f"Redis is full and keeps nothing more ({error}); raise its maxmemory or let tasks drain")


def concerns_all(error: BaseException) -> bool:
    """Whether Redis would say the same of any message: it is full, read-only, loading …; not of one key's type."""
    return isinstance(error, redis.ResponseError) and "WRONGTYPE" not in str(error)  # a pipeline says more before it


def envelope(
    channel: Channel,
    body: Any,
    priority: int,
    content_type: str,
    content_encoding: str,
    headers: dict[str, Any],
    properties: dict[str, Any],
    exchange: str,
    routing_key: str,
) -> tuple[bytes, int]:
    """The message as Kombu would push it, with a delivery tag of its own; and its priority step."""
    message = channel.prepare_message(body, priority, content_type, content_encoding, headers, properties)
    channel._inplace_augment_message(message, exchange, routing_key)
    step = channel.priority(channel._get_message_priority(message, reverse=False))
    return dumps(message).encode(), step


def source_of(message: Message) -> str | None:
    """The queue that a message of Redis, or of another of Kombu's virtual transports, came from. None: that cannot be
    told, since not one queue alone is bound to where it was sent; or nobody will acknowledge it.

    (If more are bound, each message has the same delivery tag, and what becomes of one must not touch the others.)
    """
    channel, delivery = message.channel, message.delivery_info
    if not isinstance(channel, VirtualChannel) or message.delivery_tag not in channel.qos._delivered:
        return None
    queues = set(queues_of(channel, delivery.get("exchange") or "", delivery.get("routing_key") or "") or ())
    return queues.pop() if len(queues) == 1 and not queues.isdisjoint(channel._active_queues) else None


def envelope_again(message: Message, headers: dict[str, Any], properties: dict[str, Any]) -> tuple[bytes, int]:
    """A delivered message as Kombu would push it with other headers and properties, its body untouched, and with a
    delivery tag of its own: whoever else was given the old one may still acknowledge that. And its priority step.
    """
    channel = message.channel
    raw = {**message._raw, "headers": headers}
    raw["properties"] = {**properties, "delivery_tag": channel._next_delivery_tag()}
    return dumps(raw).encode(), channel.priority(channel._get_message_priority(raw, reverse=False))


def adopt(
    message: Message, prefix: str, job: Put, on_conflict: OnConflict, least_us: int, silence_us: int | None
) -> Adopted:
    """Store *job* and acknowledge the delivery of *message*, in one script; see
    :meth:`~celery_delayq.store.Store.adopt`.
    """
    channel = message.channel
    link = _link(channel, prefix)
    link.check_version()
    try:
        return link.store.adopt(
            job,
            _delivery(channel, link, job.topic),
            on_conflict,
            message.delivery_tag if channel.ack_emulation else "",
            (
                f"{channel.global_keyprefix}{channel.unacked_key}",
                f"{channel.global_keyprefix}{channel.unacked_index_key}",
            ),
            least_us=least_us,
            silence_us=silence_us,
        )
    finally:
        give_back(channel)


def forget(message: Message) -> None:
    """Count a delivery no more that is somebody else's now. Not acknowledge it: that would be his."""
    VirtualQoS.ack(message.channel.qos, message.delivery_tag)


def connect(connection: Any) -> Channel:
    """Open *connection*, a Kombu connection that is not shared; its channel.

    Tries each of the broker's alternative URLs once, without a pause (Kombu's own is 2 seconds, in which nobody could
    stop us); raises whatever the last of them raised.
    """
    connection.ensure_connection(
        max_retries=max(len(connection.alt) - 1, 0),
        interval_start=0,
        interval_step=0,
        reraise_as_library_errors=False,
    )
    channel = connection.channel()
    failover.follow(channel.pool, early=True)
    return channel


def own_stores(channel: Channel, prefix: str, *, leases: bool = False) -> Callable[[int], Store]:
    """Gives the store of each shard on one connection of its own from that channel's pool, for one thread. They are
    closed with the channel's connection, which also keeps the channel: that one forgets its sockets in the children of
    a fork.
    """
    # One thread, one socket: no time goes into getting it from the pool and giving it back.
    client = redis.Redis(connection_pool=channel.pool, single_connection_client=True)
    keys, owner = _link(channel, prefix).store.keys, channel.connection.client
    return cache(lambda shard: Store(client, replace(keys, shard=shard), owner, leases=leases))


def follow_master(connection: Any) -> None:
    """Have all channels of *connection*, a Kombu connection, leave its Redis master when Sentinel has another one."""
    if is_redis(connection.default_channel):
        for channel in connection.connection.channels:
            failover.follow(channel.pool)
            failover.follow(channel.async_pool)


def store_of(channel: Channel, prefix: str, shard: int = 0, *, leases: bool = False) -> Store:
    """The store on that channel's own connections, to be used as long as the channel is."""
    link = _link(channel, prefix, leases=leases)
    if not shard:
        return link.store
    if shard not in link.shards:
        link.shards[shard] = Store(link.store.client, replace(link.store.keys, shard=shard), leases=leases)
    return link.shards[shard]


def deliveries_of(channel: Channel, prefix: str, queues: Iterable[str]) -> dict[str, Delivery]:
    """Where Kombu's consumers pop the messages of each queue."""
    link = _link(channel, prefix)
    return {queue: _delivery(channel, link, queue) for queue in queues}
