"""The command line of a storm."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from .cast import POOLS
from .participants import faketime
from .plan import KILLS_OF_A_DECK
from .report import as_json, as_markdown
from .run import Storm, Wish


def read(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.storm",
        description="Faults of every kind hit producers, workers, dispatchers and Redis while tasks fall due. "
        "Exits 1 if a promise was broken.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--tasks", type=int, default=200_000, help="acknowledged tasks, at least")
    parser.add_argument(
        "--kills", type=int, default=300, help=f"kills, at least; in every {KILLS_OF_A_DECK} all kinds of faults come"
    )
    parser.add_argument("--seed", type=int, default=1, help="fixes the faults, their victims and their times")
    parser.add_argument("--pace", type=float, default=250.0, help="tasks a second")
    parser.add_argument("--every", type=float, default=1.25, help="seconds from one fault to the next, on average")
    parser.add_argument(
        "--countdown", type=float, nargs=2, default=(12.0, 25.0), help="seconds that a task waits, from and to"
    )
    parser.add_argument(
        "--relay", choices=["redis", "rabbitmq"], help="relay mode: the broker is another server; else direct mode"
    )
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=POOLS, help="of the workers, one each")
    parser.add_argument(
        "--stock-patience", type=float, default=60.0, help="seconds for the workers to run what is ready at the end"
    )
    parser.add_argument("--keep", action="store_true", help="leave logs and ledgers there also if all is well")
    parser.add_argument("--report", type=Path, action="append", default=[], help="a file to write, .md or .json")
    return parser.parse_args(arguments)


def main() -> int:
    options = read()
    if faketime() is None:
        print("no library of faketime (apt install faketime): all clocks are right", flush=True)
        if os.environ.get("CI"):
            return 2
    # However it is ended, what it has started is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    folder = Path(tempfile.mkdtemp(prefix="delayq-storm-"))
    wish = Wish(
        options.tasks,
        options.kills,
        options.seed,
        options.pace,
        options.every,
        tuple(options.countdown),
        options.relay,
        options.stock_patience,
        tuple(options.pools),
    )
    good = False
    try:
        outcome = Storm(wish, folder, say).run()
        good = outcome.verdict.is_good
        (folder / "events").write_text("".join(f"{at:.3f} {what}\n" for at, what in outcome.events))
        (folder / "taken").write_text("".join(f"{id} {times}\n" for id, times in outcome.taken.items()))
    finally:
        if good and not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            say(f"logs and ledgers are left in {folder}")
    print(as_markdown(outcome))
    for path in options.report:
        path.write_text(as_json(outcome) if path.suffix == ".json" else as_markdown(outcome))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
