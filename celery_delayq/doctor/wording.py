"""How the checks write numbers and names."""

from __future__ import annotations

from collections.abc import Sequence

from celery_delayq.errors import shortened as quoted

__all__ = ["named", "quoted", "seconds", "size", "tasks"]

#: As many names stand in a message at most.
NAMED = 5


def named(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def tasks(count: int) -> str:
    """How many tasks."""
    return f"{count:,} {'task' if count == 1 else 'tasks'}"


def seconds(length: float) -> str:
    """A length of time (s)."""
    if length < 120:
        return f"{length:.3g} s"
    return f"{length / 60:.0f} min" if length < 7200 else f"{length / 3600:.1f} h"


def size(count: float) -> str:
    """A number of bytes."""
    if count < 1024:
        return f"{count:,.0f} bytes"
    for unit in ("KB", "MB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:,.1f} GB"
