"""What we change in a message, and how a task gets it back: the time that it was asked for.

The worker holds every message that has an ``eta`` header, even a past one, and counts it against no prefetch limit. So
what waits has none; the header's value stands in a property until a worker has received the message. AMQP knows no
properties but its own: what is handed over to such a broker has it in a header for the way.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any, NamedTuple

from celery import uuid
from celery.utils.time import maybe_iso8601
from kombu import Queue
from kombu.transport.virtual import Base64
from kombu.transport.virtual import Channel as VirtualChannel
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps, loads

from .clock import text_of, to_us
from .errors import shortened

#: The property that keeps the ``eta`` header's value. A property and not a header: Celery copies headers that it does
#: not know into the task's next retry. (For AMQP it is one, and every message that goes out is rid of it.)
DUE_PROPERTY = "delayq_due"

#: The property that tells when the message was put, by the producer's clock (us since the epoch).
PUT_PROPERTY = "delayq_put"

#: Finds the task's name in a message as it is stored, for Lua and for Python alike; some languages write JSON without
#: blanks. Neither a body in base64 nor a string inside of the JSON, whose quotes are escaped, can hold what it wants.
TASK_PATTERN = rb'"task": ?"([^"]*)"'


def read_eta(eta: object) -> datetime:
    """An ``eta`` as Celery's worker reads it: ISO 8601; without an offset it is UTC.

    Raises:
        ValueError: no such time.
    """
    if isinstance(eta, datetime):
        moment = eta
    else:
        text = str(eta)
        try:
            moment = datetime.fromisoformat(text)  # what Celery writes, and much faster than a parser of all ISO 8601
        except ValueError:
            try:
                moment = maybe_iso8601(text)
            except ValueError:
                raise ValueError(f"eta must be a datetime or ISO 8601, not {shortened(eta)}") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def without_eta(
    headers: dict[str, Any], properties: dict[str, Any], put_us: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Headers and properties for what waits: the ``eta`` moved from the ones to the others, and when it was put beside
    it, if that is to be told. The given ones stay.
    """
    eta, reply_to = headers["eta"], properties.get("reply_to")
    return (
        {**headers, "eta": None},
        {
            **properties,
            "reply_to": reply_to.name if isinstance(reply_to, Queue) else reply_to,
            DUE_PROPERTY: eta.isoformat() if isinstance(eta, datetime) else eta,
            **({} if put_us is None else {PUT_PROPERTY: put_us}),
        },
    )


def task_in(body: bytes) -> str | None:
    """The name of the task in a message as it is stored, without reading all of it; None if there is none."""
    found = re.search(TASK_PATTERN, body)
    return read_name(found[1]) if found else None


def read_name(text: bytes) -> str | None:
    """What :data:`TASK_PATTERN` has found, as it was before JSON; None if that was nothing."""
    try:
        name = json.loads(b'"%b"' % text)
    except ValueError:  # a quote in the name
        return None
    return name or None


def with_eta(body: bytes, due_us: int | None = None) -> bytes:
    """What waits as Celery would have sent it: what :func:`without_eta` has done, undone.

    Args:
        due_us: when it is due. If that is another time than it was asked for, since it was moved, the ``eta`` says it.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is no such message.
    """
    message = json.loads(body)
    headers, properties = message["headers"], message["properties"]
    asked = properties.pop(DUE_PROPERTY, None)
    properties.pop(PUT_PROPERTY, None)
    # Jobs of one due stand up to 999 us apart.
    moved = due_us is not None and (asked is None or abs(due_us - to_us(read_eta(asked))) > 999)
    headers["eta"] = text_of(due_us) if moved and due_us is not None else asked
    return json.dumps(message).encode()


