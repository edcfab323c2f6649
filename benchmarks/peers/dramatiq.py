"""Dramatiq with its Redis broker."""

from .system import CONCURRENCY, RECOVER, System

DRAMATIQ = System(
    name="Dramatiq",
    program="with_dramatiq.py",
    requirements=("dramatiq[redis]>=2.2,<3",),
    waiting=("HLEN", "dramatiq:default.DQ.msgs"),
    settings=(
        f"one process with {CONCURRENCY} threads",
        "dramatiq_worker_timeout 100 ms, not 1000: more punctual, for ten times as many idle commands",
        f"heartbeat_timeout {RECOVER} s, not 60, and maintenance_chance 1 in 100, not in 1000: against SIGKILL",
    ),
    cannot=(
        "leave a waiting message in Redis: a worker process fetches up to a thousand for each of its threads",
        "run a near message in time behind that many far ones: it is not fetched",
        "be told of a message: it polls",
        "cancel, list or move a waiting message",
    ),
)
