"""What a check has found, and how bad that is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Level(str, Enum):
    """How bad a finding is."""

    OK = "ok"
    #: Nobody lets us look; that is no fault.
    UNKNOWN = "unknown"
    #: Works today; something will go wrong, or goes worse than it could.
    WARNING = "warning"
    #: Tasks are late, refused, or can be lost, now.
    BROKEN = "broken"

    @property
    def exit_code(self) -> int:
        """What a program that found this, and nothing worse, ends with."""
        return {"warning": 1, "broken": 2}.get(self.value, 0)


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Attributes:
        check: the name of the check; empty until somebody puts it in.
        level: how bad it is.
        text: what was found.
        fix: what to do; empty where nothing has to be done.
    """

    check: str
    level: Level
    text: str
    fix: str

    def of(self, check: str) -> Finding:
        """The same, of that check."""
        return replace(self, check=check)


def ok(text: str) -> Finding:
    """All is well."""
    return Finding("", Level.OK, text, "")


def unknown(text: str, fix: str = "") -> Finding:
    """It cannot be seen."""
    return Finding("", Level.UNKNOWN, text, fix)


def warning(text: str, fix: str) -> Finding:
    """It works, but."""
    return Finding("", Level.WARNING, text, fix)


def broken(text: str, fix: str) -> Finding:
    """It does not work, or loses what it should keep."""
    return Finding("", Level.BROKEN, text, fix)
