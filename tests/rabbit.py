"""A RabbitMQ of the tests' own: on loopback, on free ports, with a home, a node name and an epmd of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import amqp
import pytest

from celery_delayq.embedded import free_port

from .ports import quiet_port

#: Where packages put it. (The command on the path may insist on a user of its own.)
FOLDERS = ["/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/usr/local/sbin", *os.get_exec_path()]

#: Seconds for it to start in, on a machine that does much else.
PATIENCE = 150.0


def program() -> str:
    """The server that is here; a test that needs one is skipped where there is none, and fails so in CI."""
    for folder in FOLDERS:
        found = Path(folder, "rabbitmq-server")
        if os.access(found, os.X_OK) and shutil.which("epmd"):
            return str(found)
    missing = "no RabbitMQ: apt install rabbitmq-server"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


class RabbitServer:
    """One RabbitMQ and its epmd, as a context manager.

    Attributes:
        port: where it listens on 127.0.0.1.
        folder: all that it keeps; removed at the end.
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="delayq-rabbit-")
        self.port = quiet_port()
        self._node = f"delayq{self.port}@localhost"
        self._epmd_port = quiet_port()
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return {
            **kept,
            "HOME": self.folder,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": f"{self.folder}/data",
            "RABBITMQ_LOG_BASE": f"{self.folder}/log",
            "RABBITMQ_CONF_ENV_FILE": f"{self.folder}/none",
            "RABBITMQ_CONFIG_FILE": f"{self.folder}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{self.folder}/plugins",
            # One scheduler is enough, and none that spins: the tests have few cores.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        }

    def start(self) -> None:
        """Start it, again with what it held if it was stopped, and wait until it talks."""
        server = program()
        environment = self._environment()
        epmd = ["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        with Path(self.folder, "output.log").open("ab") as log:
            for command in (epmd, [server]):
                self._processes.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        cwd=self.folder,
                        start_new_session=True,
                    )
                )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self._processes[-1].poll() is not None or time.monotonic() > deadline:
                said = Path(self.folder, "output.log").read_text(errors="replace")[-3000:]
                self.close()
                raise RuntimeError(f"RabbitMQ did not start:\n{said}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        connection = amqp.Connection(f"127.0.0.1:{self.port}", connect_timeout=1, read_timeout=5)
        try:
            connection.connect()
        except (OSError, amqp.AMQPError):
            return False
        connection.close()
        return True

    def kill(self) -> None:
        """End it at once, as if the power went; what it wrote down stays for :meth:`start`."""
        while self._processes:
            process = self._processes.pop()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def control(self, *arguments: str) -> None:
        """Run ``rabbitmqctl``."""
        command = [str(Path(program()).with_name("rabbitmqctl")), "-n", self._node, *arguments]
        subprocess.run(command, env=self._environment(), check=True, capture_output=True, timeout=PATIENCE)

    def await_written(self, queue: str) -> None:
        """Wait until a quorum queue survives a kill: RabbitMQ 3.10 writes down its name some time after it is there."""
        deadline = time.monotonic() + PATIENCE
        while not any(queue.encode() in names.read_bytes() for names in Path(self.folder).rglob("names.dets")):
            assert time.monotonic() < deadline, f"{queue} was never written"
            time.sleep(0.1)

    def pause(self, *, resume: bool = False) -> None:
        """Let it hang, as a machine that swaps; or go on."""
        os.killpg(self._processes[-1].pid, signal.SIGCONT if resume else signal.SIGSTOP)

    @contextmanager
    def ended_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def end_after(self, users: Path, notes: Path) -> None:
        """Leave it to a shell, which ends it and removes *notes* when nobody holds a lock on *users* any more."""
        ends = [f"kill -s KILL -- -{process.pid}" for process in self._processes]
        script = f"flock -x {users} true; {'; '.join(ends)}; rm -rf {self.folder} {notes}"
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._processes.append(subprocess.Popen(["sh", "-c", script], start_new_session=True, **quiet))  # type: ignore[call-overload]
        for process in self._processes:
            process.returncode = 0  # no longer for us to wait for

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> RabbitServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@contextmanager
def shared(folder: Path) -> Iterator[str]:
    """The URL of one server for all test processes that name this *folder*; it ends with the last of them.

    Each of them holds a lock, which ends with it however it ends; a shell waits for all to be free, then ends the
    server.
    """
    program()
    with (folder / "rabbit.users").open("ab") as users, (folder / "rabbit.start").open("ab") as start:
        fcntl.flock(users, fcntl.LOCK_SH)
        fcntl.flock(start, fcntl.LOCK_EX)
        notes = folder / "rabbit.json"
        if not notes.exists():
            server = RabbitServer()
            with server.ended_on_failure():
                server.start()
                server.end_after(Path(users.name), notes)
            notes.write_text(json.dumps(server.url))
        fcntl.flock(start, fcntl.LOCK_UN)
        yield json.loads(notes.read_text())
