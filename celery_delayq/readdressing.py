"""A message that a worker was given, as the job of a broker elsewhere: it goes again to where it came from.

To that queue by name, and not to the exchange that it was once sent to: if that leads to several queues, each of
them has its own copy, and each copy would come to all of them again.
"""

from __future__ import annotations

import re
from typing import Any

from kombu import Message
from kombu.compression import compress
from kombu.transport.virtual import Channel as VirtualChannel

from . import broker
from .message import envelope, without_eta
from .routing import is_broadcast

#: Headers that a broker adds on the way. What goes out anew must not have them: RabbitMQ takes a message for one that
#: runs in circles, and a second delivery would not be known again.
_ADDED = re.compile(r"redelivered|x-(death|(first|last)-death-.*|delivery-count|acquired-count)")

#: Properties that are arguments of their own, belong to one delivery, or name a user whom no other may name.
_OF_ONE_WAY = (
    *("application_headers", "content_type", "content_encoding", "priority", "user_id"),
    *("body_encoding", "delivery_info", "delivery_tag"),
)


def source_of(message: Message, consumer: Any) -> str | None:
    """The queue that a delivered message came from, and can go to again.

    Args:
        consumer: the Kombu consumer that received it, if it is there still.

    Returns:
        None if that cannot be told, or if it is a queue of one worker alone, as those of broadcasts are.
    """
    channel = message.channel
    if consumer is None:  # it is gone
        return None
    if isinstance(channel, VirtualChannel):
        name = broker.source_of(message)
    elif channel is consumer.channel:
        tag = message.delivery_info.get("consumer_tag")
        name = next((name for name, own in consumer._active_tags.items() if own == tag), None)
    else:
        name = None
    queue = next((queue for queue in consumer.queues if queue.name == name), None)
    if queue is None or queue.auto_delete or queue.exclusive or is_broadcast(queue):
        return None
    return name


def readdressed(message: Message, id: str, queue: str) -> bytes:
    """A delivered message as :func:`~celery_delayq.message.envelope` writes one, without its eta, to that queue.

    Twice the same from two deliveries of the same message: so that it is put once, if the first could not be
    acknowledged any more.
    """
    headers = _sorted({name: value for name, value in message.headers.items() if not _ADDED.fullmatch(name)})
    given = {name: value for name, value in message.properties.items() if name not in _OF_ONE_WAY}
    headers, properties = without_eta(headers, given)
    encoding, body = message.content_encoding or "utf-8", message.body
    if isinstance(body, str):  # as py-amqp reads text
        body = body.encode(encoding)
    if headers.get("compression"):  # undone by Kombu when it came
        body, _ = compress(body, headers["compression"])
    priority = message.properties.get("priority")
    return envelope(body, priority, message.content_type, encoding, headers, properties, "", queue, tag=id)


def _sorted(value: Any) -> Any:
    """The same tables, in alphabetical order: RabbitMQ may have changed it when it delivers again."""
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(one) for one in value] if isinstance(value, (list, tuple)) else value
