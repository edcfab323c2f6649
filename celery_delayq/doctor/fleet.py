"""The checks of those who hand over and run what waits. Each takes what it needs and gives what it finds.

``Replies`` are what workers answered to a command of ``celery inspect``, by worker.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from celery_delayq.job import Load

from .finding import Finding, broken, ok, unknown, warning
from .wording import named, quoted, seconds, tasks

Replies = Mapping[str, Any]

#: A beat is told to Redis once a second at most (s).
BEAT_WRITTEN = 1.0


def dispatchers(
    listeners: tuple[int, int] | None,
    beat_age: float | None,
    answers: Replies,
    waiting: int,
    interval: float,
    wanted: bool,
) -> Iterator[Finding]:
    """Somebody must hand over what is due.

    Args:
        listeners: how many listen to the fleet, and how many to announcements (the active one, and those that serve
            some queues only); None: that cannot be seen.
        beat_age: seconds since one of the fleet was last at work; None: never.
        answers: of workers to ``inspect delayq``.
        waiting: jobs that wait.
        interval: within which the fleet looks (s).
        wanted: whether workers of this app have dispatchers (``delayq_dispatch``).
    """
    running = sum(bool(said.get("running")) for said in answers.values())
    members, attending = listeners or (running, 0)
    beats = beat_age is not None and beat_age <= 3 * interval + BEAT_WRITTEN
    last = "" if beat_age is None else f", the last one was at work {seconds(beat_age)} ago"
    if not members and not attending and (listeners is not None or not beats):
        if listeners is None:
            yield unknown(f"not allowed to see whether one lives{last}", "allow PUBSUB NUMSUB, and our channels")
            return
        fix = "start a worker, or celery -A proj delayq dispatch"
        fix += "" if wanted else "; with delayq_dispatch = False workers have none"
        if waiting:
            yield broken(f"none lives{last}: {tasks(waiting)} will not be handed over", fix)
        else:
            yield warning(f"none lives{last}: nothing would be handed over", fix)
        return
    alive = f"{members} live" if members else f"{attending} with --queues, none for all" if attending else "alive"
    if beats:
        yield ok(f"{alive}{last}")
    else:
        yield warning(f"{alive}{last or ', and none was ever at work'}", "look at their logs")


def workers(queues: Replies, remote_control: bool) -> Iterator[Finding]:
    """Somebody must run what was handed over.

    Args:
        queues: the queues that each worker consumes, as ``inspect active_queues`` tells them.
    """
    if queues:
        yield ok(f"{len(queues)}: {named(sorted(queues))}")
    elif not remote_control:
        yield unknown("workers of this app take no remote control (worker_enable_remote_control)")
    else:
        yield warning(
            "no worker answers: due tasks lie in their queues", "start one; if one runs, --timeout 5 waits longer"
        )


def versions(own: str, answers: Replies, queues: Replies) -> Iterator[Finding]:
    """All that put and dispatch should be of one version; a rolling upgrade may take its time.

    Args:
        own: the version here.
        answers: of workers to ``inspect delayq``.
        queues: worker -> what it consumes, of all workers.
    """
    found: dict[str, list[str]] = {}
    for worker in sorted({*answers, *queues}):
        said = answers.get(worker) or {}
        joined = said.get("joined", "running" in said)  # older ones do not tell
        found.setdefault(str(said.get("version", "an older one")) if joined else "none", []).append(worker)
    without = found.pop("none", [])
    others = {told: names for told, names in found.items() if told != own}
    if others:
        told = "; ".join(f"{told} in {named(names)}" for told, names in sorted(others.items()))
        yield warning(f"celery_delayq is {own} here, and {told}", "deploy one version everywhere; restart the workers")
    if without:
        yield warning(
            f"without celery_delayq, or without the time to answer: {named(without)}",
            "they run what is handed over, but their retries wait in memory: add DelayQ(app) there",
        )
    if not others and not without:
        yield ok(f"{own} here and in {len(answers)} {'worker' if len(answers) == 1 else 'workers'}" if answers else own)


def queues(
    loads: Mapping[str, Load], consumed: Replies, known: Collection[str], remote_control: bool
) -> Iterator[Finding]:
    """What waits for a queue that nobody consumes will not run.

    Args:
        consumed: what each worker consumes, as ``inspect active_queues`` tells it.
        known: the queues of ``task_queues``; empty if the app names none.
    """
    meant = {queue: load for queue, load in loads.items() if load.waiting or load.ready}
    if not consumed:
        yield unknown("no worker tells what it consumes") if remote_control else unknown("no remote control")
        return
    served = {queue["name"] for said in consumed.values() if isinstance(said, list) for queue in said}
    missing = [queue for queue in meant if queue not in served]
    for queue in missing:
        load = meant[queue]
        stranger = bool(known) and queue not in known
        yield warning(
            f"no worker consumes {quoted(queue)}: {load.waiting:,} wait for it"
            + ("" if load.ready is None else f", {load.ready:,} are ready")
            + ("; it is not in task_queues either" if stranger else ""),
            f"is the name right? else celery -A proj worker -Q {queue}"
            + ("" if load.ready else f"; or take them back: celery -A proj delayq cancel --queue {queue}"),
        )
    if not missing:
        yield ok(f"{len(meant)} with tasks, all consumed" if meant else "nothing waits")


def visibility(timeout: float | None, active: Replies, limits: Mapping[str, float], now: float) -> Iterator[Finding]:
    """A message that nobody acknowledges in time is delivered again, while its task still runs.

    Args:
        timeout: the broker's visibility timeout (s); None: it has none.
        active: what each worker runs now, as ``inspect active`` tells it.
        limits: task that acknowledges late -> its time limit (s).
        now: this host's clock (s since the epoch).
    """
    if timeout is None:
        yield ok("the broker has none")
        return
    fix = "raise visibility_timeout in broker_transport_options above the longest run; no delay has to fit into it"
    sound = True
    for worker, said in active.items():
        for task in said if isinstance(said, list) else ():
            ran = now - (task.get("time_start") or now)
            if ran > timeout:
                sound = False
                acked = task.get("acknowledged")
                again = "what waits behind it in that worker" if acked else "it"
                text = f"{task.get('name')}[{quoted(task.get('id'))}] runs for {seconds(ran)} in {worker}, "
                text += f"visibility_timeout is {seconds(timeout)}: {again} is delivered again"
                yield warning(text, fix)
    for name, limit in limits.items():
        if limit > timeout:
            sound = False
            yield warning(
                f"{name} acknowledges late and may run {seconds(limit)}, visibility_timeout is {seconds(timeout)}", fix
            )
    if sound:
        yield ok(f"{seconds(timeout)}, nothing runs longer")
