"""How late delayed tasks start: 10, 100 and 500 a second, ours with a million more waiting far in the future.

Lateness is the time at which a task's first line runs, less the time for which it was asked. Native Celery could not
hold a million (they would all be in the worker's memory), so nothing more waits for it. Both workers are of the same
kind and up all the time. One stream of tasks runs through; its turns, of a second or a few, belong to

* ours,
* native,
* native *at once*: the task is sent without any delay at the moment when it is due. That is how fast Celery delivers a
  message that is ready, and nothing that keeps a task outside of a worker until it is due can be faster. (A native
  delayed task has been delivered long before, and sits in the worker.)

So whatever else the machine does meets all, and the ratio, the median of those of neighbouring turns, can be had on a
busy machine too.

Who publishes would need half of a core at 500 a second, and whoever has his turn would have that for a burden. So all
is published before the first is due: ours by ``apply_many``; native in bulk, and the worker has taken all of it. What
is sent at once is made before, too, and needs nothing but an LPUSH when it is due.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from .backlog import Backlog
from .conditions import Conditions
from .messages import READY, Mould, send
from .report import Results, Row, Series, Spread, cumulative, percentile
from .workers import Bench, wait_until

#: How late (ms) the tasks of each turn started.
Turns = list[list[float]]

#: Who has nothing to do but to wake up and push is never so late (s), but where a whole machine stands still.
STANDSTILL = 1.0

#: Streams that are tried, for one without a standstill.
TRIES = 3


@dataclass(frozen=True)
class Pace:
    """So many tasks a second, in so many turns of each kind.

    Attributes:
        seconds: how long a turn is; at a slow pace a second has too few tasks for a percentile.
        rest: seconds between two turns; at a fast pace what one leaves undone would be the next one's burden.
    """

    rate: int
    seconds: int
    turns: int
    rest: int = 0

    @property
    def each(self) -> int:
        """Tasks of each kind."""
        return self.rate * self.seconds * self.turns

    def dues(self) -> tuple[float, list[list[float]]]:
        """When the stream begins (s since the epoch), and when the tasks of each kind are due.

        At random, as real ones are: a grid could fall in with a clock of ours or of Celery's.
        """
        dice = random.Random(self.rate)
        first = time.time() + 3.0 + 0.004 * self.each
        kinds: list[list[float]] = [[], [], []]
        for turn in range(3 * self.turns):
            begin = first + turn * (self.seconds + self.rest)
            kinds[turn % 3] += sorted(begin + self.seconds * dice.random() for _ in range(self.rate * self.seconds))
        return first, kinds

    def by_turn(self, first: float, records: Iterable[bytes]) -> dict[int, list[float]]:
        """How late (ms) the tasks of each turn of the stream started."""
        late: dict[int, list[float]] = {}
        for record in records:
            due, started = map(float, record.split())
            late.setdefault(int((due - first) / (self.seconds + self.rest)), []).append((started - due) * 1000)
        return late


def _stream(ours: Bench, native: Bench, pace: Pace) -> tuple[Turns, Turns, Turns] | None:
    """How late the tasks of a stream were: ours, native, native at once.

    None: not all was published in time, or the machine stood still meanwhile.
    """
    mould = Mould(native, "stamp")
    first, (here, natively, at_once) = pace.dues()
    ours.app.delayq.apply_many([(ours.task("stamp").s(due), due) for due in here])
    send(native, (mould.message(due, due) for due in natively))
    messages = [(due, mould.message(due)) for due in at_once]
    # Once its first task is due it will not hold all of them any more.
    wait_until(
        lambda: native.broker.hlen("unacked") >= pace.each or time.time() > first, "the native worker holds its tasks"
    )
    too_slow, behind = time.time() > first, 0.0
    for due, message in messages:
        time.sleep(max(0.0, due - time.time()))
        behind = max(behind, time.time() - due)
        native.broker.lpush(READY, message)
    for bench, count in ((ours, pace.each), (native, 2 * pace.each)):
        wait_until(lambda bench=bench, count=count: bench.recorded() >= count, f"{bench.name} tasks")
    late = pace.by_turn(first, ours.take_records()) | pace.by_turn(first, native.take_records())
    if too_slow or behind > STANDSTILL:
        return None
    turns = [late[turn] for turn in sorted(late)]
    return turns[0::3], turns[1::3], turns[2::3]


def _measure(pool: str, ours: Bench, native: Bench, waiting: int, pace: Pace, plot: bool) -> list[Row | Series]:
    tries = (_stream(ours, native, pace) for _ in range(TRIES))
    kinds = next(filter(None, tries), None)
    if kinds is None:
        raise TimeoutError("the machine was too slow or stood still, each time: it is too busy for a measurement")
    here, natively, at_once = kinds
    where = f"{pool} pool, {pace.rate} tasks a second"
    results: list[Row | Series] = []
    for percent, limit in ((50, 1.5), (99, 2.0)):
        limited = limit if pace.rate == 100 else None
        for name, other, target in (
            ("native", natively, limited),
            ("native, sent at once when due,", at_once, None),
        ):
            ratio = Spread.of(percentile(a, percent) / percentile(b, percent) for a, b in zip(here, other, strict=True))
            results.append(
                Row(
                    "lateness",
                    f"p{percent}, ms, {where}",
                    f"{_typical(here, percent):.2f} with {waiting:,} waiting",
                    f"{name} {_typical(other, percent):.2f} with none",
                    ratio,
                    f"ratio <= {target:g}" if target else "",
                    ratio.median <= target if target else None,
                )
            )
    early, late = min(map(min, here)), max(map(max, here))
    results.append(
        Row(
            "lateness",
            f"earliest and latest of all, ms, {where}",
            f"{early:.2f}, {late:.1f}",
            f"native {min(map(min, natively)):.2f}, {max(map(max, natively)):.1f}",
            None,
            "never early",
            # A due time is a float of seconds here and whole microseconds in the store: one of them is rounding.
            early > -0.001,
        )
    )
    if plot:
        labels = ("celery_delayq", "stock Celery", "stock Celery, sent when due")
        for label, turns in zip(labels, kinds, strict=True):
            results.append(Series(f"lateness-{pace.rate}", label, *cumulative([one for turn in turns for one in turn])))
    return results


def _typical(turns: Turns, percent: int) -> float:
    """That percentile of a turn's tasks, the median of all turns."""
    return Spread.of(percentile(turn, percent) for turn in turns).median


def run(conditions: Conditions) -> Results:
    # The verdict is on a hundred a second, in both pools; the plots are of the pool that is Celery's default.
    pools = {"threads": (100,), "prefork": (10, 100, 500)}
    if conditions.quick:
        waiting, paces = 50_000, (Pace(10, 2, 2), Pace(100, 1, 4), Pace(500, 1, 2, rest=1))
    else:
        waiting, paces = 1_000_000, (Pace(10, 3, 5), Pace(100, 1, 20), Pace(500, 1, 6, rest=1))
    results: list[Row | Series] = []
    with conditions.server() as server:
        ours, native = Bench(server, 0, delayq=True), Bench(server, 1, delayq=False)
        Backlog(ours).fill(waiting)
        for pool, rates in pools.items():
            with ExitStack() as workers:
                for bench in (ours, native):
                    workers.enter_context(bench.worker("-P", pool, "-c", "4"))
                for pace in paces:
                    if pace.rate in rates:
                        results += _measure(pool, ours, native, waiting, pace, plot=pool == "prefork")
    return results
