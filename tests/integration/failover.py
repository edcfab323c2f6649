"""A master with replicas under Sentinels, all processes of one's own, to be killed, stopped and failed over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import redis

from celery_delayq.embedded import RedisServer, free_port, servers

from .worker import wait_for

MASTER = "main"


class Sentinel:
    """One Sentinel process, impatient: a master is down for it after half a second."""

    def __init__(self, program: str, master_port: int, quorum: int) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="delayq-sentinel-")
        config = Path(self._folder.name, "sentinel.conf")
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self._folder.name}\nlogfile sentinel.log\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {master_port} {quorum}\n"
            f"sentinel down-after-milliseconds {MASTER} 500\n"
            f"sentinel failover-timeout {MASTER} 4000\n"
        )
        self.process = subprocess.Popen([program, str(config)], stdin=subprocess.DEVNULL, start_new_session=True)
        self.client = redis.Redis(port=self.port, decode_responses=True)

    def master_port(self) -> int:
        """Where it says that the master is."""
        return int(self.client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)[1])

    def state(self) -> dict[str, Any]:
        """What it knows of the master."""
        return dict(self.client.sentinel_masters()[MASTER])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        self.client.close()
        self._folder.cleanup()


class Replicated:
    """A context manager: a master, its replicas, and Sentinels that know them all.

    Args:
        replicas, sentinels: how many.
        options: more of the servers' command lines.
    """

    def __init__(self, replicas: int = 1, sentinels: int = 1, options: Sequence[str] = ()) -> None:
        self._replicas = replicas
        self._sentinels = sentinels
        self._options = list(options)
        self._stack = ExitStack()

    def __enter__(self) -> Replicated:
        with ExitStack() as stack:
            program = shutil.which("redis-sentinel")
            if program is None:
                (pytest.fail if os.environ.get("CI") else pytest.skip)("no redis-sentinel: apt install redis-sentinel")
            server = list(servers().values())[-1]
            master = stack.enter_context(RedisServer(server, self._options))
            # A replica that is told its master's first address once, and asks for the data at once.
            follow = ["--replicaof", "127.0.0.1", str(master.port), *self._options]
            self.servers = [master] + [stack.enter_context(RedisServer(server, follow)) for _ in range(self._replicas)]
            stack.callback(self._go_on)
            self.clients = {server.port: stack.enter_context(server.client()) for server in self.servers}
            self.sentinels = []
            for _ in range(self._sentinels):
                self.sentinels.append(Sentinel(program, master.port, self._sentinels // 2 + 1))
                stack.callback(self.sentinels[-1].close)
            wait_for(self._complete, "the Sentinels know all")
            wait_for(lambda: self.clients[master.port].wait(self._replicas, 1000) == self._replicas, "replicas follow")
            self._stack = stack.pop_all()
        return self

    def _complete(self) -> bool:
        try:
            states = [sentinel.state() for sentinel in self.sentinels]
        except (redis.ConnectionError, KeyError):
            return False
        others = self._sentinels - 1
        return all(s["num-slaves"] == self._replicas and s["num-other-sentinels"] == others for s in states)

    def _go_on(self) -> None:
        """What was stopped cannot end otherwise."""
        for server in self.servers:
            if server._process is not None:
                server._process.send_signal(signal.SIGCONT)

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """As Kombu names it."""
        return ";".join(f"sentinel://127.0.0.1:{sentinel.port}/0" for sentinel in self.sentinels)

    @property
    def master(self) -> RedisServer:
        """The server that the first living Sentinel calls the master."""
        (living, *_) = [sentinel for sentinel in self.sentinels if sentinel.process.poll() is None]
        port = living.master_port()
        (found,) = [server for server in self.servers if server.port == port]
        return found

    def client(self) -> redis.Redis:
        """A client of the master."""
        return self.clients[self.master.port]

    def fail_over(self) -> None:
        """Have the Sentinels promote a replica while the master lives; returns at once."""
        self.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", MASTER)


def stop(server: RedisServer) -> None:
    """SIGSTOP: it hangs, and its connections stay open."""
    assert server._process is not None
    server._process.send_signal(signal.SIGSTOP)


def go_on(server: RedisServer) -> None:
    """SIGCONT."""
    assert server._process is not None
    server._process.send_signal(signal.SIGCONT)


class Promotion:
    """A context manager that hears when the Sentinels switch the master.

    Attributes:
        at: that moment (s, monotonic); set once :meth:`wait` has returned.
    """

    def __init__(self, sentinel: Sentinel) -> None:
        self._pubsub = sentinel.client.pubsub(ignore_subscribe_messages=True)
        self._heard = Event()
        self.at = 0.0
        self.events: list[tuple[float, str, str]] = []

    def __enter__(self) -> Promotion:
        self._pubsub.psubscribe("*")
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def _listen(self) -> None:
        with suppress(redis.RedisError, OSError, ValueError):
            for message in self._pubsub.listen():
                self.events.append((time.monotonic(), message["channel"], str(message["data"])))
                if message["channel"] == "+switch-master":
                    self.at = time.monotonic()
                    self._heard.set()

    def wait(self) -> float:
        """Wait for it; return when it was."""
        assert self._heard.wait(60), f"no promotion; {self.events}"
        return self.at

    def __exit__(self, *exc_info: object) -> None:
        self._pubsub.close()
