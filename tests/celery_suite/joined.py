"""A pytest plugin: every app that Celery's test fixtures make gets a ``DelayQ``.

Loaded by ``run.py`` with ``-p joined``; Celery's own test files stay as they are.
"""

from __future__ import annotations

from typing import Any

import celery.contrib.testing.app as celery_testing
import pytest
from celery import Celery

from celery_delayq import DelayQ
from celery_delayq.dispatcher import Dispatcher

_stock_app = celery_testing.TestApp
_stock_start = Dispatcher.start
_dispatchers: list[Dispatcher] = []


def _joined_app(*args: Any, **options: Any) -> Celery:
    app = _stock_app(*args, **options)
    DelayQ(app)
    return app


def _noted_start(dispatcher: Dispatcher) -> None:
    _dispatchers.append(dispatcher)
    _stock_start(dispatcher)


def pytest_configure() -> None:
    celery_testing.TestApp = _joined_app
    Dispatcher.start = _noted_start  # type: ignore[method-assign]  # the real one, and a note of who it was


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tasks really waited with us: zero would prove nothing."""
    moved = sum(dispatcher.counts.moved for dispatcher in _dispatchers)
    errors = sum(dispatcher.counts.errors for dispatcher in _dispatchers)
    if moved:
        terminalreporter.ensure_newline()
        terminalreporter.write_line(f"celery_delayq: {moved} delayed tasks were dispatched, with {errors} errors")
