"""How fast many tasks are scheduled in one go: ``apply_many``, and groups.

``apply_many`` of 100,000, each with a time of its own, beside what stock Celery has for it: ``apply_async(eta=…)`` one
by one, and inside of Kombu 5.7's ``producer.batch()``. They run by turns; those of the stock ones are shorter, being so
much slower.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import group

from .conditions import Conditions
from .report import Row, Spread
from .workers import Bench

NOW = datetime.now(timezone.utc)


def _items(bench: Bench, count: int) -> Iterator[tuple[Any, datetime]]:
    """Signatures, and times within a day."""
    task = bench.task("mark")
    for number in range(count):
        yield task.s(number), NOW + timedelta(hours=1, seconds=number * 37 % 86_400)


def _many(bench: Bench, count: int) -> list[Any]:
    results: list[Any] = bench.app.delayq.apply_many(_items(bench, count))
    return results


def _one_by_one(bench: Bench, count: int) -> list[Any]:
    return [signature.apply_async(eta=when) for signature, when in _items(bench, count)]


def _batched(bench: Bench, count: int) -> list[Any]:
    with bench.app.producer_pool.acquire() as producer, producer.batch():
        return [signature.apply_async(eta=when, producer=producer) for signature, when in _items(bench, count)]


def _group(bench: Bench, count: int) -> Any:
    task = bench.task("mark")
    return group(task.s(number) for number in range(count)).apply_async(countdown=3600)


def _group_at_once(bench: Bench, count: int) -> Any:
    task = bench.task("mark")
    return bench.app.delayq.apply_delayed(group(task.s(number) for number in range(count)), 3600)


def _rate(way: Callable[[Bench, int], Any], bench: Bench, count: int) -> float:
    """Tasks a second. All of them must have arrived."""
    gc.collect()  # else garbage of the one is collected in the time of the other
    started = time.perf_counter()
    results = way(bench, count)
    rate = count / (time.perf_counter() - started)
    assert len(results) == count
    waiting = bench.broker.zcard("delayq:{0}:schedule:celery") + bench.broker.llen("celery")
    assert waiting == count, f"{waiting} of {count} have arrived"
    bench.broker.flushdb()
    return rate


def _row(figure: str, ours: list[float], others: list[float], name: str, target: float | None) -> Row:
    ratio = Spread.of(here / there for here, there in zip(ours, others, strict=True))
    return Row(
        "bulk",
        figure,
        f"{Spread.of(ours).median:.0f}",
        f"{name} {Spread.of(others).median:.0f}",
        ratio,
        "" if target is None else f"ratio >= {target:.1f}",
        None if target is None else ratio.median >= target,
    )


def run(conditions: Conditions) -> list[Row]:
    many, stock, grouped, rounds = (10_000, 1_000, 2_000, 3) if conditions.quick else (100_000, 5_000, 10_000, 3)
    with conditions.server() as server:
        ours, native = Bench(server, 0, delayq=True), Bench(server, 1, delayq=False)
        turns = {
            "many": (_many, ours, many),
            "one by one": (_one_by_one, native, stock),
            "group": (_group, ours, grouped),
            "native group": (_group, native, grouped),
            "group at once": (_group_at_once, ours, grouped),
        }
        with native.app.producer_pool.acquire() as producer:
            if hasattr(producer, "batch"):
                turns["batch"] = (_batched, native, stock)
        for way, bench, _ in turns.values():
            _rate(way, bench, 100)  # connected, and Redis knows the scripts
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(rounds):
            for name, turn in turns.items():
                rates[name].append(_rate(*turn))
    figure = f"apply_many of {many:,}, a second"
    rows = [_row(figure, rates["many"], rates["one by one"], "native, one by one", 6.0)]
    if "batch" in rates:
        rows.append(_row(figure, rates["many"], rates["batch"], "native in producer.batch()", 2.0))
    else:
        rows.append(Row("bulk", figure, "", "this Kombu has no producer.batch(): 5.7 and newer have"))
    figure = f"group of {grouped:,}, tasks a second"
    return [
        *rows,
        _row(f"{figure}: group.apply_async", rates["group"], rates["native group"], "native", 1.0),
        _row(
            f"{figure}: apply_delayed", rates["group at once"], rates["native group"], "native group.apply_async", None
        ),
    ]
