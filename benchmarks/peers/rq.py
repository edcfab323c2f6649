"""RQ, with the scheduler that its workers bring along."""

from .system import RECOVER, System

RQ = System(
    name="RQ",
    program="with_rq.py",
    requirements=("rq>=3.0,<4",),
    waiting=("ZCARD", "rq:scheduled:default"),
    settings=(
        "a pool of four processes, since one runs one job at a time; SimpleWorker, which does not fork for each job",
        f"maintenance_interval {RECOVER} s, not 600, and worker_ttl {RECOVER + 15} s, not 420: against SIGKILL",
        "Retry(3), without which a killed worker's job is failed; result_ttl 0",
    ),
    cannot=(
        "keep a time finer than a second: it cuts the rest off, so jobs start up to a second early",
        "look at the schedule more often than once a second, or take more than 1000 of a queue then",
        "hand over what falls due in the minute after its scheduler was killed: the lock must run out first (61 s)",
        "run more than one job at a time in one process",
    ),
)
