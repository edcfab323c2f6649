"""Where a message that is to be relayed goes, as far as that can be known without asking the broker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from kombu import Queue
from kombu.transport.virtual.exchange import TopicExchange

_topics = TopicExchange(None)


class Route(NamedTuple):
    """What a message is published to."""

    exchange: str
    routing_key: str


def topic_of(route: Route, routed: Iterable[Queue], known: Iterable[Queue]) -> str | None:
    """The topic for messages of that route: the queue that Celery routed to, else exchange and routing key.

    Args:
        routed: what Celery routed to; it may have been sent elsewhere after that.
        known: all queues of the app.

    Returns:
        None if it is a broadcast, for no queue of which we could know.
    """
    if not route.exchange:
        return route.routing_key
    bindings = [(queue, *binding) for queue in routed for binding in _bindings(queue)]
    for queue, exchange, routing_key in bindings:
        if exchange.name == route.exchange and exchange.type != "fanout" and _fits(exchange, routing_key, route):
            return str(queue.name)
    for queue in (*routed, *known):
        if any(exchange.name == route.exchange and exchange.type == "fanout" for exchange, _ in _bindings(queue)):
            return None
    return f"{route.exchange}/{route.routing_key}"


def is_broadcast(queue: Queue) -> bool:
    """Whether what comes to that queue comes to others, too, whatever its routing key."""
    return any(exchange.type == "fanout" for exchange, _ in _bindings(queue))


def _bindings(queue: Queue) -> list[tuple[Any, str]]:
    own = [(queue.exchange, queue.routing_key or "")] if queue.exchange else []
    return own + [(binding.exchange, binding.routing_key or "") for binding in queue.bindings or ()]


def _fits(exchange: Any, routing_key: str, route: Route) -> bool:
    if exchange.type == "topic":
        return bool(_topics._match(_topics.key_to_pattern(routing_key), route.routing_key))
    return routing_key == route.routing_key
