"""BullMQ, on Node."""

from .system import CONCURRENCY, RECOVER, System

BULLMQ = System(
    name="BullMQ",
    program="with_bullmq.cjs",
    requirements=("bullmq@>=6.7 <7", "ioredis@>=5.4 <6"),
    waiting=("ZCARD", "bull:peer:delayed"),
    settings=(
        f"concurrency {CONCURRENCY}; removeOnComplete, so no results are kept",
        f"lockDuration and stalledInterval {RECOVER} s, not 30: against SIGKILL",
    ),
    cannot=(
        "run tasks of a Celery app: this is Node",
        "run a job again whose worker was killed twice, unless told so: it fails (maxStalledCount 1)",
    ),
)
