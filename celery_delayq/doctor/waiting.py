"""The checks of what waits. Each takes what it needs and gives what it finds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from celery_delayq.clock import SECOND_US
from celery_delayq.job import Load

from .finding import Finding, broken, ok, warning
from .wording import quoted, seconds, tasks

#: A task that is due for so long (s) and not handed over is late; or it is badly so.
OVERDUE, OVERDUE_BADLY = 10.0, 120.0


def overdue(loads: Mapping[str, Load], now_us: int, limits: Mapping[str, int]) -> Iterator[Finding]:
    """What is due should be gone within milliseconds.

    Args:
        limits: queue -> how many ready messages hold it back (``delayq_ready_limit``).
    """
    late = False
    for queue, load in loads.items():
        age = 0.0 if load.head_us is None else (now_us - load.head_us) / SECOND_US
        held = load.held_us is not None and load.held_us > now_us
        if age < OVERDUE or load.held_us == math.inf:
            continue
        late = True
        text = f"{tasks(load.due)} of {quoted(queue)} {'is' if load.due == 1 else 'are'} overdue, "
        text += f"the first for {seconds(age)}"
        if load.ready is not None and load.ready >= limits.get(queue, math.inf):
            yield warning(f"{text}: {load.ready:,} are ready already (delayq_ready_limit)", "add workers to that queue")
        elif held:
            yield warning(f"{text}: it catches up at a rate", "wait; or celery -A proj delayq resume, without --rate")
        else:
            fix = "see dispatchers; their logs say what Redis refuses"
            yield (broken if age >= OVERDUE_BADLY else warning)(text, fix)
    if not late:
        yield ok("nothing that may leave")


def orphans(loads: Mapping[str, Load], sizes: Mapping[str, tuple[int, int]], key: str) -> Iterator[Finding]:
    """Ids and messages go in and out together; where they differ, something else has had its hands on our keys.

    Args:
        sizes: queue -> ids in its schedule, and messages.
        key: that of the totals.
    """
    sound = True
    cause = "look for what else writes to this Redis, or evicts"
    for queue, (ids, bodies) in sizes.items():
        if ids > bodies:
            sound = False
            many = _many(ids - bodies, "id has", "ids have")
            yield warning(f"{many} no message in {quoted(queue)}; dropped when due", cause)
        elif bodies > ids:
            sound = False
            many = _many(bodies - ids, "message has", "messages have")
            yield warning(f"{many} no id in {quoted(queue)}; never handed over", cause)
    for queue, load in loads.items():
        if load.orphans:
            sound = False
            yield warning(
                f"{_many(load.orphans, 'id', 'ids')} of {quoted(queue)} had no message and were dropped",
                f"{cause}; then forget them: redis-cli HDEL '{key}' 'orphans:{queue}'",
            )
    if sound:
        yield ok("none")


def leases(loads: Mapping[str, Load], expiries: Mapping[str, int], now_us: int) -> Iterator[Finding]:
    """What is being handed over to another broker is under a lease; what that broker refused too often is dead.

    Args:
        expiries: queue -> when the first of its leases runs out, or ran out (us).
    """
    sound = True
    for queue, expiry_us in expiries.items():
        age = (now_us - expiry_us) / SECOND_US
        if age > OVERDUE:
            sound = False
            yield warning(
                f"a lease of {quoted(queue)} ran out {seconds(age)} ago, and nobody takes the task back",
                "see dispatchers",
            )
    for queue, load in loads.items():
        if load.dead:
            sound = False
            yield warning(
                f"{tasks(load.dead)} of {quoted(queue)} could not be published, and nobody tries any more",
                "celery -A proj delayq dead list tells why; mend that, then celery -A proj delayq dead retry",
            )
    if sound:
        reserved = sum(load.reserved for load in loads.values())
        yield ok(f"{tasks(reserved)} under way" if reserved else "none")


def paused(loads: Mapping[str, Load]) -> Iterator[Finding]:
    """Somebody may have forgotten it."""
    found = {queue: load for queue, load in loads.items() if load.held_us == math.inf}
    for queue, load in found.items():
        due = f", {load.due:,} of them due" if load.due else ""
        yield warning(
            f"{quoted(queue)} is paused: {tasks(load.waiting)} {'waits' if load.waiting == 1 else 'wait'}{due}",
            f"celery -A proj delayq resume {queue}",
        )
    if not found:
        yield ok("none")


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"
