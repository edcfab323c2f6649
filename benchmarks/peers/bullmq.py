"""BullMQ, on Node."""

from .system import System

BULLMQ = System(
    name="BullMQ",
    program="with_bullmq.cjs",
    requirements=("bullmq@>=6.7 <7", "ioredis@>=5.4 <6"),
    settings="removeOnComplete; lockDuration and stalledInterval 10 s, not 30",
    cannot="take tasks of a Celery app",
)
