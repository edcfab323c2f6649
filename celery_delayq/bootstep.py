"""The dispatcher's place in a worker: wiring only."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from .dispatcher import Dispatcher


class DispatcherStep(bootsteps.StartStopStep):
    """Runs the app's dispatcher for as long as the worker lives.

    A step of the worker and not of its consumer, which starts anew with each lost broker connection. After the pool and
    the embedded beat (``-B``), so that the children of a prefork pool and beat's process are forked before our thread
    begins: a child may inherit a lock that the thread holds at that moment, and then waits for it forever.
    """

    requires = ("celery.worker.components:Pool", "celery.worker.components:Beat")
    label = "DelayQ"
    conditional = True

    def __init__(self, worker: Any, no_delayq_dispatch: bool = False, **options: Any) -> None:
        self._wanted = not no_delayq_dispatch
        super().__init__(worker, **options)

    def include_if(self, worker: Any) -> bool:
        # The settings are validated here in any case: a wrong one ends the start with its name, not the first publish.
        return bool(worker.app.delayq.settings.dispatch and self._wanted and worker.app.delayq.can_dispatch)

    def create(self, worker: Any) -> Dispatcher:
        dispatcher: Dispatcher = worker.app.delayq.dispatcher()
        return dispatcher

    def info(self, worker: Any) -> dict[str, Any]:
        return {"delayq": vars(self.obj.counts)} if self.obj else {}
