"""celery-redis-plus: another transport for Celery, which keeps what is due in more than a minute in Redis."""

from .system import CONCURRENCY, RECOVER, System

CELERY_REDIS_PLUS = System(
    name="celery-redis-plus",
    program="with_celery.py",
    requirements=("celery-redis-plus[redis]>=0.4,<0.5", "celery>=5.5,<5.8"),
    oldest_python=(3, 13),
    oldest_redis=(7, 0),
    settings=(f"{CONCURRENCY} threads, acks_late and visibility_timeout {RECOVER} s, as ours",),
    cannot=(
        "keep what is due within a minute out of the workers: it waits there, as with stock Celery",
        "hand over more than 1000 a minute, for each queue and worker, of what was put more than a minute ahead",
        "look more often than once a minute for what a killed worker held",
        "cancel, list or move a waiting task, beyond what stock Celery's revoke does",
        "work on Python before 3.13 or on Redis before 7.0",
    ),
)
