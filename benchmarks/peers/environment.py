"""A virtual environment for each system, made once and kept in a folder that the user is told of."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from celery_delayq.embedded import Version

from .system import System

#: The folder with what runs inside of the environments.
PROGRAMS = Path(__file__).parent / "programs"

#: In each environment: for which requirements it was made. Written last, so that half an environment has none.
STAMP = "made-for.json"

#: How much (characters) is told of what pip or npm says when it fails.
REASON = 160

#: What tells the versions of Python and of the packages that are named.
ASK = """
import platform, sys
from importlib.metadata import version
print(*(f"{name} {version(name)}," for name in sys.argv[1:]), "Python", platform.python_version())
"""


class Unavailable(Exception):
    """A system cannot be had here; the text says why."""


@dataclass(frozen=True)
class Runtime:
    """How to run the programs of one system.

    Attributes:
        command: all but the verb.
        environ: what its environment variables must have besides.
        versions: what was installed, to be told with the figures.
    """

    command: tuple[str, ...]
    environ: dict[str, str]
    versions: str


def default_folder() -> Path:
    """Where environments are kept if nobody says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "celery_delayq" / "benchmarks"


def prepare(system: System, folder: Path, redis_version: Version) -> Runtime:
    """Make the environment of *system* under *folder*, unless it is there.

    Args:
        redis_version: of the server that is measured with; empty if it is not known.

    Raises:
        Unavailable: no such Redis or Python, no npm, or its registry has not what is asked for.
    """
    if redis_version and redis_version < system.oldest_redis:
        raise Unavailable(f"needs Redis {_dotted(system.oldest_redis)} or newer, and this is {_dotted(redis_version)}")
    if not system.requirements:
        return _here(system)
    return _of_node(system, folder) if system.program.endswith(".cjs") else _of_python(system, folder)


def _here(system: System) -> Runtime:
    path = os.pathsep.join([str(PROGRAMS), str(Path(__file__).resolve().parents[2])])
    versions = f"this checkout, {_run([sys.executable, '-c', ASK, 'celery', 'redis'])}"
    return Runtime((sys.executable, str(PROGRAMS / system.program)), {"PYTHONPATH": path}, versions)


def _of_python(system: System, folder: Path) -> Runtime:
    python, home = _python(system.oldest_python), folder / system.name
    inside = str(home / "bin" / "python")
    install = [
        inside,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--retries",
        "1",
        *system.requirements,
    ]
    _make(home, system.requirements, [[python, "-m", "venv", str(home)], install])
    names = [re.split(r"[\[<>=]", requirement)[0] for requirement in system.requirements]
    versions = _run([inside, "-c", ASK, *names])
    return Runtime((inside, str(PROGRAMS / system.program)), {"PYTHONPATH": str(PROGRAMS)}, versions)


def _of_node(system: System, folder: Path) -> Runtime:
    node, npm, home = _program("node"), _program("npm"), folder / system.name
    _make(
        home,
        system.requirements,
        [[npm, "install", "--prefix", ".", "--no-audit", "--no-fund", "--fetch-retries", "1", *system.requirements]],
    )
    packages = home / "node_modules"
    versions = ""
    for requirement in system.requirements:
        name = requirement.partition("@")[0]
        versions += f"{name} {json.loads((packages / name / 'package.json').read_bytes())['version']}, "
    versions += f"Node {_run([node, '--version']).lstrip('v')}"
    return Runtime((node, str(PROGRAMS / system.program)), {"NODE_PATH": str(packages)}, versions)


def _make(home: Path, requirements: Sequence[str], commands: list[list[str]]) -> None:
    """Run *commands* in *home*, unless that was made for these requirements."""
    stamp, wanted = home / STAMP, json.dumps(requirements)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    print(f" making {home} …", end="", file=sys.stderr, flush=True)
    for command in commands:
        _run(command, home)
    stamp.write_text(wanted, encoding="utf-8")


def _run(command: list[str], folder: Path | None = None) -> str:
    """What it prints.

    Raises:
        Unavailable: it fails.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in said if "error" in line.lower()]  # warnings may stand before them
        raise Unavailable(f"{Path(command[0]).name} fails: {'; '.join(errors or said)[:REASON]}")
    return done.stdout.strip()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"no {name} on the path")
    return found


def _python(oldest: tuple[int, int]) -> str:
    """This Python if it is new enough, else the first newer one that is found."""
    if sys.version_info[:2] >= oldest:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for minor in range(oldest[1], oldest[1] + 3):
        name = f"python{oldest[0]}.{minor}"
        # On the path may stand a shim of pyenv for a version that is not chosen, which does not run.
        for candidate in (*pyenv.glob(f"{oldest[0]}.{minor}*/bin/{name}"), shutil.which(name)):
            if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
                return str(candidate)
    raise Unavailable(f"needs Python {_dotted(oldest)} or newer, and none is found")


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
