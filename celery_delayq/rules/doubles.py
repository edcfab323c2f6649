"""A name that is twice in one object: the readers of files would keep the last, and say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object that has these names and values.

    Raises:
        ValueError: a name is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {double!r} is there twice in one object")
    return found
