"""Celery with celery_delayq, as it is here."""

from .system import System

OURS = System(
    name="celery_delayq",
    program="with_celery.py",
    settings="threads pool; acks_late and, for tasks that run, a visibility timeout of 10 s looked at every 5 s",
)
