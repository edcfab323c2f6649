"""Puts many real-looking jobs into the store in bulk, much faster than publishing them one by one."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterable
from typing import Any

from celery_delayq.clock import SECOND_US
from celery_delayq.delivery import Delivery
from celery_delayq.job import Put
from celery_delayq.message import PUT_PROPERTY
from celery_delayq.store import Store

from .workers import Bench

#: About what the message of a task with one argument takes (bytes).
BODY_BYTES = 955

#: The queue whose jobs these are: Celery's default one.
QUEUE = "celery"

#: Jobs of one call of put.
BATCH = 500

DAY_US = 24 * 3600 * SECOND_US


class Backlog:
    """The store of one bench, with its default queue to be filled."""

    store: Store
    delivery: Delivery

    def __init__(self, bench: Bench) -> None:
        assert bench.app.delayq is not None, "native Celery has no store"
        self.store = bench.app.delayq.connect()
        self._id = str(uuid.uuid4()).encode()
        self._body = self._sample(bench)

    def _sample(self, bench: Bench) -> bytes:
        """A real message, trimmed or padded to the size that all bodies have here."""
        keys = self.store.keys
        bench.task("stamp").apply_async((0.0,), countdown=3600, task_id=self._id.decode())
        held: Any = self.store.client.hget(keys.jobs(QUEUE), self._id)
        self.delivery = Delivery.loads(self.store.client.hget(keys.topics, QUEUE) or b"")
        self.store.delete(QUEUE, [self._id])
        message = json.loads(held)
        del message["properties"]["reply_to"], message["properties"][PUT_PROPERTY]  # for a size that holds for ever
        message["headers"]["origin"] = ""
        message["headers"]["origin"] = "x" * (BODY_BYTES - len(json.dumps(message)))
        body = json.dumps(message).encode()
        assert len(body) == BODY_BYTES, f"the bare message has {len(body)} bytes already"
        return body

    def job(self, at_us: int) -> Put:
        """A new job, due then."""
        id = str(uuid.uuid4()).encode()
        return Put(QUEUE, id, self._body.replace(self._id, id), at_us=at_us)

    def put(self, dues_us: Iterable[int]) -> None:
        """Put a new job for each due time."""
        jobs: list[Put] = []
        for due_us in dues_us:
            jobs.append(self.job(due_us))
            if len(jobs) == BATCH:
                self.store.put(jobs, {QUEUE: self.delivery})
                jobs = []
        if jobs:
            self.store.put(jobs, {QUEUE: self.delivery})

    def fill(self, count: int) -> None:
        """Put *count* jobs that are due between one and thirty days from now, in no order."""
        now_us = int(time.time() * SECOND_US)
        dice = random.Random(count)
        self.put(now_us + dice.randrange(DAY_US, 30 * DAY_US) for _ in range(count))

    def waiting(self) -> int:
        """How many jobs wait."""
        return int(self.store.client.zcard(self.store.keys.schedule(QUEUE)))
