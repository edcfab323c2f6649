"""Celery with celery_delayq, as it is here."""

from celery_delayq.keys import Keys

from .system import CONCURRENCY, RECOVER, System

OURS = System(
    name="celery_delayq",
    program="with_celery.py",
    waiting=("ZCARD", Keys("delayq").schedule("celery")),
    settings=(
        f"{CONCURRENCY} threads; acks_late and visibility_timeout {RECOVER} s, looked at every 5 s: against SIGKILL",
    ),
)
