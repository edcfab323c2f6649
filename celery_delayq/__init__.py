"""Delayed Celery tasks that wait in Redis until they are due: durable, visible, exact to milliseconds."""

from __future__ import annotations

# Joining an app
from .app import DelayQ, apply_at, apply_delayed

# Errors
from .errors import AlreadyScheduled, DelayQError, ImproperlyConfigured, ReplicasMissing

# Inside a task
from .message import scheduled_for
from .version import __version__ as __version__

__all__ = [
    "AlreadyScheduled",
    "DelayQ",
    "DelayQError",
    "ImproperlyConfigured",
    "ReplicasMissing",
    "apply_at",
    "apply_delayed",
    "scheduled_for",
]
