"""celery-redis-plus: another transport for Celery, which keeps what is due in more than a minute in Redis."""

from .system import System

CELERY_REDIS_PLUS = System(
    name="celery-redis-plus",
    program="with_celery.py",
    requirements=("celery-redis-plus[redis]>=0.4,<0.5", "celery>=5.5,<5.8"),
    oldest_python=(3, 13),
    settings="threads pool, acks_late and visibility timeout like ours; what is due within 60 s waits in the worker",
    cannot="cancel, list or move a waiting task; hand over more than about a thousand a minute, for each queue and "
    "worker, of what was put more than a minute ahead",
)
