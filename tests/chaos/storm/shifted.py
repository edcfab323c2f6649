"""Runs a module under a clock that faketime shifts: ``python -m tests.chaos.storm.shifted module arguments``.

Shifted is the wall clock only; timeouts count on the monotonic one. libfaketime 0.9.10 then refuses ``time.sleep`` from
Python 3.11 on, which sleeps until a monotonic time; so it is replaced before anybody has imported it.
"""

from __future__ import annotations

import runpy
import select
import sys
import time


def sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


if __name__ == "__main__":
    time.sleep = sleep
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
