"""Celery's own integration tests, run with and without celery_delayq. Not part of a plain ``pytest``."""
