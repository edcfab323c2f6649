"""What a batch costs that is reserved and acked, against one that is dispatched.

Batches of a thousand bodies of 955 bytes, alternately. Twice measured: by the caller's clock, who gets all bodies when
he reserves and none when he dispatches; and by Redis's own (``INFO commandstats``), in which nothing but the scripts
counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from celery_delayq.clock import SECOND_US
from celery_delayq.delivery import Delivery
from celery_delayq.job import Put
from celery_delayq.keys import Keys
from celery_delayq.store import Store

from .conditions import Conditions
from .report import Results, Row, Spread

BATCH = 1000
BODY = b"x" * 955
QUEUE = Delivery.plain("q")


def _fill(store: Store) -> None:
    store.client.flushall()
    now_us = store.now_us()
    store.put([Put("q", f"{number:032d}", BODY, now_us - BATCH + number) for number in range(BATCH)], {"q": QUEUE})
    time.sleep(0.002)  # what ties is due up to a millisecond later


def _dispatch(store: Store) -> None:
    assert store.dispatch("q", QUEUE, BATCH).moved == BATCH


def _reserve_and_ack(store: Store) -> None:
    jobs = store.reserve("q", BATCH, 60 * SECOND_US).jobs
    assert len(jobs) == BATCH
    assert all(store.ack("q", jobs))


def _measured(store: Store, work: Callable[[Store], None]) -> tuple[float, float]:
    """What *work* takes of a full batch (ms): by the caller's clock, by Redis's."""
    _fill(store)
    store.client.config_resetstat()
    started = time.perf_counter()
    work(store)
    taken = (time.perf_counter() - started) * 1000
    return taken, float(store.client.info("commandstats")["cmdstat_evalsha"]["usec"]) / 1000


def run(conditions: Conditions) -> Results:
    rounds = 20 if conditions.quick else 100
    with conditions.server() as server, server.client() as client:
        plain, leasing = (Store(client, Keys("delayq"), leases=leases) for leases in (False, True))
        works = partial(_measured, plain, _dispatch), partial(_measured, leasing, _reserve_and_ack)
        for work in works:  # loads the scripts
            work()
        pairs = [(works[0](), works[1]()) for _ in range(rounds)]
    rows = []
    for number, whose in enumerate(("round trips", "in Redis")):
        dispatched = [one[number] for one, _ in pairs]
        reserved = [other[number] for _, other in pairs]
        ratio = Spread.of(other / one for one, other in zip(dispatched, reserved, strict=True))
        rows.append(
            Row(
                "leases",
                f"reserve and ack {BATCH}, {whose}, ms",
                f"{Spread.of(reserved).median:.1f}",
                f"{Spread.of(dispatched).median:.1f} to dispatch them",
                ratio,
            )
        )
    return rows
