"""Lengths of time as people write them."""

from __future__ import annotations

import re
from datetime import timedelta

from .errors import shortened

#: What each unit may be called, and how many seconds it has.
UNITS = {
    1: ("s", "sec", "secs", "second", "seconds"),
    60: ("m", "min", "mins", "minute", "minutes"),
    3600: ("h", "hr", "hrs", "hour", "hours"),
    86_400: ("d", "day", "days"),
    604_800: ("w", "week", "weeks"),
}
_SECONDS = {name: seconds for seconds, names in UNITS.items() for name in names}

_PART = r"(\d+(?:\.\d+)?)\s*([a-z]+)"
_LENGTH = re.compile(rf"{_PART}(?:[\s,]*{_PART})*")


def is_length(text: str) -> bool:
    """Whether *text*, in small letters, looks like one."""
    return _LENGTH.fullmatch(text) is not None


def read_length(text: str) -> timedelta:
    """A length of time: ``90s``, ``1h 30m``, ``2 days``, ``-30m``.

    Raises:
        ValueError: it is none; the message says how to write one.
    """
    bare = text.strip().lower()
    sign = -1 if bare.startswith("-") else 1
    if bare.startswith(("+", "-")):
        bare = bare[1:].strip()
    if not _LENGTH.fullmatch(bare):
        raise ValueError(f"{shortened(text)} is no length of time; write one as '90s', '1h 30m', '2 days'")
    seconds = 0.0
    for number, unit in re.findall(_PART, bare):
        if unit not in _SECONDS:
            raise ValueError(f"{shortened(unit)} is no unit of time; there are s, m, h, d and w, or their whole names")
        seconds += float(number) * _SECONDS[unit]
    try:
        return timedelta(seconds=sign * seconds)
    except OverflowError:
        raise ValueError(f"{shortened(text)} is too long") from None
