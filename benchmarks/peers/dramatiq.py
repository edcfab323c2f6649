"""Dramatiq with its Redis broker."""

from .system import System

DRAMATIQ = System(
    name="Dramatiq",
    program="with_dramatiq.py",
    requirements=("dramatiq[redis]>=2.2,<3",),
    settings="dramatiq_worker_timeout 100 ms, not 1000: ten times as punctual for ten times as many idle commands; "
    "heartbeat_timeout 10 s, not 60; maintenance_chance 1 in 100, not in 1000",
    cannot="cancel, list or move a waiting message; leave it in Redis: workers fetch them, a thousand for each thread, "
    "and near ones behind as many far ones run late",
)
