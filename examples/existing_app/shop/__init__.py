"""A shop that has used Celery for years."""

from .celery import app

__all__ = ["app"]
