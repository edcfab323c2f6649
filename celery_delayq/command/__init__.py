"""``celery delayq``: see, move and take back what waits, from the command line. A plugin of Celery's own command."""

from __future__ import annotations

from . import changing, dead, dispatching, draining, examining, reading, transferring
from .group import delayq

__all__ = ["changing", "dead", "delayq", "dispatching", "draining", "examining", "reading", "transferring"]
