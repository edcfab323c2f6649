"""A dispatcher as a process of its own, to be killed: ``python dispatch.py BROKER_URL``."""

from __future__ import annotations

import logging
import sys

from celery import Celery

from celery_delayq import DelayQ

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    app = Celery(broker=sys.argv[1])
    app.conf.delayq_batch_size = 50  # many calls, so that many are cut off
    DelayQ(app).dispatcher().run()
