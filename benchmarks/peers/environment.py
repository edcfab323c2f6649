"""A virtual environment for each system, made once and kept in a folder that the user is told of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from celery_delayq.embedded import Version

from .system import System

#: The folder with what runs inside of the environments.
PROGRAMS = Path(__file__).parent / "programs"

#: In each environment: for which requirements it was made. Written last, so that half an environment has none.
STAMP = "made-for.json"


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
    program = str(PROGRAMS / system.program)
    if not system.requirements:
        checkout = str(Path(__file__).resolve().parents[2])
        return Runtime((sys.executable, program), {"PYTHONPATH": f"{PROGRAMS}{os.pathsep}{checkout}"}, "this checkout")
    home = folder / system.name
    if system.program.endswith(".cjs"):
        node = _program("node")
        versions = _made(home, system, [[_program("npm"), "install", "--no-audit", "--no-fund", *system.requirements]])
        return Runtime((node, program), {"NODE_PATH": str(home / "node_modules")}, versions)
    python = _python(system.oldest_python)
    inside = str(home / "bin" / "python")
    install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *system.requirements]
    versions = _made(home, system, [[python, "-m", "venv", str(home)], install])
    return Runtime((inside, program), {"PYTHONPATH": str(PROGRAMS)}, versions)


def _made(home: Path, system: System, commands: list[list[str]]) -> str:
    """Run *commands* in *home* if that is not the environment yet; what versions it has."""
    stamp = home / STAMP
    wanted = json.dumps(system.requirements)
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        if system.program.endswith(".cjs"):
            (home / "package.json").write_text('{"private": true}\n', encoding="utf-8")
        print(f" making {home} …", end="", file=sys.stderr, flush=True)
        for command in commands:
            _run(command, home)
        stamp.write_text(wanted, encoding="utf-8")
    return ", ".join(_versions(home, system))


def _run(command: list[str], home: Path) -> None:
    try:
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing said"]
        raise Unavailable(f"{Path(command[0]).name}: {said[-1]}")


def _versions(home: Path, system: System) -> Iterator[str]:
    """Name and version of each of its requirements."""
    for requirement in system.requirements:
        if system.program.endswith(".cjs"):
            name = requirement.partition("@")[0]
            package = json.loads((home / "node_modules" / name / "package.json").read_text(encoding="utf-8"))
            yield f"{name} {package['version']}"
        else:
            name = requirement.partition(">")[0].partition("[")[0]
            code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
            found = subprocess.run(
                [home / "bin" / "python", "-c", code, name], capture_output=True, text=True, check=True
            )
            yield f"{name} {found.stdout.strip()}"


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
