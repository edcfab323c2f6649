"""A real ``celery worker`` as a process of its own, that never outlives its block."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import IO

#: How long (s) a worker may take to finish what it has in hand.
STOP_TIMEOUT = 10.0

#: Lines of the worker's log that an error shows.
TAIL = 15


class Worker:
    """The demo's worker.

    Args:
        folder: where it runs. Not where the user is: modules that lie there must not stand in for installed ones.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes]
        self._log: IO[bytes]

    def __enter__(self) -> Worker:
        # A file without a name: it goes when the last process that has it open goes, however that ends.
        self._log = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "celery", "-A", "celery_delayq.demo.tasks", "worker", "-n", "demo@localhost"]
        command += ["--pool", "threads", "--concurrency", "4", "--without-gossip", "--without-mingle", "-l", "WARNING"]
        self._process = subprocess.Popen(
            command,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for the demo, which then ends the worker
        )
        return self

    @property
    def exit_code(self) -> int | None:
        """None as long as it runs."""
        return self._process.poll()

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        self._log.seek(max(self._log.seek(0, os.SEEK_END) - 10_000, 0))
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-TAIL:])

    def stop(self) -> None:
        """End it as a deployment would: no new tasks, those in hand are finished."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
