"""Whether a dispatcher lives, as those see it who put: a job that nobody will hand over should not wait in silence."""

from __future__ import annotations

import logging
import threading
from time import monotonic

from .clock import SECOND_US

logger = logging.getLogger(__name__)

#: After so long (s) without a sign of life no dispatcher lives; or after so many poll intervals, if that is more. One
#: gives a sign at each poll, every second by default, and another takes over within two. So it is not for them that we
#: wait half a minute: it is for deploys that stop all workers before they start them again.
SILENCE, SILENT_POLLS = 30.0, 3

#: How often (s) a process says it.
REMINDER = 60.0


class Liveness:
    """What one process has found of it.

    Attributes:
        silence_us: without any sign of life for longer, no dispatcher lives.
        refuses: puts store nothing then; the caller publishes the stock way.
        unattended: how many jobs were put, or refused, while no dispatcher lived.
    """

    def __init__(self, max_poll_interval: float, refuses: bool = False) -> None:
        self.silence_us = round(max(SILENCE, SILENT_POLLS * max_poll_interval) * SECOND_US)
        self.refuses = refuses
        self.unattended = 0
        self._untold = 0
        self._told = -REMINDER
        self._lock = threading.Lock()

    def miss(self, silent_us: int, jobs: int, *, refused: bool) -> None:
        """Note that no dispatcher lived when so many *jobs* were put, or refused; say it, once a minute.

        Args:
            silent_us: since the last sign of life; -1: there never was one.
        """
        with self._lock:
            self.unattended += jobs
            self._untold += jobs
            if monotonic() - self._told < REMINDER:
                return
            self._told, untold, self._untold = monotonic(), self._untold, 0
        since = "yet" if silent_us < 0 else f"for {silent_us / SECOND_US:.0f} s"
        logger.warning(
            "no dispatcher has been seen in this Redis %s: %s %s; start a worker that has celery_delayq",
            since,
            f"{untold} delayed task{'s'[: untold != 1]}",
            "published the stock way" if refused else "put, to wait until one runs",
        )
