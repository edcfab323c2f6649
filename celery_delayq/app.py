"""DelayQ: celery_delayq in one Celery app. The one place that puts the parts together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from celery import Task, current_app
from celery.canvas import Signature, group
from celery.signals import task_received
from click import Option

from . import adoption, broker, bulk, revoking, tracing
from .adoption import Adoption, Silence, Take
from .bootstep import AdoptionStep, CheckUpStep, DispatcherStep, MasterStep, RecordStep, RulesStep
from .clock import moment_of, seconds_of
from .control import Control
from .crew import Crew
from .dead_letters import DeadLetters
from .delivery import Delivery
from .direct import Direct
from .dispatcher import Dispatcher, HandOver
from .doctor import CHECKS, Check, Finding, Patient, examine
from .draining import Drained, drain
from .errors import ImproperlyConfigured
from .events import Events, rank_states
from .finisher import Finisher
from .home import Home
from .job import OnConflict
from .message import TASK_PATTERN, restore_eta
from .observers import Observers
from .producing import ProducerPublisher
from .publishing import Publishing
from .readdressing import source_of
from .relay import Relay
from .settings import Settings
from .sharding import Sharded
from .store import Store
from .telling import Telling

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult, GroupResult

    from .rules.in_worker import InWorker

logger = logging.getLogger(__name__)

#: Seconds that a store elsewhere has for each answer to a worker that adopts, and that consumes nothing meanwhile.
ADOPTION_TIMEOUT = 2.0


class DelayQ(Control, DeadLetters):
    """Delayed tasks of an app wait in Redis until they are due.

    One line makes it so: ``DelayQ(app)``. It is then also ``app.delayq``, by which whatever waits can be seen and
    changed. Nothing is read from the configuration and nothing is connected before it is needed.

    Args:
        app: the Celery app; or none now, and :meth:`init_app` later.
    """

    app: Celery

    def __init__(self, app: Celery | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Celery) -> None:
        """Install into *app*. A second time, or a second DelayQ on the same app, changes nothing more.

        Raises:
            ImproperlyConfigured: this DelayQ serves another app.
        """
        if getattr(self, "app", app) is not app:
            raise ImproperlyConfigured(f"this DelayQ serves {self.app!r}; make another DelayQ for {app!r}")
        self.app = app
        if getattr(app, "delayq", None) is None:
            app.delayq = self
            rank_states()
            task_received.connect(restore_eta)  # of all apps of the process; it finds what has waited
            tracing.join()
            app.steps["worker"].update((DispatcherStep, CheckUpStep, RulesStep))
            app.steps["consumer"].add(AdoptionStep)
            app.steps["consumer"].add(MasterStep)
            app.steps["consumer"].add(RecordStep)
            app.user_options["worker"].add(
                Option(
                    ["--no-delayq-dispatch"],
                    is_flag=True,
                    help="Leave moving due delayed tasks to their queues to other workers.",
                )
            )
        self.publishing.join()
        revoking.join(app)

    @cached_property
    def settings(self) -> Settings:
        """The app's ``delayq_`` settings, read at first use.

        Raises:
            ImproperlyConfigured: one of them is unknown or unusable.
        """
        return Settings.read(self.app.conf)

    @cached_property
    def publishing(self) -> Publishing:
        """The joint with the app's publishing."""
        return Publishing(self.app, lambda: self.settings, self.events, self.home)

    @cached_property
    def events(self) -> Events:
        """Tells of what waits by Celery's events, where they are on."""
        return Events(self.app)

    @cached_property
    def home(self) -> Home:
        """Where the app's delayed tasks wait."""
        return Home(self.app, lambda: self.settings)

    @property
    def unattended(self) -> int:
        """How many delayed tasks this process has sent while no dispatcher lived."""
        return self.home.liveness.unattended

    @property
    def adopted(self) -> int:
        """How many delayed messages the workers of this process have adopted."""
        return sum(adoption.count for adoption in self._adoptions)

    def apply_at(
        self,
        task: Task | Signature | str,
        when: datetime | float,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult | GroupResult:
        """Run *task* at a given time.

        Always through the store: also when ``delayq_intercept`` is off, the delay is under ``delayq_min_delay``, or
        the time is past (then it is due now).

        Args:
            task: a task, the name of one, or a signature; canvas too, as ``apply_async(eta=…)`` takes it.
            when: a datetime (a naive one is UTC, as Celery takes it) or seconds since the epoch.
            options: all of ``apply_async``'s, and ``on_conflict``: what to do if a task of this ``task_id`` waits
                already in this queue. "error" raises, "keep" leaves it, "replace" overwrites it, with ``max_wait``
                never later than so many seconds after it was first put. The default is what the signature or the task
                says, else "error".

        Returns:
            What ``apply_async`` returns.

        Raises:
            AlreadyScheduled: the id waits already, and *on_conflict* is "error".
            ImproperlyConfigured: the broker is not Redis, and no setting names one.
            ReplicasMissing: it is stored, but fewer replicas than ``delayq_wait_replicas`` have acknowledged it.
            kombu.exceptions.OperationalError: Redis cannot be reached, or is full.
            TypeError, ValueError: a value that cannot be; the message says which.
        """
        return self._apply(task, args, kwargs, {**options, "eta": moment_of(when)})

    def apply_delayed(
        self,
        task: Task | Signature | str,
        delay: float | timedelta,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult | GroupResult:
        """Run *task* after *delay*, seconds or a timedelta, counted on Redis's clock. Else like :meth:`apply_at`."""
        seconds = seconds_of(delay)
        now = self.app.now()
        try:
            moment = moment_of(now + timedelta(seconds=seconds))
        except OverflowError:
            raise ValueError(f"delay must end before the year 2255, not after {delay!r} seconds") from None
        # Celery takes a countdown of 0 for none at all; a past one is due now in either case.
        when = {"countdown": seconds} if seconds > 0 else {"eta": moment}
        return self._apply(task, args, kwargs, {**options, **when})

    def apply_many(
        self, items: Iterable[tuple[Signature | Task, datetime | float]], batch_size: int = bulk.BATCH_SIZE
    ) -> list[AsyncResult | GroupResult]:
        """Run many tasks, each at a time of its own: what :meth:`apply_at` does with each, but much faster.

        They are stored in batches, each in one call to Redis, all of it or nothing (with ``delayq_shards``: in a call
        for each shard, and all or nothing in each). Celery's signals are sent as ever,
        ``after_task_publish`` when the batch is stored. Between batches a program may die or an error be raised; then
        the batches before are stored, and no later one. Whoever wants to repeat the call after that gives the
        signatures ids of their own (``task_id``) and ``on_conflict="keep"``: then only what is missing is stored.

        Args:
            items: pairs of a signature (or a task without arguments) and a time as :meth:`apply_at` takes it. May be a
                generator; it is read batch by batch. What the signatures' options say holds, ``on_conflict`` too.
            batch_size: how many are stored in one call; less, if that would be more than 8 MB, or where ``on_conflict``
                or ``retry_policy`` changes from one to the next. Redis does nothing else meanwhile: for a thousand,
                about 20 ms.

        Returns:
            What ``apply_async`` returns, in the order of *items*.

        Raises:
            AlreadyScheduled: *on_conflict* is "error", and an id waits already, or comes twice in one batch.
            ImproperlyConfigured: the broker is not Redis, and no setting names one.
            ReplicasMissing: the last batch is stored, but fewer replicas than ``delayq_wait_replicas`` have
                acknowledged it.
            kombu.exceptions.OperationalError: Redis cannot be reached, or is full. If it is unreachable after all
                retries, the last batch may be stored or not, like any publish.
            TypeError, ValueError: a value that cannot be; the message says which, and of which item.
        """
        return bulk.apply_many(self.app, items, self.apply_at, self.home, batch_size)

    def drain(self, queue: str | None = None, progress: Callable[[int, int], None] | None = None) -> Drained:
        """Give what waits back to stock Celery: published now, each task with its ``eta``, to its queue and with its
        priority. So the way out of celery_delayq is as short as the way in.

        Each task is either waiting or published, whenever this is broken off; the same call goes on. (With
        ``delayq_store_url``, some may then be both, or reserved until ``delayq_lease`` is over.) Stock workers hold in
        memory what they receive; a task that is due later than the broker's visibility timeout they run more than once.
        ``late="drop"`` and ``max_wait`` mean nothing any more.

        Workers that adopt put the tasks back at once: first switch ``delayq_intercept`` off in producers and workers.

        Args:
            queue: only what waits for this queue, also if that is paused; by default for all that are not.
            progress: called now and then with how many tasks were given back, and how many waited at the start.

        Returns:
            What was given back, and what was not.

        Raises:
            ImproperlyConfigured: what waits is for another broker.
            kombu.exceptions.OperationalError: the store, or the broker, cannot be reached.
        """
        if not self.home.is_relayed:
            return drain(self, queue, progress)
        self.connect().close()  # which refuses a store of another broker
        with closing(ProducerPublisher(self.app)) as publisher:
            return drain(self, queue, progress, publisher, self.settings.lease)

    def adopters(self, timeout: float = 1.0) -> list[str]:
        """The workers that adopt delayed tasks, of those that answer in so many seconds."""
        replies = self.app.control.broadcast("delayq", reply=True, timeout=timeout) or []
        return sorted(name for reply in replies for name, said in reply.items() if _is_adopter(said))

    def _apply(
        self,
        task: Task | Signature | str,
        args: Iterable[Any],
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> AsyncResult | GroupResult:
        options.setdefault("on_conflict", self._on_conflict_of(task))
        task_id = options.get("task_id")
        if task_id is not None and not isinstance(task_id, str):
            raise TypeError(f"task_id must be a non-empty string, not {task_id!r}")
        if task_id == "":  # Celery would make one up
            raise ValueError("task_id must be a non-empty string")
        args = tuple(args)
        kwargs = dict(kwargs or {})
        if isinstance(task, str):
            return self.app.send_task(task, args, kwargs, **options)
        if not isinstance(task, (Task, Signature)):
            raise TypeError(f"task must be a task, the name of one, or a signature, not {type(task).__name__}")
        if isinstance(task, Signature) and "eta" in options and task.options.get("countdown"):
            task = task.clone()
            del task.options["countdown"]  # of the two, Celery would take the signature's countdown
        if isinstance(task, group) and bulk.is_ours(self.app, task, options):
            with bulk.gathered(self.app, self.home) as producer:
                return task.apply_async(args, kwargs, producer=producer, **options)
        return task.apply_async(args, kwargs, **options)

    def _on_conflict_of(self, task: Task | Signature | str) -> str:
        """What a signature's own options or its task's attributes say; else the helpers' default."""
        said = task.options.get("on_conflict") if isinstance(task, Signature) else None
        if not said:
            name = task.task if isinstance(task, Signature) else task
            said = getattr(self.app._tasks.get(name) if isinstance(name, str) else name, "on_conflict", None)
        return said or OnConflict.ERROR.value

    def _store(self) -> AbstractContextManager[Store | Sharded]:
        return self.home.store()

    def _deliveries(self, queues: set[str]) -> dict[str, Delivery]:
        return self.home.deliveries(queues)

    @property
    def can_dispatch(self) -> bool:
        """Whether delayed tasks of this app wait in a Redis that its workers reach."""
        return self.home.is_relayed or broker.goes_to_redis(self.app.connection_for_read())

    def dispatcher(self, queues: Iterable[str] | None = None) -> Dispatcher | Crew:
        """A new dispatcher for this app, not started; of these *queues* only, or of all. Where tasks are relayed it
        stands for one of each shard.
        """
        settings, home = self.settings, self.home
        queues = None if queues is None else list(queues)
        # Here, in the main thread: a child that is forked at the wrong moment must not inherit a lock of the app's that
        # the dispatcher's thread holds.
        opener = home.opener()

        def of_shard(shard: int) -> Dispatcher:
            return Dispatcher(
                lambda: home.connect_to(opener, shard),
                self._hand_over(),
                max_poll_interval=settings.max_poll_interval,
                finish=self.finisher.begin,
                observers=self.observers,
                topics=queues,
            )

        if home.is_relayed:
            if settings.ready_limit:
                logger.warning("delayq_ready_limit has no effect: how much is ready is not known with delayq_store_url")
            dispatcher: Dispatcher | Crew = Crew(of_shard, settings.shards, lambda: home.connect(opener))
        else:
            dispatcher = of_shard(0)
        self.dispatchers.add(dispatcher)
        return dispatcher

    @cached_property
    def dispatchers(self) -> WeakSet[Dispatcher | Crew]:
        """Those of this process, running or not."""
        return WeakSet()

    @cached_property
    def observers(self) -> Observers:
        """Who is told of what they do."""
        return Observers(TASK_PATTERN)

    def _hand_over(self) -> HandOver:
        settings = self.settings
        if not self.home.is_relayed:
            return Direct(
                batch_size=settings.batch_size, position=settings.ready_position, ceilings=settings.ready_limit
            )
        return Relay(
            ProducerPublisher(self.app),
            lease=settings.lease,
            max_attempts=settings.max_attempts,
            batch_size=settings.batch_size,
        )

    def rules_in_worker(self) -> InWorker | None:
        """The rules that a worker runs, read and joined with the signals of tasks; None: ``delayq_rules`` names none.

        Raises:
            ImproperlyConfigured: they cannot work; with all their faults.
            ImportError: what rules need is not installed.
        """
        paths = self.settings.rules
        if paths is None:
            return None
        from .rules.in_worker import InWorker  # noqa: PLC0415  # needs packages that no one else does

        return InWorker(self.app, paths)

    def adoption(self, dispatches: Callable[[], bool], consumer: Callable[[], Any]) -> Adoption | None:
        """Adoption for one worker; None if the settings or the broker do not want it.

        Args:
            dispatches: whether that worker's own dispatcher runs. If not, it adopts only while another lives.
            consumer: gives the Kombu consumer that receives the worker's tasks.
        """
        settings = self.settings
        if not (settings.adopt and settings.intercept and self.can_dispatch):
            return None
        made = Adoption(self.app, self._take(dispatches, consumer), settings.min_delay)
        self._adoptions.add(made)
        return made

    @cached_property
    def _adoptions(self) -> WeakSet[Adoption]:
        return WeakSet()

    def _take(self, dispatches: Callable[[], bool], consumer: Callable[[], Any]) -> Take:
        settings = self.settings
        if not self.home.is_relayed:
            silence_us = self.home.liveness.silence_us
            return adoption.direct(settings.prefix, settings.min_delay, lambda: None if dispatches() else silence_us)
        opener, silence = self.home.opener(ADOPTION_TIMEOUT), Silence(settings.max_poll_interval)
        return adoption.Relayed(
            lambda: self.home.connect(opener),
            lambda message: source_of(message, consumer()),
            lambda: None if dispatches() else silence,
            settings.wait_replicas,
        )

    @cached_property
    def finisher(self) -> Finisher:
        """Finishes in this process what lies aside; begun by its dispatchers."""
        opener = self.home.opener()
        return Finisher(lambda: self.home.connect(opener), self._teller.finish)

    @cached_property
    def _teller(self) -> Telling:
        return Telling(self.app)

    def doctor(self, timeout: float = 1.0) -> list[Finding]:
        """Look at what can go wrong around waiting tasks: a finding or more from each check, and what to do about it.

        Args:
            timeout: seconds that workers have to answer. Redis has twice as long for each of its answers.

        Raises:
            ImproperlyConfigured: the broker is not Redis, and no setting names one.
        """
        return self._examined(timeout, CHECKS)

    def check_up(self) -> list[Finding]:
        """The cheap ones of those checks, which ask no worker: a few commands to Redis."""
        return self._examined(1.0, [check for check in CHECKS if check.cheap])

    def _examined(self, timeout: float, checks: Sequence[Check]) -> list[Finding]:
        if not self.can_dispatch:
            raise self.home.missing(self.app.connection_for_read())
        patient = Patient(
            self.app, self.settings, self.home, lambda: self.connect(2 * timeout, claims=False), reply_timeout=timeout
        )
        with closing(patient):
            return examine(patient, checks)

    def connect(self, timeout: float | None = None, *, claims: bool = True) -> Store | Sharded:
        """Open the store on new connections, as a dispatcher does. To be closed.

        Args:
            timeout: seconds that Redis may take for anything, whatever the transport options say.
            claims: if nobody has said yet which broker the store is for, and of which version it is, that is ours
                from now on.
        """
        return self.home.connect(self.home.opener(timeout), claims=claims)


def _is_adopter(said: object) -> bool:
    """Whether a worker that is asked for its dispatcher says so. One without celery_delayq answers something else."""
    return isinstance(said, Mapping) and bool(said.get("adopting"))


def _delayq_of(task: Task | Signature | str) -> DelayQ:
    app = current_app if isinstance(task, str) else getattr(task, "app", current_app)
    delayq: DelayQ | None = getattr(app, "delayq", None)
    if delayq is None:
        raise ImproperlyConfigured(
            f"the app {app.main or app!r} has no celery_delayq: call DelayQ(app) where it is made"
        )
    return delayq


def apply_at(
    task: Task | Signature | str,
    when: datetime | float,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncResult | GroupResult:
    """:meth:`DelayQ.apply_at` of the task's own app; for a name, of the current app."""
    return _delayq_of(task).apply_at(task, when, args, kwargs, **options)


def apply_delayed(
    task: Task | Signature | str,
    delay: float | timedelta,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncResult | GroupResult:
    """:meth:`DelayQ.apply_delayed` of the task's own app; for a name, of the current app."""
    return _delayq_of(task).apply_delayed(task, delay, args, kwargs, **options)
