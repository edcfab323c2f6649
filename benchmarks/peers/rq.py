"""RQ, with the scheduler that its workers bring along."""

from .system import System

RQ = System(
    name="RQ",
    program="with_rq.py",
    requirements=("rq>=3.0,<4",),
    waiting=("ZCARD", "rq:scheduled:default"),
    settings=(
        "a pool of four processes, since one runs one job at a time; SimpleWorker, which does not fork for each job",
        "maintenance_interval 10 s, not 600, and worker_ttl 25 s, not 420: for what a killed worker held",
        "Retry(3), without which a killed worker's job is failed; result_ttl 0",
    ),
    cannot=(
        "keep a time finer than a second: it cuts the rest off, so jobs start up to a second early",
        "look at the schedule more often than once a second, or take more than 1000 of a queue then",
        "run more than one job at a time in one process",
    ),
)
