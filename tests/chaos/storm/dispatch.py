"""A dispatcher without a worker: ``python -m tests.chaos.storm.dispatch``."""

from __future__ import annotations

import logging

from .project import app

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    app.delayq.dispatcher().run()
