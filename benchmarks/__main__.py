"""``python -m benchmarks``: run all, or those that are named, and print a table."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
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
from .conditions import Conditions, newest_server
from .report import Results, Row, Series, table

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
}

#: Run only where they are named: they take long, and much memory, or fetch other people's packages.
ON_REQUEST: dict[str, Callable[[Conditions], Results]] = {"ten-million": verbs.run_ten_million, "peers": peers.run}


def main() -> int:
    """Run; the exit code says whether every target was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = f"one or more of: {', '.join(BENCHMARKS)}; and only on request: {', '.join(ON_REQUEST)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--quick", action="store_true", help="a short run with rough figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--redis", metavar="PROGRAM", help="the server to start; else the newest that is found")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="where `peers` keeps the others' packages")
    chosen = parser.parse_args()
    known = BENCHMARKS | ON_REQUEST
    unknown = set(chosen.names) - set(known)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")

    # As Ctrl-C does it: through every `with`, so that servers and workers end with us.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    conditions = Conditions(chosen.redis or newest_server(), chosen.quick, chosen.environments)
    results: list[Row | Series] = []
    for name in chosen.names or BENCHMARKS:
        print(f"{name} …", end="", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            results += known[name](conditions)
        except Exception as error:  # noqa: BLE001  # the others' figures must not be lost with it
            traceback.print_exc()
            results.append(Row(name, "FAILED", f"{type(error).__name__}: {error}", "", met=False))
        print(f" {time.monotonic() - started:.0f} s", file=sys.stderr)

    rows = [result for result in results if isinstance(result, Row)]
    series = [result for result in results if isinstance(result, Series)]
    print(f"{conditions}\n\n{table(rows)}")
    if chosen.json:
        document = {
            "conditions": str(conditions),
            "rows": [row.as_json() for row in rows],
            "series": [line.as_json() for line in series],
        }
        chosen.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
