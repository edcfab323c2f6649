"""An app whose workers apply the rules beside their tasks."""

import os

from celery import Celery

from celery_delayq import DelayQ

REDIS = os.environ.get("BROKER_URL", "redis://localhost:6379/0")

app = Celery("tasks", broker=REDIS, backend=REDIS)
app.conf.delayq_rules = "rules.hjson"
app.conf.task_acks_late = True  # so that no event is lost with a worker: see docs/rules.md
DelayQ(app)


@app.task
def treat(plant, product):
    return {"plant": plant, "product": product, "parts": len(plant) * product}


@app.task
def report(product, parts):
    return f"product {product} has {parts} parts"
