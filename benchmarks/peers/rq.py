"""RQ, with the scheduler that its workers bring along."""

from .system import System

RQ = System(
    name="RQ",
    program="with_rq.py",
    requirements=("rq>=3.0,<4",),
    settings="a pool of four processes, each with its scheduler, since one runs one job at a time; SimpleWorker, which "
    "its documentation has for short jobs; maintenance_interval 10 s, worker_ttl 25 s; three retries, without which a "
    "killed worker's job is failed",
    cannot="keep a time finer than a second, so it may be early by as much; look more often than once a second",
)
