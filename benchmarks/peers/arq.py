"""arq, whose queue is a sorted set that workers poll."""

from .system import System

ARQ = System(
    name="arq",
    program="with_arq.py",
    requirements=("arq>=0.28,<0.29",),
    settings="poll_delay 0.1 s, not 0.5, and queue_read_limit 1000, not 100: punctual, for as many more idle commands; "
    "job_timeout 10 s",
    cannot="list by time or move a waiting job; cancel one without a worker that polls for that, too",
)
