"""The places of dispatcher and adoption in a worker, and in the worker's remote control: wiring only."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import bootsteps
from celery.worker.control import inspect_command

from . import broker, unacked
from .adoption import Adopting, Adoption
from .clock import SECOND_US, from_us
from .crew import Crew
from .dispatcher import Dispatcher
from .events import Dispatches
from .version import __version__

logger = logging.getLogger(__name__)


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
        worker.delayq_dispatcher = None
        super().__init__(worker, **options)

    def include_if(self, worker: Any) -> bool:
        # The settings are validated here in any case: a wrong one ends the start with its name, not the first publish.
        return bool(worker.app.delayq.settings.dispatch and self._wanted and worker.app.delayq.can_dispatch)

    def create(self, worker: Any) -> Dispatcher | Crew:
        dispatcher: Dispatcher | Crew = worker.app.delayq.dispatcher()
        worker.delayq_dispatcher = dispatcher
        self._dispatches = Dispatches(worker.app, worker.hostname, lambda: _sends_task_events(worker))
        worker.app.delayq.observers.add(self._dispatches)
        return dispatcher

    def stop(self, worker: Any) -> None:
        super().stop(worker)
        worker.app.delayq.finisher.stop()
        worker.app.delayq.observers.remove(self._dispatches)
        self._dispatches.stop()

    terminate = stop

    def info(self, worker: Any) -> dict[str, Any]:
        return {"delayq": vars(self.obj.counts)} if self.obj else {}


class RulesStep(bootsteps.StartStopStep):
    """Watches for events, where ``delayq_rules`` names files, for as long as the worker lives.

    Its threads begin after all that forks, as the dispatcher's. The files are read when the step is made, which is
    before: so a wrong one ends the start, and a pool's children have the signals that tell what their tasks have done.
    """

    requires = (DispatcherStep,)
    label = "DelayQ rules"
    conditional = True

    def __init__(self, worker: Any, **options: Any) -> None:
        self._rules = worker.app.delayq.rules_in_worker()
        super().__init__(worker, **options)

    def include_if(self, worker: Any) -> bool:
        return self._rules is not None

    def create(self, worker: Any) -> Any:
        return self._rules.runner()

    terminate = bootsteps.StartStopStep.stop


class MasterStep(bootsteps.StartStopStep):
    """Has the worker's own connections leave a Redis master that has failed over, when Sentinel says so.

    Else a worker waits for messages from a master that hangs until it hangs no more, and from one that lives on until
    Sentinel demotes it, ten seconds later. After all steps that open a connection or a channel.
    """

    requires = tuple(f"celery.worker.consumer:{step}" for step in ("Events", "Gossip", "Tasks", "Control"))
    label = "DelayQ master"

    def __init__(self, consumer: Any, **options: Any) -> None:
        conf = consumer.app.conf
        if broker.has_sentinels(consumer.app.connection_for_read()):
            conf.broker_transport_options = broker.quick_to_find_a_master(conf.broker_transport_options or {})
            stock = consumer.ensure_connected
            consumer.ensure_connected = lambda connection: stock(broker.asking_often(connection))
        super().__init__(consumer, **options)

    def start(self, consumer: Any) -> None:
        broker.follow_master(consumer.connection)
        if consumer.event_dispatcher is not None:
            # Where the worker says that it leaves, before it connects anew.
            broker.follow_master(consumer.event_dispatcher.connection)


class RecordStep(bootsteps.StartStopStep):
    """Has the worker write down its deliveries with less work, on each new connection."""

    requires = ("celery.worker.consumer:Tasks",)
    label = "DelayQ record"

    def start(self, consumer: Any) -> None:
        unacked.join(consumer.task_consumer.channel)


def _sends_task_events(worker: Any) -> bool:
    """Whether *worker* sends events of tasks at this moment: ``-E``, and what remote control made of it."""
    dispatcher = getattr(getattr(worker, "consumer", None), "event_dispatcher", None)
    return bool(dispatcher and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups))


class AdoptionStep(bootsteps.Step):
    """Lets a worker adopt delayed messages: it gives its consumer another mapping of strategies before it has any."""

    label = "DelayQ adoption"
    conditional = True

    def __init__(self, consumer: Any, **options: Any) -> None:
        consumer.delayq_adoption = None
        super().__init__(consumer, **options)

    def include_if(self, consumer: Any) -> bool:
        def dispatches() -> bool:
            dispatcher: Dispatcher | Crew | None = getattr(consumer.controller, "delayq_dispatcher", None)
            return dispatcher is not None and dispatcher.running

        consumer.delayq_adoption = consumer.app.delayq.adoption(dispatches, lambda: consumer.task_consumer)
        return consumer.delayq_adoption is not None

    def create(self, consumer: Any) -> None:
        consumer.strategies = Adopting(consumer.delayq_adoption, consumer.connection_errors)


class CheckUpStep(bootsteps.Step):
    """Looks once, as the worker starts, at what can be seen cheaply, and warns of what is wrong: a line for each.

    In a thread that nobody waits for, and after all that forks, as the dispatcher.
    """

    requires = (DispatcherStep,)
    label = "DelayQ check-up"

    def __init__(self, worker: Any, **options: Any) -> None:
        self.enabled = bool(worker.app.delayq.can_dispatch)
        super().__init__(worker, **options)

    def create(self, worker: Any) -> None:
        """Begin."""
        threading.Thread(target=self._check_up, args=(worker.app.delayq,), name="delayq-check-up", daemon=True).start()

    @staticmethod
    def _check_up(delayq: Any) -> None:
        try:
            for finding in delayq.check_up():
                if finding.level.exit_code:
                    logger.warning("delayq %s: %s; %s", finding.check, finding.text, finding.fix)
        except Exception:  # nobody starts a worker for the sake of this
            logger.debug("delayq check-up failed", exc_info=True)


@inspect_command(name="delayq")  # type: ignore[untyped-decorator]  # Celery's
def show(state: Any, **_: Any) -> dict[str, Any]:
    """Show what the dispatcher of delayed tasks does and has done, how many of them the worker has adopted, and what
    its main process has sent while no dispatcher lived.
    """
    dispatcher: Dispatcher | Crew | None = getattr(state.consumer.controller, "delayq_dispatcher", None)
    adoption: Adoption | None = getattr(state.consumer, "delayq_adoption", None)
    delayq = getattr(state.app, "delayq", None)
    told = {
        "version": __version__,
        # Celery's own command loads us as a plugin: a worker may answer whose app knows nothing of us.
        "joined": delayq is not None,
        "unattended": delayq.unattended if delayq is not None else 0,
        "adopting": adoption is not None,
        "adopted": adoption.count if adoption else 0,
    }
    if dispatcher is None:
        return {**told, "running": False}
    last_pass = dispatcher.counts.last_pass
    return {
        **told,
        **vars(dispatcher.counts),
        "running": dispatcher.running,
        "active": dispatcher.active,
        "last_pass": last_pass and from_us(round(last_pass * SECOND_US)).isoformat(),
    }
