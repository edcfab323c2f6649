"""Where revoking reaches what waits: in the broadcast that ``revoke`` is, wherever it comes from.

``AsyncResult.revoke``, ``GroupResult.revoke``, ``app.control.revoke`` and ``terminate``, and the command
``celery control`` all end in ``app.control.broadcast``. Workers know nothing of a task that waits in Redis, so we take
it back there; then Celery goes its own way, for what was handed over already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery.utils.functional import maybe_list
from celery.utils.imports import instantiate

if TYPE_CHECKING:
    from celery import Celery
    from celery.app.control import Control


def join(app: Celery) -> None:
    """Make *app* revoke through us, whether or not ``app.control`` exists yet. A second call changes nothing."""
    existing = vars(app).get("control")
    if existing is not None:
        _join(existing)
    elif not isinstance(app.control_cls, JoinedControl):
        app.control_cls = JoinedControl(app.control_cls)


class JoinedControl:
    """Stands for an app's ``control_cls`` until ``app.control`` is first used; then makes that one, joined.

    A class of its own and not a closure, so that an app can still be pickled.
    """

    def __init__(self, control_cls: Any) -> None:
        self.control_cls = control_cls

    def __call__(self, app: Celery) -> Any:
        control = instantiate(self.control_cls, app=app)
        if getattr(app, "delayq", None) is not None:
            _join(control)
        return control


class _Joined:
    """Mixed into the class of ``app.control``."""

    app: Celery

    def broadcast(self, command: str, arguments: Mapping[str, Any] | None = None, *args: Any, **options: Any) -> Any:
        """Take back what waits, if *command* revokes; then broadcast, also if that has failed."""
        try:
            _take_back(self.app, command, {**(arguments or {}), **options})
        finally:
            replies = super().broadcast(command, arguments, *args, **options)  # type: ignore[misc]  # Control's
        return replies


def _join(control: Control) -> None:
    cls = type(control)
    if not issubclass(cls, _Joined):
        control.__class__ = type(cls.__name__, (_Joined, cls), {"__module__": cls.__module__})


def _take_back(app: Celery, command: str, arguments: dict[str, Any]) -> None:
    """Cancel what waits and is meant by a control command; whichever workers that is addressed to."""
    if command in ("revoke", "terminate"):
        ids = [id for id in maybe_list(arguments.get("task_id")) or () if isinstance(id, str) and id]
        if ids and app.delayq.home.is_there:
            app.delayq.cancel(*ids)
    elif command == "revoke_by_stamped_headers":
        stamps = _stamps_of(arguments.get("headers"))
        if stamps and app.delayq.home.is_there:
            app.delayq._cancel_stamped(stamps)


def _stamps_of(headers: object) -> dict[str, Any]:
    """As Celery's worker reads the headers: a mapping, or "name=value" words from a command line."""
    if isinstance(headers, Mapping):
        return dict(headers)
    words = [word.split("=") for word in headers if "=" in word] if isinstance(headers, list) else ()
    return {word[0]: word[1] for word in words}
