"""How late a task started, on the span that OpenTelemetry's Celery instrumentation has opened for its run.

Its trace needs no help of ours: the instrumentation puts its context into the message's headers, and those wait too.
Nothing is imported here that the process has not imported itself; without OpenTelemetry this is a look into a dict.
"""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from typing import Any

from celery.signals import task_postrun, task_prerun

from .message import DUE_PROPERTY, scheduled_for

#: Attributes of the span: the time that was asked for, ISO 8601; and how long (s) after it the run began.
DUE, LATENESS = "celery.delayq.due", "celery.delayq.lateness_seconds"


def join() -> None:
    """From now on mark spans, of all apps of the process. A second call changes nothing.

    At both ends of a run, since the instrumentation may listen to these signals before us or after us: then there is no
    span yet at the beginning, or none any more at the end.
    """
    task_prerun.connect(_mark)
    task_postrun.connect(_mark)


def _mark(task: Any = None, **_: Any) -> None:
    sdk = sys.modules.get("opentelemetry.sdk.trace")
    if sdk is None or task is None or DUE_PROPERTY not in (getattr(task.request, "properties", None) or {}):
        return  # nobody traces, or it has not waited
    span = sdk.trace_api.get_current_span()
    # Not the span of somebody else around the run, who opened it in this process.
    if not isinstance(span, sdk.Span) or span.kind is not sdk.trace_api.SpanKind.CONSUMER or not span.is_recording():
        return
    due = scheduled_for(task.request)
    if due is not None and span.start_time is not None:
        began = datetime.fromtimestamp(span.start_time / 1e9, timezone.utc)
        span.set_attributes({DUE: due.isoformat(), LATENESS: (began - due).total_seconds()})
