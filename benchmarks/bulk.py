"""How fast many tasks are scheduled in one go: ``apply_many``, and groups.

``apply_many`` of 100,000, each with a time of its own, beside what stock Celery has for it: ``apply_async(eta=…)`` one
by one, and inside of Kombu 5.7's ``producer.batch()``. Groups beside stock groups. What is measured is one call each;
the stock ways have their turns in between, whenever it asks for more of its items.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import group

from .conditions import Conditions
from .report import Results, Row, Spread
from .workers import Bench

#: Signatures and times.
Items = Iterator[tuple[Any, datetime]]
#: Publishes them all in an app, and returns their results.
Way = Callable[[Bench, Items], Any]


def _items(bench: Bench, count: int) -> Items:
    """*count* tasks at times within a day."""
    task = bench.task("mark")
    begin = datetime.now(timezone.utc) + timedelta(hours=1)
    for number in range(count):
        yield task.s(number), begin + timedelta(seconds=number * 37 % 86_400)


def _many(bench: Bench, items: Items) -> Any:
    return bench.app.delayq.apply_many(items)


def _one_by_one(_: Bench, items: Items) -> Any:
    return [signature.apply_async(eta=when) for signature, when in items]


def _batched(bench: Bench, items: Items) -> Any:
    with bench.app.producer_pool.acquire() as producer, producer.batch():
        return [signature.apply_async(eta=when, producer=producer) for signature, when in items]


def _group(_: Bench, items: Items) -> Any:
    return group(signature for signature, _ in items).apply_async(countdown=3600)


def _group_at_once(bench: Bench, items: Items) -> Any:
    return bench.app.delayq.apply_delayed(group(signature for signature, _ in items), 3600)


def _publish(way: Way, bench: Bench, items: Items, count: int) -> None:
    """Let *way* publish; all must arrive."""
    assert len(way(bench, items)) == count
    assert bench.broker.zcard("delayq:{0}:schedule:celery") + bench.broker.llen("celery") == count
    bench.broker.flushdb()


def _by_turns(
    way: Way, ours: Bench, count: int, block: int, others: dict[str, Way], native: Bench, other_block: int
) -> tuple[list[float], dict[str, list[float]]]:
    """Tasks a second: of one call for *count*, block by block; and of the others, between these blocks."""
    rates: list[float] = []
    other_rates: dict[str, list[float]] = {name: [] for name in others}
    resumed = time.perf_counter()

    def items() -> Items:
        nonlocal resumed
        for number, item in enumerate(_items(ours, count)):
            if number and number % block == 0:
                rates.append(block / (time.perf_counter() - resumed))
                for name, other in others.items():
                    started = time.perf_counter()
                    _publish(other, native, _items(native, other_block), other_block)
                    other_rates[name].append(other_block / (time.perf_counter() - started))
                resumed = time.perf_counter()
            yield item

    gc.collect()  # what was left before is not cleared away in this time
    _publish(way, ours, items(), count)
    return rates, other_rates


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


def run(conditions: Conditions) -> Results:
    many, block, grouped = (20_000, 2_000, 3_000) if conditions.quick else (100_000, 4_000, 10_000)
    rows = []
    with conditions.server() as server:
        ours, native = Bench(server, 0, delayq=True), Bench(server, 1, delayq=False)
        stock: dict[str, Way] = {"one by one": _one_by_one}
        with native.app.producer_pool.acquire() as producer:
            if hasattr(producer, "batch"):
                stock["in producer.batch()"] = _batched
        _by_turns(_many, ours, 200, 100, stock, native, 100)  # all are connected, and Redis knows the scripts

        rates, others = _by_turns(_many, ours, many, block, stock, native, block // 10)
        figure = f"apply_many of {many:,}, a second"
        rows += [
            _row(figure, rates, others[name], f"native, {name}", target)
            for name, target in zip(others, (6.0, 2.0), strict=False)
        ]
        if len(stock) == 1:
            rows.append(Row("bulk", figure, "", "this Kombu has no producer.batch(): 5.7 and newer have"))

        for way, name, target in ((_group, "group.apply_async", 1.0), (_group_at_once, "apply_delayed", None)):
            rates, others = _by_turns(way, ours, grouped, 250, {"native": _group}, native, 250)
            figure = f"{name} of a group of {grouped:,}, tasks a second"
            rows.append(_row(figure, rates, others["native"], "native group", target))
    return rows
