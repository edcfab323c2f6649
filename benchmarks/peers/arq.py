"""arq, whose queue is a sorted set that workers poll."""

from .system import CONCURRENCY, RECOVER, System

ARQ = System(
    name="arq",
    program="with_arq.py",
    requirements=("arq>=0.28,<0.29",),
    settings=(
        "poll_delay 0.1 s, not 0.5: more punctual, for five times as many idle commands",
        f"max_jobs {CONCURRENCY}; queue_read_limit 1000, not 100; keep_result 0",
        f"job_timeout {RECOVER} s, not 300: a killed worker's job is free again 10 s after that",
    ),
    cannot=(
        "be told of a job: it polls",
        "run plain functions: jobs are coroutines, and one that blocks holds up all of its worker",
        "cancel without a worker: abort() makes the job due at once, for a worker with allow_abort_jobs to drop it",
        "move a waiting job, or list a page of them: queued_jobs() fetches all",
    ),
)
