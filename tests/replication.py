"""A master with replicas under Sentinels, all processes of one's own: to be killed, stopped and failed over."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis

from celery_delayq.embedded import RedisServer, free_port, servers

#: The master's name.
MASTER = "main"

#: How long (s) anything here may take to become true.
PATIENCE = 60.0


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for *condition*."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE:g} seconds in vain: {what}")
        time.sleep(0.02)


class Server(RedisServer):
    """A Redis that can also hang."""

    def hang(self) -> None:
        """SIGSTOP: it answers nothing, and its connections stay open."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT; nothing, if it does not run."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def follow(self, master: RedisServer) -> None:
        """Start it, empty, as a replica of *master*."""
        self._options = [*self._options[:-3], "--replicaof", "127.0.0.1", str(master.port)]
        self.start()

    def close(self) -> None:
        self.go_on()
        super().close()


class Sentinel:
    """One Sentinel process, impatient: a server that is silent for a second is down."""

    def __init__(self, program: str, master: RedisServer, quorum: int) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="delayq-sentinel-")
        config = Path(self._folder.name, "sentinel.conf")
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self._folder.name}\nlogfile sentinel.log\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} {quorum}\n"
            f"sentinel down-after-milliseconds {MASTER} 1000\n"
            f"sentinel failover-timeout {MASTER} 2000\n"
        )
        self._process = subprocess.Popen([program, str(config)], stdin=subprocess.DEVNULL, start_new_session=True)
        self.client = redis.Redis(port=self.port, decode_responses=True)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def state(self) -> dict[str, Any]:
        """What it knows of the master; nothing yet, just after its start."""
        try:
            return dict(self.client.sentinel_masters().get(MASTER, {}))
        except redis.ConnectionError:
            return {}

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self.client.close()
        self._folder.cleanup()


class Replicated:
    """A context manager: a master, its replicas, and Sentinels that know them all.

    Args:
        replicas, sentinels: how many.
        program: the server; by default the newest one that is here.

    Raises:
        FileNotFoundError: there is no ``redis-sentinel``, or no server.
    """

    def __init__(self, replicas: int = 1, sentinels: int = 1, program: str | None = None) -> None:
        self._replicas = replicas
        self._sentinels = sentinels
        self._program = program or next(reversed(servers().values()), None)
        self._stack = ExitStack()
        self.servers: list[Server] = []
        self.sentinels: list[Sentinel] = []

    def __enter__(self) -> Replicated:
        sentinel = shutil.which("redis-sentinel")
        if sentinel is None:
            raise FileNotFoundError("no redis-sentinel: apt install redis-sentinel")
        with ExitStack() as stack:
            # The last three options are those that follow() exchanges.
            options = ["--repl-diskless-sync-delay", "0", "--replicaof", "no", "one"]
            for _ in range(1 + self._replicas):
                self.servers.append(stack.enter_context(Server(self._program, options)))
                options = [*options[:-2], "127.0.0.1", str(self.servers[0].port)]
            self._clients = {server.port: stack.enter_context(server.client()) for server in self.servers}
            quorum = self._sentinels // 2 + 1
            for _ in range(self._sentinels):
                self.sentinels.append(Sentinel(sentinel, self.servers[0], quorum))
                stack.callback(self.sentinels[-1].close)
            until(self._complete, "the Sentinels know all")
            until(lambda: self.client().wait(self._replicas, 1000) == self._replicas, "all replicas follow")
            self._stack = stack.pop_all()
        return self

    def _complete(self) -> bool:
        states = [sentinel.state() for sentinel in self.sentinels]
        known = {(state.get("num-slaves"), state.get("num-other-sentinels")) for state in states}
        return known == {(self._replicas, self._sentinels - 1)}

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The broker URL."""
        return ";".join(f"sentinel://127.0.0.1:{sentinel.port}/0" for sentinel in self.sentinels)

    @property
    def master(self) -> Server:
        """The server that the first living Sentinel calls the master."""
        state = next(sentinel for sentinel in self.sentinels if sentinel.alive).state()
        return next(server for server in self.servers if server.port == int(state["port"]))

    def client(self, server: RedisServer | None = None) -> redis.Redis:
        """A client of that server, by default of the master."""
        return self._clients[(server or self.master).port]

    def fail_over(self) -> None:
        """Have a Sentinel promote a replica while the master lives; returns at once."""
        self.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", MASTER)

    def await_another(self, old: RedisServer) -> None:
        """Wait until the Sentinels have made another server than *old* the master."""
        until(lambda: self.master is not old, "another server is the master")
