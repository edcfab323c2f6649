"""Stock Celery's own messages, made and sent ahead of time, so that what is measured does not wait for their making."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterable
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from .workers import Bench

#: Where a message is published that is to be taken from there again: a queue that nobody reads.
SHELF = "shelf"

#: The list of Celery's default queue.
READY = "celery"

#: Messages of one pipeline.
BATCH = 500


class Mould:
    """Makes messages that differ from one that ``apply_async`` has published in nothing but what is asked for."""

    def __init__(self, bench: Bench, task: str) -> None:
        bench.task(task).apply_async((0.0,), queue=SHELF)
        self._envelope: dict[str, Any] = json.loads(bench.broker.lpop(SHELF) or b"")
        self._embedded = json.loads(base64.b64decode(self._envelope["body"]))[2]

    def message(self, argument: float = 0.0, due: float | None = None) -> bytes:
        """A new message, under an id of its own.

        Args:
            argument: what the task is called with.
            due: its eta (s since the epoch); None: it has none.
        """
        id = str(uuid.uuid4())
        envelope = self._envelope
        eta = None if due is None else datetime.fromtimestamp(due, timezone.utc).isoformat()
        headers = {**envelope["headers"], "id": id, "root_id": id, "eta": eta, "argsrepr": repr((argument,))}
        properties = {**envelope["properties"], "correlation_id": id, "delivery_tag": str(uuid.uuid4())}
        properties["delivery_info"] = {"exchange": "", "routing_key": READY}
        body = base64.b64encode(json.dumps([[argument], {}, self._embedded]).encode()).decode()
        return json.dumps({**envelope, "body": body, "headers": headers, "properties": properties}).encode()


def send(bench: Bench, messages: Iterable[bytes]) -> None:
    """Have a worker of Celery's default queue find them, in this order."""
    coming = iter(messages)
    while batch := list(islice(coming, BATCH)):
        with bench.broker.pipeline(transaction=False) as pipe:
            for message in batch:
                pipe.lpush(READY, message)
            pipe.execute()
