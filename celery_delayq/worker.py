"""A worker of a queue: threads that run a function for each due job, and one that talks to Redis for them all."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

import redis

from .job import Job
from .queue import DelayQueue
from .queue_protocol import LEASE
from .work import Outages, Work, checked_worker

logger = logging.getLogger(__name__)

#: Who listens looks up this often (s) whether he shall go on.
LISTENING = 0.5


class Worker:
    """Runs *fn* for each due job of *queue*, in threads.

    When *fn* returns, its job is acked; when it raises, the job is due again after a pause of 1 s, twice as long after
    each further failure, up to 60 s; and dead after as many attempts as the queue allows. A job that takes long stays
    reserved for as long as the worker lives. So each job is run at least once, and twice if the worker dies before it
    could ack it, or loses Redis for longer than a lease.

    Args:
        queue: may be used by others meanwhile; it stays its owner's to close.
        fn: is called with a :class:`~celery_delayq.job.Job`, in several threads at once.
        threads: how many.
        lease: seconds after which the jobs of a worker that died are given to others.
        prefetch: so many jobs are held beyond those that are worked on; None: 4 for each thread.

    Raises:
        ValueError: one of the numbers cannot be used.
    """

    def __init__(
        self,
        queue: DelayQueue,
        fn: Callable[[Job], object],
        threads: int = 1,
        lease: float = LEASE,
        prefetch: int | None = None,
    ) -> None:
        prefetch = checked_worker("threads", threads, lease, prefetch)
        self._queue = queue
        self._fn = fn
        self._work = Work(queue.protocol, lease, threads, prefetch)
        self._threads = threads
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._over = threading.Event()  # nothing is to be heard or done any more
        self._ended = threading.Event()  # and all threads have ended
        self._begun = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Work until :meth:`stop` is called, or, in a program's main thread, until SIGINT or SIGTERM comes: then the
        jobs that are worked on are finished, and the others are given back. A second signal does not wait for that.

        Raises:
            DelayQError: the queue cannot be used.
        """
        self._begun = True
        try:
            with _signals(self._ask_to_stop):
                self._run()
        finally:
            self._ended.set()

    def start(self) -> None:
        """Work in a thread of its own, until :meth:`stop`."""
        if self._thread is not None:
            raise RuntimeError("a worker can be started once")
        self._begun = True
        self._thread = threading.Thread(target=self._run_aside, name=f"delayq-worker {self._queue.topic}")
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Take no more jobs, finish those that are worked on, and give back the others.

        Args:
            timeout: seconds to wait for that; None: as long as it takes. Not to be waited for by *fn*, for itself.

        Returns:
            Whether all is finished. If not, the worker goes on with it.

        Raises:
            DelayQError: why a worker that was started in a thread has ended before.
        """
        self._ask_to_stop()
        finished = not self._begun or self._ended.wait(timeout)
        if self._error is not None:
            raise self._error
        return finished

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _ask_to_stop(self) -> None:
        self._stopping.set()
        self._news.set()

    def _run_aside(self) -> None:
        try:
            self._run()
        except BaseException as error:  # whoever stops it is told
            self._error = error
            logger.exception("delayq worker of %s has ended", self._queue.topic)
        finally:
            self._ended.set()

    def _run(self) -> None:
        hands = [
            threading.Thread(target=self._labour, name=f"delayq-worker {self._queue.topic} {number}", daemon=True)
            for number in range(1, self._threads + 1)
        ]
        hands.append(threading.Thread(target=self._listen, name=f"delayq-listener {self._queue.topic}", daemon=True))
        for hand in hands:
            hand.start()
        try:
            self._keep()
        finally:
            self._over.set()
            self._take_back()  # nobody would ack it
            for _ in hands:
                self._inbox.put(None)
            for hand in hands:
                hand.join()

    def _keep(self) -> None:
        """Make turn after turn, until all is finished."""
        outages = Outages(f"delayq worker of {self._queue.topic}")
        while True:
            self._news.clear()  # before the turn: what happens meanwhile is not slept over
            takes = not self._stopping.is_set()
            if not takes:
                self._take_back()
            try:
                turn = self._queue.run(self._work.turn(monotonic(), takes=takes))
            except redis.RedisError as error:
                wait = outages.failed(error)
                if not takes and outages.lasts():
                    return
            else:
                outages.over()
                for job in turn.taken:
                    self._inbox.put(job)
                if not takes and not self._work.held:
                    return
                wait = turn.wait
            self._news.wait(min(wait, threading.TIMEOUT_MAX))

    def _take_back(self) -> None:
        """Jobs that nobody has begun are for other workers."""
        while True:
            try:
                job = self._inbox.get_nowait()
            except Empty:
                return
            if job is not None:
                self._work.untouched(job)

    def _labour(self) -> None:
        while (job := self._inbox.get()) is not None:
            if not self._work.is_ours(job, monotonic()):
                self._work.untouched(job)
            else:
                self._do(job)
            if not self._news.is_set():  # which costs less than to set it again
                self._news.set()

    def _do(self, job: Job) -> None:
        try:
            self._fn(job)
        except BaseException as error:  # noqa: BLE001  # also SystemExit, which would end only this thread
            self._work.failed(job, error)
        else:
            self._work.done(job)

    def _listen(self) -> None:
        """Tell the keeper when a job became the earliest."""
        while not self._over.is_set():
            try:
                with self._queue.listening() as ear:
                    self._news.set()  # what was said before was not heard
                    while not self._over.is_set():
                        if ear.listen(LISTENING):
                            self._news.set()
                        ear.attend(self._queue.protocol.channels)  # of shards that were added
            except redis.RedisError:  # the keeper will see for himself
                self._news.set()
                self._over.wait(LISTENING)


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ask for an end at the first signal, and insist at the second; only the main thread can be asked."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        logger.warning("delayq worker: finishing what is begun; a second signal ends it at once")
        stop()

    before: dict[int, Any] = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
