"""The shop's Celery app."""

from celery import Celery

from celery_delayq import DelayQ

app = Celery("shop", include=["shop.tasks"])
app.config_from_object("shop.settings")
DelayQ(app)
