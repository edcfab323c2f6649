"""Who takes part: producers, workers of every pool, dispatchers; some of them with a wrong clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .participants import Role

#: Queues that nobody consumes: what is handed over stays on their ready lists. And one that workers consume.
WATCHED, CONSUMED = ("watched-0", "watched-1"), "consumed"

#: Kombu's priority steps, and what it puts between a queue's name and one of them.
STEPS, SEPARATOR = (0, 3, 6, 9), "\x06\x16"

#: Where all participants of a rack lose the network at once: that to the Redis in which tasks wait.
RACKS = ("rack-1", "rack-2", "rack-3")

#: The network to the broker, if that is another server. One for all, since a broker has one name.
BROKER_RACK = "rack-broker"

#: The pools that workers can have.
POOLS = ("prefork", "threads", "gevent", "eventlet", "solo")

#: An hour ahead, an hour behind.
AHEAD, BEHIND = "+3600s", "-3600s"

#: What the apps have in common.
CONF: dict[str, Any] = {
    "task_ignore_result": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
}

#: Stock Kombu redelivers after the visibility timeout: here after the storm, so that what is left can be counted.
REDIS_OPTIONS = {"visibility_timeout": 6 * 3600}


def ready_lists() -> list[str]:
    """Kombu's lists of the queues that nobody consumes."""
    return [f"{queue}{SEPARATOR}{step}" if step else queue for queue in WATCHED for step in STEPS]


def cast(
    folder: Path,
    conf_of: Callable[[str], Mapping[str, Any]],
    seed: int,
    pace: float,
    countdown: Sequence[float],
    pools: Sequence[str],
    *,
    with_clocks: bool,
) -> list[Role]:
    """The roles, spread over the racks.

    Args:
        conf_of: of ``app.conf``, what depends on the rack: the broker's URL, for one.
        pace: tasks a second of all producers together.
        countdown: seconds, from and to.
        pools: of the workers, one each.
        with_clocks: some have a wrong clock; takes the library of ``faketime``.
    """
    racks = _around(RACKS)

    def role(name: str, module: str, *arguments: str, clock: str = "", is_fresh: bool = False, **own: Any) -> Role:
        rack = next(racks)
        conf = {**CONF, **conf_of(rack)}
        if conf["broker_url"].startswith("redis:"):
            conf["broker_transport_options"] = {**REDIS_OPTIONS, **own}
        environment = {
            "STORM_CONF": json.dumps(conf),
            "STORM_RUNS": str(folder / "runs"),
            "STORM_NAME": name,
        }
        group = name.partition("-")[0]
        if group != "producer" and "delayq_store_url" in conf:
            environment["STORM_STAMPS"] = "yes"
        return Role(name, group, rack, module, arguments, environment, clock, is_fresh or bool(clock))

    clocks = {"producer-ahead": AHEAD} if with_clocks else {}
    producers = ["producer-1", "producer-patient", *clocks]

    def producer(name: str) -> Role:
        clock = clocks.get(name, "")
        options = {
            "name": name,
            "path": str(ledger_of(folder, name)),
            "seed": seed,
            "queues": WATCHED,
            "consumed": CONSUMED,
            "countdown": list(countdown),
            "has_time": not clock,
            "pace": pace / len(producers),
        }
        # Without a timeout of its own, which is Kombu's default, a producer waits in a black hole until it ends.
        own = {} if name == "producer-patient" else {"socket_timeout": 2.0}
        return role(name, "tests.chaos.storm.produce", json.dumps(options), clock=clock, **own)

    def worker(name: str, pool: str, *, clock: str = "") -> Role:
        arguments = ["-A", "tests.chaos.storm.project", "worker", f"--pool={pool}", "--concurrency=2", "-n", name]
        arguments += ["-Q", CONSUMED, "--loglevel=INFO", "--without-gossip", "--without-mingle"]
        return role(name, "celery", *arguments, clock=clock, is_fresh=pool in ("gevent", "eventlet"))

    def dispatcher(name: str, clock: str = "") -> Role:
        return role(name, "celery", "-A", "tests.chaos.storm.project", "delayq", "dispatch", clock=clock)

    roles = [producer(name) for name in producers]
    roles += [worker(f"worker-{pool}", pool) for pool in pools]
    roles += [dispatcher(f"dispatcher-{number}") for number in (1, 2, 3)]
    if with_clocks:
        roles += [worker("worker-ahead", "threads", clock=AHEAD), dispatcher("dispatcher-behind", BEHIND)]
    return roles


def ledger_of(folder: Path, name: str) -> Path:
    """Where a producer notes what it does."""
    return folder / f"{name}.ledger"


def _around(names: Sequence[str]) -> Iterator[str]:
    while True:
        yield from names
