"""Times and lengths of time as people write them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import click

from celery_delayq.clock import moment_of
from celery_delayq.errors import shortened
from celery_delayq.lengths import is_length, read_length

_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,6})\d*)?)?\s*(?:([Zz])|([+-])(\d\d):?(\d\d)?)?)?"
)
_EPOCH = re.compile(r"[+-]?\d+(?:\.\d*)?")

#: Smaller numbers (March 1973) are no seconds since the epoch, but a delay whose unit was forgotten.
_LEAST_EPOCH = 100_000_000

EXAMPLES = "'2030-01-02T03:04:05Z' (UTC without an offset), 'in 2h 30m', '10 minutes ago', 'now', or seconds since 1970"


def read_when(text: str, now: datetime) -> datetime:
    """A moment: ISO 8601 (UTC without an offset, as Celery reads it), seconds since the epoch, ``now``, ``in 2h``,
    ``10 minutes ago``.

    Raises:
        ValueError: it is none, or too late to be kept; the message says how to write one.
    """
    bare = " ".join(text.split())
    lower = bare.lower()
    if lower == "now":
        return now
    try:
        if lower.startswith("in "):
            return moment_of(now + read_length(lower[3:]))
        if lower.endswith(" ago"):
            return moment_of(now - read_length(lower[:-4]))
    except OverflowError:
        raise ValueError(f"{shortened(text)} is too far away") from None
    if match := _ISO.fullmatch(bare):
        return moment_of(_from_iso(match))
    if _EPOCH.fullmatch(bare):
        if abs(float(bare)) < _LEAST_EPOCH:
            raise ValueError(f"{bare} would be {bare} seconds since 1970; for a time from now write 'in {bare}s'")
        return moment_of(float(bare))
    if is_length(lower):
        raise ValueError(f"{shortened(text)} is a length of time; write 'in {bare}' or '{bare} ago'")
    raise ValueError(f"{shortened(text)} is no time; write one as {EXAMPLES}")


def _from_iso(match: re.Match[str]) -> datetime:
    year, month, day, hour, minute, second, fraction, _, sign, ahead_hours, ahead_minutes = match.groups()
    ahead = timedelta(hours=int(ahead_hours or 0), minutes=int(ahead_minutes or 0)) * (-1 if sign == "-" else 1)
    numbers = (int(part or 0) for part in (year, month, day, hour, minute, second, (fraction or "").ljust(6, "0")))
    try:
        return datetime(*numbers, tzinfo=timezone(ahead))  # type: ignore[misc, arg-type]  # seven numbers
    except ValueError as error:
        raise ValueError(f"{match.group()!r}: {error}") from None


class When(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A moment, as :func:`read_when` reads it by this machine's clock."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it, or fail with an example."""
        if isinstance(value, datetime):
            return value
        try:
            return read_when(value, datetime.now(timezone.utc))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Length(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A length of time, as :func:`read_length` reads it."""

    name = "length"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it, or fail with an example."""
        if isinstance(value, timedelta):
            return value
        try:
            return read_length(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


WHEN = When()
LENGTH = Length()


def told(moment: datetime, now: datetime) -> str:
    """How far away *moment* is: "in 2d 23h", "5m ago", "now"."""
    seconds = (moment - now).total_seconds()
    length = tell_length(abs(seconds))
    return "now" if length == "0s" else f"in {length}" if seconds > 0 else f"{length} ago"


def tell_length(seconds: float) -> str:
    """A length of time by its two largest units: "2d 23h", "59s"."""
    rest = round(seconds)
    parts: list[str] = []
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        number, rest = divmod(rest, unit)
        if number or parts:
            parts.append(f"{number}{name}" if number else "")
    return " ".join(part for part in parts[:2] if part) or "0s"
