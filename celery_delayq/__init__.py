"""Delayed Celery tasks that wait in Redis until they are due: durable, visible, exact to milliseconds."""

from __future__ import annotations

# Joining an app, and inside a task
from .app import DelayQ, apply_at, apply_delayed

# Errors
from .errors import AlreadyScheduled, DelayQError, ImproperlyConfigured, LeaseLost, Outdated, ReplicasMissing

# Without Celery
from .job import Job
from .message import scheduled_for
from .queue import DelayQueue
from .version import __version__ as __version__
from .worker import Worker

__all__ = [
    "AlreadyScheduled",
    "DelayQ",
    "DelayQError",
    "DelayQueue",
    "ImproperlyConfigured",
    "Job",
    "LeaseLost",
    "Outdated",
    "ReplicasMissing",
    "Worker",
    "apply_at",
    "apply_delayed",
    "scheduled_for",
]
