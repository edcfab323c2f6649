"""BullMQ, on Node."""

from .system import System

BULLMQ = System(
    name="BullMQ",
    program="with_bullmq.cjs",
    requirements=("bullmq@>=6.7 <7", "ioredis@>=5.4 <6"),
    waiting=("ZCARD", "bull:peer:delayed"),
    settings=(
        "lockDuration and stalledInterval 10 s, not 30: when a killed worker's job is given out anew",
        "removeOnComplete: no results are kept",
    ),
    cannot=(
        "run tasks of a Celery app: this is Node",
        "run a job again whose worker was killed twice, unless told so: it fails (maxStalledCount 1)",
    ),
)
