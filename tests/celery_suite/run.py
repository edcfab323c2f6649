"""Celery's own integration tests, first with stock Celery, then with ``DelayQ(app)`` in every app of theirs.

    python tests/celery_suite/run.py [-k EXPRESSION …]

Downloads the source of the installed Celery version from PyPI into a temporary folder, starts a Redis of its own for
each of the two runs, and compares. Exit status 1 if a test passes with stock Celery and fails with us.
Needs the packages of Celery's ``requirements/test-integration.txt``; ``tox -e celery-suite`` installs them. Takes
about as long as the suite does, twice.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree  # of a report that we have just had written
from pathlib import Path

import celery

from celery_delayq.embedded import RedisServer, servers

FILES = ("test_tasks.py", "test_canvas.py")

#: Tests that must fail with celery_delayq, each with its reason. Any other failure counts.
EXPECTED: dict[str, str] = {}


def download(folder: Path) -> Path:
    """Fetch and unpack the source of the installed Celery; return the folder that holds its ``t`` package alone.

    Its ``celery`` package stays out, so that the installed one is tested.
    """
    requirement = f"celery=={celery.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", requirement]
    subprocess.run([*pip, "--dest", str(folder)], check=True)
    (archive,) = folder.glob("celery-*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    for path in unpacked.iterdir():
        if path.is_dir() and path.name != "t":
            path.rename(folder / f"unused-{path.name}")
    return unpacked


def run(source: Path, report: Path, plugin: str | None, options: list[str]) -> tuple[dict[str, str], str]:
    """Run the tests; return test -> "passed", "skipped" or how it failed, and the last lines that pytest printed."""
    program = list(servers().values())[-1]
    with RedisServer(program) as server:
        environment = {
            **os.environ,
            "TEST_BROKER": server.url(),
            "TEST_BACKEND": server.url(1),
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(server.port),
            "PYTHONPATH": str(Path(__file__).parent),
        }
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", f"--junitxml={report}", "-p", "no:cacheprovider"]
        if plugin:
            command += ["-p", plugin]
        command += [f"t/integration/{name}" for name in FILES] + options
        done = subprocess.Popen(command, cwd=source, env=environment, stdout=subprocess.PIPE, text=True)
        lines = []
        for line in done.stdout or ():
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
        if done.wait() not in (0, 1):
            raise SystemExit(f"pytest itself failed with status {done.returncode}")
    return outcomes(report), "".join(lines[-60:])


def outcomes(report: Path) -> dict[str, str]:
    """Read pytest's report."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{(case.get('classname') or '').removeprefix('t.integration.')}.{case.get('name')}"
        bad = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped") is not None
        found[name] = (bad[0].get("message") or "failed") if bad else "skipped" if skipped else "passed"
    return found


def main(options: list[str]) -> int:
    """Run both ways and compare."""
    if not servers():
        raise SystemExit("no redis-server found: install Redis 6.2 or newer")
    with tempfile.TemporaryDirectory(prefix="delayq-suite-") as name:
        folder = Path(name)
        source = download(folder)
        print(f"== celery {celery.__version__}, stock", flush=True)
        stock, _ = run(source, folder / "stock.xml", None, options)
        print(f"== celery {celery.__version__}, with DelayQ(app)", flush=True)
        joined, said = run(source, folder / "joined.xml", "joined", options)
    tally = {word: [list(way.values()).count(word) for way in (stock, joined)] for word in ("passed", "skipped")}
    failed = [{test for test, outcome in way.items() if outcome not in tally} for way in (stock, joined)]
    ours = sorted(failed[1] - failed[0])
    print(f"\n{len(stock)} tests; passed, skipped, failed:")
    print(f"  stock:  {tally['passed'][0]}, {tally['skipped'][0]}, {len(failed[0])}")
    print(f"  DelayQ: {tally['passed'][1]}, {tally['skipped'][1]}, {len(failed[1])}")
    for test in sorted(failed[0]):
        print(f"  fails stock{' and with DelayQ' if test in failed[1] else ' only'}: {test}")
    for test in ours:
        print(f"  fails only with DelayQ{' (expected: ' + EXPECTED[test] + ')' if test in EXPECTED else ''}: {test}")
        print(f"    {joined[test].splitlines()[0]}")
    for test in sorted(set(stock) ^ set(joined)):
        print(f"  was not run both ways: {test}")
    moved = re.search(r"celery_delayq: (\d+) tasks dispatched", said)
    print(f"  {moved.group(0) if moved else 'celery_delayq dispatched nothing: the comparison proves nothing'}")
    unexpected = [test for test in ours if test not in EXPECTED]
    return 1 if unexpected or not moved or moved.group(1) == "0" else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
