"""Celery with celery_delayq, as it is here."""

from celery_delayq.keys import Keys

from .system import System

OURS = System(
    name="celery_delayq",
    program="with_celery.py",
    waiting=("ZCARD", Keys("delayq").schedule("celery")),
    settings=(
        "threads pool; acks_late and visibility_timeout 10 s, looked at every 5 s: for what a killed worker held",
    ),
)
