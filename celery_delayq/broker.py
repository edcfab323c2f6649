"""The broker's Redis as Kombu knows it: which queues a message goes to, under which keys, over which connections.

The only module that reads Kombu's Redis transport. Connections come from Kombu's own pools, so that TLS, Sentinel,
ACL users, credential providers, sockets and database numbers need no settings of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import redis
from kombu import Message
from kombu.exceptions import OperationalError
from kombu.transport.redis import Channel, Transport
from kombu.transport.virtual import Channel as VirtualChannel
from kombu.transport.virtual import QoS as VirtualQoS
from kombu.utils.json import dumps
from redis.exceptions import OutOfMemoryError

from .delivery import Delivery
from .job import Adopted, OnConflict, Origin, Put
from .keys import Keys
from .liveness import Liveness
from .store import Store


@dataclass
class _Link:
    """What we know of a channel: its store (making a Redis client costs more than a put), and its deliveries."""

    store: Store
    deliveries: dict[str, Delivery] = field(default_factory=dict)


#: Weak, and no value refers to its channel: a closed channel takes its link along.
_links: WeakKeyDictionary[Channel, _Link] = WeakKeyDictionary()


def is_redis(channel: object) -> bool:
    """Whether *channel* belongs to Kombu's Redis transport, Sentinel included."""
    return isinstance(channel, Channel)


def goes_to_redis(connection: Any) -> bool:
    """Whether *connection*, a Kombu connection, goes to a Redis; without opening it."""
    return issubclass(connection.get_transport_cls(), Transport)


def url_of(connection: Any) -> str:
    """Where *connection*, a Kombu connection, goes; a password is masked."""
    url: str = connection.as_uri()
    return url if connection.password else url.replace(":**@", "")  # it masks one that is not there, too


def visibility_timeout(connection: Any) -> float | None:
    """Seconds after which a message that nobody acknowledged is delivered again; None: not by a Redis of Kombu's."""
    if not goes_to_redis(connection):
        return None
    return float((connection.transport_options or {}).get("visibility_timeout", Channel.visibility_timeout))


def _link(channel: Channel, prefix: str) -> _Link:
    """Ours to the channel's own Redis database, under *prefix*, on the channel's connections."""
    pool = channel.pool
    link = _links.get(channel)
    # After a fork, and after a lost connection, the channel has another pool.
    if link is None or link.store.client.connection_pool is not pool or link.store.keys.prefix != prefix:
        # Not the channel's client: with a global_keyprefix that one prefixes the first key of a script only.
        client = redis.Redis(connection_pool=pool)
        database = int(pool.connection_kwargs.get("db") or 0)
        link = _links[channel] = _Link(Store(client, Keys(prefix, channel.global_keyprefix, database)))
    return link


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
    channel: Channel, prefix: str, jobs: Sequence[Put], on_conflict: OnConflict, liveness: Liveness | None = None
) -> int:
    """Store *jobs* of this channel's queues; returns and raises what :meth:`~celery_delayq.store.Store.put` does.

    "retried" always: their bytes hold a delivery tag that is given once, so whoever holds them is this publish, sent
    again by Kombu or by redis-py.

    Raises:
        kombu.exceptions.OperationalError: Redis is full.
    """
    link = _link(channel, prefix)
    deliveries = {job.topic: _delivery(channel, link, job.topic) for job in jobs}
    try:
        return link.store.put(jobs, deliveries, on_conflict, origin=Origin.RETRIED, liveness=liveness)
    except OutOfMemoryError as error:
        raise _full(error) from error


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
        raise _full(error) from error


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
                raise _full(error) from error


def _full(error: OutOfMemoryError) -> OperationalError:
    return OperationalError(f"Redis is full and keeps nothing more ({error}); raise its maxmemory or let tasks drain")


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
    """The queue that a delivered message came from. None: that cannot be told, since not one queue alone is bound to
    where it was sent; or nobody will acknowledge it; or the broker is not Redis.

    (If more are bound, each message has the same delivery tag, and what becomes of one must not touch the others.)
    """
    channel, delivery = message.channel, message.delivery_info
    if not is_redis(channel) or message.delivery_tag not in channel.qos._delivered:
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
    return link.store.adopt(
        job,
        _delivery(channel, link, job.topic),
        on_conflict,
        message.delivery_tag if channel.ack_emulation else "",
        (f"{channel.global_keyprefix}{channel.unacked_key}", f"{channel.global_keyprefix}{channel.unacked_index_key}"),
        least_us=least_us,
        silence_us=silence_us,
    )


def forget(message: Message) -> None:
    """Count a delivery no more that is somebody else's now. Not acknowledge it: that would be his."""
    VirtualQoS.ack(message.channel.qos, message.delivery_tag)


def connect(connection: Any, prefix: str) -> Store:
    """Open a store on connections of its own: *connection*, a Kombu connection, is not shared, and closed with it.

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
    # One thread, one socket: no time goes into getting it from the pool and giving it back.
    client = redis.Redis(connection_pool=channel.pool, single_connection_client=True)
    # The connection also keeps the channel, which forgets its sockets in the children of a fork.
    return Store(client, _link(channel, prefix).store.keys, owner=connection)


def store_of(channel: Channel, prefix: str) -> Store:
    """The store on that channel's own connections, to be used as long as the channel is."""
    return _link(channel, prefix).store


def deliveries_of(channel: Channel, prefix: str, queues: Iterable[str]) -> dict[str, Delivery]:
    """Where Kombu's consumers pop the messages of each queue."""
    link = _link(channel, prefix)
    return {queue: _delivery(channel, link, queue) for queue in queues}
