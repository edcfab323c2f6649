"""Rules turn events into tasks: what Resc does, and Celery tasks too.

Events are texts in Redis lists, entries of streams, or what Celery tasks have done. See docs/rules.md.
"""

try:
    from .loading import Fault, InvalidRules, load, validated
    from .model import CeleryMake, Fetch, ListMake, Redis, Rule, Rules, TaskEvent, Watcher
except ImportError as error:
    if error.name != "pydantic":
        raise
    raise ImportError('rules need more: pip install "celery-delayq[rules]"', name=error.name) from error

__all__ = [
    "CeleryMake",
    "Fault",
    "Fetch",
    "InvalidRules",
    "ListMake",
    "Redis",
    "Rule",
    "Rules",
    "TaskEvent",
    "Watcher",
    "load",
    "validated",
]
