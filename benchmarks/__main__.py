"""``python -m benchmarks``: run all, or those that are named, and print a table."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from . import (
    bulk,
    burst,
    cancelled,
    consumers,
    failover,
    fleet,
    lateness,
    leases,
    memory,
    observability,
    peers,
    precision,
    publish,
    rules,
    runs,
    scaling,
    storage,
    throughput,
    transfer,
    verbs,
    walk,
    worker_burst,
    zset,
)
from .circumstances import ROOT, named
from .conditions import Conditions, newest_server
from .document import RESULTS, write
from .report import Results, Row, table
from .results import add, load
from .run import Run

BENCHMARKS: dict[str, Callable[[Conditions], Results]] = {
    "publish": publish.run,
    "bulk": bulk.run,
    "burst": burst.run,
    "worker-burst": worker_burst.run,
    "scaling": scaling.run,
    "throughput": throughput.run,
    "walk": walk.run,
    "storage": storage.run,
    "transfer": transfer.run,
    "runs": runs.run,
    "cancelled": cancelled.run,
    "memory": memory.run,
    "lateness": lateness.run,
    "precision": precision.run,
    "fleet": fleet.run,
    "failover": failover.run,
    "observability": observability.run,
    "leases": leases.run,
    "zset": zset.run,
    "verbs": verbs.run,
    "consumers": consumers.run,
    "rules": rules.run,
}

#: Run only where they are named: they take long, and much memory, or fetch other people's packages.
ON_REQUEST: dict[str, Callable[[Conditions], Results]] = {"ten-million": verbs.run_ten_million, "peers": peers.run}


def main() -> int:
    """Run; the exit code says whether every target was met."""
    chosen = _chosen()
    if chosen.json:
        load(chosen.json)  # a file that cannot be read is told now, not after an hour
    signal.signal(signal.SIGTERM, _break_off)
    run = Run.of(Conditions(chosen.redis or newest_server(), chosen.quick, chosen.environments), _command(chosen))
    rows: list[Row] = []
    broken_off = False
    for name in chosen.names or BENCHMARKS:
        print(f"{name} …", end="", file=sys.stderr, flush=True)
        try:
            outcome = run.measure((BENCHMARKS | ON_REQUEST)[name])
        except KeyboardInterrupt:
            print(" broken off", file=sys.stderr)
            broken_off = True
            break
        except Exception as error:  # noqa: BLE001  # the others' figures must not be lost with it
            traceback.print_exc()
            rows.append(Row(name, "FAILED", f"{type(error).__name__}: {error}", "", met=False))
            continue
        print(f" {outcome.circumstances.burden()}", file=sys.stderr)
        rows += outcome.rows
        if chosen.json:
            add(chosen.json, name, outcome)

    if rows:
        rough = "\nA QUICK run: these figures are rough." if chosen.quick else ""
        print(f"{run.machine}\n{named(run.versions)}{rough}\n\n{table(rows)}")
    if chosen.document and chosen.json.exists():
        write(load(chosen.json))
    return 0 if all(row.met is not False for row in rows) and not broken_off else 1


def _break_off(*_: object) -> None:
    """End as Ctrl-C does it: through every `with`, so that servers and workers end with us."""
    raise KeyboardInterrupt


def _command(chosen: argparse.Namespace) -> str:
    """What to type for the same figures; where they are written makes no difference."""
    server = ["--redis", chosen.redis] if chosen.redis else []
    return " ".join(["python -m benchmarks", *chosen.names, *["--quick"] * chosen.quick, *server])


def _chosen() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = f"one or more of: {', '.join(BENCHMARKS)}; and only on request: {', '.join(ON_REQUEST)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--quick", action="store_true", help="a short run with rough figures")
    what = "keep there what each benchmark finds, as soon as it ends; what the file holds of others stays"
    parser.add_argument("--json", type=Path, metavar="FILE", help=what)
    what = f"in the end write README's table, docs/performance.md and its plots; FILE is {RESULTS.relative_to(ROOT)}"
    parser.add_argument("--document", action="store_true", help=what)
    parser.add_argument("--redis", metavar="PROGRAM", help="the server to start; else the newest that is found")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="where `peers` keeps the others' packages")
    chosen = parser.parse_args()
    known = BENCHMARKS | ON_REQUEST
    unknown = set(chosen.names) - set(known)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if chosen.document:
        chosen.json = chosen.json or RESULTS
        if find_spec("matplotlib") is None:
            parser.error("--document draws with matplotlib: pip install -e '.[test,bench]'")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