def envelope(
    body: str | bytes,
    priority: int | None,
    content_type: str,
    content_encoding: str,
    headers: dict[str, Any],
    properties: dict[str, Any],
    exchange: str,
    routing_key: str,
    tag: str | None = None,
) -> bytes:
    """A message as the job of a broker elsewhere, whichever: as Kombu's virtual transports write one.

    Args:
        tag: what tells two messages of the same content apart; by default something new.
    """
    message = {
        "body": encode_body(body),
        "content-encoding": content_encoding,
        "content-type": content_type,
        "headers": headers,
        "properties": {
            **properties,
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": tag or uuid(),
            "delivery_info": {"exchange": exchange, "routing_key": routing_key},
        },
    }
    text: str = dumps(message)
    return text.encode()


def encode_body(body: str | bytes) -> str:
    """A body as :func:`envelope` writes it."""
    encoded: str = Base64().encode(str_to_bytes(body))
    return encoded


class Outgoing(NamedTuple):
    """A message that has waited, as it goes to its broker.

    Attributes:
        id: the task's.
        options: what else ``Producer.publish`` takes.
    """

    id: str
    body: bytes
    exchange: str
    routing_key: str
    options: dict[str, Any]


def outgoing(envelope: bytes, now: datetime, *, keeps_properties: bool) -> Outgoing:
    """Open what :func:`envelope` or Kombu's Redis transport wrote.

    Args:
        now: as the producer of a stock message would read it: the rest of a task's ``expires`` becomes the message's
            ``expiration``. A task that has expired gets none, so that a worker receives it and marks it REVOKED; a
            broker would drop it without a word.
        keeps_properties: whether the broker keeps properties that it does not know; else the due time is a header.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is no such message.
    """
    message = loads(envelope)
    headers, properties = dict(message["headers"]), dict(message["properties"])
    target = properties.pop("delivery_info")
    encoding = properties.pop("body_encoding", None)
    body = VirtualChannel.codecs[encoding].decode(message["body"]) if encoding else message["body"]
    properties.pop("delivery_tag", None)
    if not keeps_properties:
        properties.pop(PUT_PROPERTY, None)
        due = properties.pop(DUE_PROPERTY, None)
        if due is not None:
            headers[DUE_PROPERTY] = due
    expiration = properties.pop("expiration", None)
    if headers.get("expires"):
        left = (read_eta(headers["expires"]) - now).total_seconds()
        expiration = left if left > 0 else None
    elif expiration is not None:  # of the message alone: it counts from now on
        expiration = (int(expiration) + 0.5) / 1000  # ms; half of one, so that Kombu does not round it down
    return Outgoing(
        str(headers["id"]),
        str_to_bytes(body),
        target["exchange"],
        target["routing_key"],
        {
            **properties,
            "headers": headers,
            "content_type": message["content-type"],
            "content_encoding": message["content-encoding"],
            "expiration": expiration,
        },
    )


def without_due(headers: dict[str, Any]) -> dict[str, Any]:
    """Headers for a message that goes out: without what the message of the running task had for its way only, and a
    retry would inherit.
    """
    return {name: value for name, value in headers.items() if name != DUE_PROPERTY}


def restore_eta(request: Any = None, **_: Any) -> None:
    """Give a received task its ``request.eta`` again. A receiver of Celery's signal ``task_received``.

    The worker has read the header by then; what is set here only the task will see.
    """
    fields = request.request_dict
    properties = fields.get("properties") or {}
    asked = fields.pop(DUE_PROPERTY, None)
    if asked is not None:
        fields["properties"] = properties = {**properties, DUE_PROPERTY: asked}
    asked = properties.get(DUE_PROPERTY)
    if asked is not None and fields.get("eta") is None:
        fields["eta"] = asked


def scheduled_for(request: Any) -> datetime | None:
    """The time that a task was asked for when it was sent, aware and in UTC; None if it was not delayed.

    Args:
        request: ``task.request``.
    """
    asked = (getattr(request, "properties", None) or {}).get(DUE_PROPERTY) or getattr(request, "eta", None)
    return read_eta(asked).astimezone(timezone.utc) if asked else None
