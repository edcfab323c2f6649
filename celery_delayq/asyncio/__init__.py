"""The queue and its worker for asyncio: what ``celery_delayq`` has under the same names, awaited."""

from __future__ import annotations

from .queue import DelayQueue
from .worker import Worker

__all__ = ["DelayQueue", "Worker"]
