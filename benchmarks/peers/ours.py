"""Celery with celery_delayq, as it is here."""

from .system import System

OURS = System(
    name="celery_delayq",
    program="with_celery.py",
    settings="threads pool; acks_late and a visibility timeout, as everybody needs who fears SIGKILL",
)
