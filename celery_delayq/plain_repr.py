"""The text of plain arguments, as messages and events show them: what Celery's ``saferepr`` makes of them, sooner."""

from __future__ import annotations

from typing import Any

#: More items are not looked at.
ITEMS = 16

#: What Python and Celery write alike, whatever its value.
_ALIKE = (bool, float, type(None))


def plain_repr(value: Any, limit: int) -> str | None:
    """A tuple, list or dict of few numbers and plain strings as text; None: that is for ``saferepr`` to say.

    Celery walks through containers item by item, to end within *limit* characters and some levels. Of a flat one that
    is shorter it makes what ``repr`` does.
    """
    kind = type(value)
    if (kind is not tuple and kind is not list and kind is not dict) or len(value) > ITEMS:
        return None
    if not all(map(_is_plain, value)) or (kind is dict and not all(map(_is_plain, value.values()))):
        return None
    text = repr(value)
    return text if len(text) < limit else None


def _is_plain(item: object) -> bool:
    if type(item) is str:
        return item.isascii() and item.isprintable() and "'" not in item and "\\" not in item
    if type(item) is int:
        return -(2**63) < item < 2**63
    return type(item) in _ALIKE
