"""The shop's Celery configuration."""

import os

broker_url = os.environ.get("BROKER_URL", "redis://localhost:6379/0")
result_backend = broker_url
timezone = "Europe/Vienna"

# Slow mails must not hold up payments.
task_routes = {
    "shop.tasks.send_mail": {"queue": "mail"},
    "shop.tasks.charge": {"queue": "payments"},
}

beat_schedule = {
    "drop carts that were left": {
        "task": "shop.tasks.drop_carts",
        "schedule": 2.0,
        # Lets the other work of the moment go first.
        "options": {"countdown": 1},
    },
}
