"""Celery's own integration tests, with stock Celery and with ``DelayQ(app)`` in every app of theirs, side by side.

    python -m tests.celery_suite.run [-k EXPRESSION …]

Downloads the source of the installed Celery version from PyPI into a temporary folder, starts a Redis for each of the
two runs, and compares. Exit status 1 if a test passes with stock Celery and fails with us, for another reason than one
that is written down below. ``tox -e celery-suite`` installs what it needs. Takes 20 minutes, most of which are sleep.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree  # of a report that we have just had written
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import celery

from celery_delayq.embedded import RedisServer, servers

FILES = ("test_tasks.py", "test_canvas.py")


@dataclass
class Way:
    """One of the two runs.

    Attributes:
        name: how it is called in the output.
        plugins: pytest plugins that make the difference.
        outcomes: test -> "passed", "skipped", or how it failed.
        notes: what our plugin has said.
    """

    name: str
    plugins: tuple[str, ...] = ()
    outcomes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, outcome: str) -> int:
        return list(self.outcomes.values()).count(outcome)

    @property
    def failed(self) -> set[str]:
        return {test for test, outcome in self.outcomes.items() if outcome not in ("passed", "skipped")}


def download(folder: Path) -> Path:
    """Fetch and unpack the source of the installed Celery; return the folder that holds its ``t`` package.

    Its ``celery`` package is put aside, so that the installed one is tested.
    """
    requirement = f"celery=={celery.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", requirement]
    subprocess.run([*pip, "--dest", str(folder)], check=True)
    (archive,) = folder.glob("celery-*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    (unpacked / "celery").rename(folder / "celery-put-aside")
    return unpacked


def run(way: Way, source: Path, report: Path, options: list[str]) -> None:
    """Run the tests one way, on a Redis of its own, and print what pytest says."""
    program = list(servers().values())[-1]
    with RedisServer(program) as server:
        environment = {
            **os.environ,
            # As in Celery's own tox.ini: broker and backend share a database, and workers log.
            "TEST_BROKER": server.url(),
            "TEST_BACKEND": server.url(),
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(server.port),
            "WORKER_LOGLEVEL": "INFO",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
        }
        command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", *(option for plugin in way.plugins for option in ("-p", plugin))]
        command += [f"t/integration/{name}" for name in FILES] + options
        with subprocess.Popen(command, cwd=source, env=environment, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                print(f"{way.name:>7} | {line}", end="", flush=True)
                if line.startswith("celery_delayq: "):
                    way.notes.append(line.strip())
        if process.returncode not in (0, 1):
            raise SystemExit(f"{way.name}: pytest itself failed with status {process.returncode}")
    way.outcomes.update(read(report))


def read(report: Path) -> dict[str, str]:
    """The outcomes in pytest's report."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{(case.get('classname') or '').removeprefix('t.integration.')}.{case.get('name')}"
        bad = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped") is not None
        found[name] = (bad[0].get("message") or "failed") if bad else "skipped" if skipped else "passed"
    return found


def compare(stock: Way, ours: Way) -> int:
    """Print how the two differ; return the exit status."""
    print("\n         passed  skipped  failed")
    for way in (stock, ours):
        print(f"{way.name:>7} {way.count('passed'):7} {way.count('skipped'):8} {len(way.failed):7}")
    for test in sorted(stock.failed):
        print(f"fails {'both ways' if test in ours.failed else 'with stock Celery only'}: {test}")
    for test in sorted(ours.failed - stock.failed):
        print(f"fails with DelayQ only: {test}: {ours.outcomes[test].splitlines()[0]}")
    lost = sorted(set(stock.outcomes) ^ set(ours.outcomes))
    for test in lost:
        print(f"ran one way only: {test}")
    print(*(ours.notes or ["celery_delayq: no task was delayed, so this proves nothing"]), sep="\n")
    return 1 if lost or not ours.notes or ours.failed - stock.failed else 0


def main(options: list[str]) -> int:
    """Run both ways and compare."""
    if not servers():
        raise SystemExit("no redis-server found: install Redis 6.2 or newer")
    stock, ours = Way("stock"), Way("delayq", plugins=("joined",))
    with tempfile.TemporaryDirectory(prefix="delayq-suite-") as name, ThreadPoolExecutor(2) as threads:
        folder = Path(name)
        source = download(folder)
        runs = [threads.submit(run, way, source, folder / f"{way.name}.xml", options) for way in (stock, ours)]
        for done in runs:
            done.result()
    print(f"\ncelery {celery.__version__}: {len(stock.outcomes)} tests of {', '.join(FILES)}")
    return compare(stock, ours)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
