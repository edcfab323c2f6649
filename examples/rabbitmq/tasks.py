"""An app on RabbitMQ, with a quorum queue behind a direct exchange, whose delayed tasks wait in a Redis."""

import os

from celery import Celery
from kombu import Exchange, Queue

from celery_delayq import DelayQ

RABBITMQ = os.environ.get("BROKER_URL", "amqp://guest:guest@localhost:5672//")
REDIS = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

app = Celery("tasks", broker=RABBITMQ, backend=REDIS)
app.conf.delayq_store_url = REDIS
app.conf.task_default_queue = "greetings"
app.conf.task_queues = [
    Queue("greetings", Exchange("greetings", type="direct"), "hello", queue_arguments={"x-queue-type": "quorum"})
]
DelayQ(app)


@app.task
def greet(name):
    return f"Hello {name}"
