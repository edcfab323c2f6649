"""Examples in other languages, each in a copy of its own beside a Redis; and what the one for Node needs from npm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import skip_or_fail

from .worker import PATIENCE, ROOT, wait_for

FOLDER = ROOT / "examples" / "node"

#: The oldest that the example says it needs.
OLDEST_NODE = 18


def installed(folder: Path, source: Path = FOLDER) -> Path:
    """A copy of *source* in *folder*, after ``npm ci``. Where that fails, tests are skipped; in CI not."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            skip_or_fail(f"no {program}: apt install nodejs npm")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        skip_or_fail(f"Node {OLDEST_NODE} or newer is needed, not {version}")
    copy = folder / source.name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    command = ["npm", "ci", "--no-audit", "--no-fund", "--fetch-timeout=30000"]
    done = subprocess.run(
        command, cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
    )
    if done.returncode:
        skip_or_fail(f"npm ci fails:\n{done.stdout[-2000:]}")
    return copy


class Program:
    """One program in the background, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def lines(self) -> list[str]:
        """Its whole lines."""
        return self._log.read_text().rpartition("\n")[0].splitlines()

    def said(self, text: str) -> list[str]:
        """The lines that hold *text*."""
        return [line for line in self.lines if text in line]

    def await_lines(self, text: str, times: int = 1) -> None:
        """Wait until so many lines hold *text*; or fail, with what it has said instead."""

        def there() -> bool:
            found = len(self.said(text)) >= times
            if not found and self.process.poll() is not None:
                pytest.fail(f"it ended with {self.process.returncode} before it said {text!r}:\n{self.lines}")
            return found

        wait_for(there, f"{times} lines hold {text!r}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it that signal; wait until it has ended, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


class Programs:
    """An example's programs, on one Redis.

    Args:
        folder: a copy of the example, installed.
        logs: an empty folder for what programs write.
    """

    def __init__(self, folder: Path, url: str, logs: Path) -> None:
        self.folder = folder
        self._logs = logs
        self._count = 0
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
        # `celery` is the one that runs this test, as in a virtual environment that is active.
        self._environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environment |= {"REDIS_URL": url, "DELAYQ_LUA": str(ROOT / "lua"), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, *command: str, code: int = 0) -> str:
        """Run *command* to its end; return what it has written."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    @contextmanager
    def background(self, *command: str) -> Iterator[Program]:
        """*command* in the background; killed with its children if the block does not end it."""
        self._count += 1
        log = self._logs / f"{self._count}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Program(process, log)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Nodes(Programs):
    """Those of the Node example."""

    def program(self, name: str, *arguments: str) -> str:
        """Run one of the example's programs to its end."""
        return self.run("node", f"{name}.js", *arguments)

    def evaluate(self, code: str, **values: Any) -> Any:
        """What JavaScript *code*, the body of an async function, returns, by way of JSON. It has the connection as
        ``redis``, what the client's modules export, and *values*.
        """
        program = f"""
            import {{ withRedis }} from "./delayq/connection.js";
            import {{ CeleryTasks }} from "./delayq/celery.js";
            import {{ AlreadyScheduled, DelayQueue, LeaseLost }} from "./delayq/queue.js";
            const {{ {", ".join(values)} }} = {json.dumps(values)};
            await withRedis(async (redis) => {{
                const answer = await (async () => {{ {code} }})();
                console.log(JSON.stringify(answer ?? null));
            }});
        """
        return json.loads(self.run("node", "--input-type=module", "--eval", program).splitlines()[-1])

    def consumer(self, topic: str, work: float, lease: float, patience: float = 10) -> AbstractContextManager[Program]:
        """A consumer in the background."""
        return self.background("node", "consume.js", topic, *(str(words) for words in (work, lease, patience)))
