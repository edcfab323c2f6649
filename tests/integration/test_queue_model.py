"""DelayQueue against a model in plain Python, with one shard and with several."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from celery_delayq import AlreadyScheduled, DelayQueue, Job, LeaseLost
from celery_delayq.embedded import RedisServer

#: What differs between versions of Redis is asked by the tests of the scripts.
ONE_REDIS = True

#: Now, or in an hour: what is due does not change while the test runs.
DELAYS = st.sampled_from([0, 3600])
IDS = st.sampled_from(["a", "b", "c", "\udcff", "e\n"])
BODIES = st.sampled_from([b"", b"x", b"\x00\xff\n"])


class Machine(RuleBasedStateMachine):
    """What a queue means: who waits, who is reserved by which token, who is dead."""

    server: RedisServer
    shards: int

    @initialize()
    def begin(self) -> None:
        with self.server.client() as client:
            client.flushall()
        self.queue = DelayQueue(self.server.url(), "emails", shards=self.shards, max_attempts=3)
        self.waiting: dict[str, tuple[bytes, int, int]] = {}  # body, delay, attempts so far
        self.reserved: dict[str, Job] = {}
        self.dead: dict[str, bytes] = {}
        self.old: list[Job] = []  # whose tokens are worth nothing

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()

    def _lose(self, id: str) -> None:
        if id in self.reserved:
            self.old.append(self.reserved.pop(id))

    @rule(id=IDS, body=BODIES, delay=DELAYS, on_conflict=st.sampled_from(["error", "keep", "replace"]))
    def put(self, id: str, body: bytes, delay: int, on_conflict: str) -> None:
        if id in self.waiting and on_conflict == "error":
            with pytest.raises(AlreadyScheduled):
                self.queue.put(id, body, delay=delay)
            return
        self.queue.put(id, body, delay=delay, on_conflict=on_conflict)
        if id not in self.waiting or on_conflict == "replace":
            self._lose(id)
            self.waiting[id] = body, delay, 0

    @rule(jobs=st.lists(st.tuples(IDS, BODIES, DELAYS), min_size=1, max_size=4))
    def put_many(self, jobs: list[tuple[str, bytes, int]]) -> None:
        ids = [id for id, _, _ in jobs]
        if len(set(ids)) < len(ids) or self.waiting.keys() & set(ids):
            if self.shards == 1:
                with pytest.raises(AlreadyScheduled):
                    self.queue.put_many([(id, body, self._when(delay)) for id, body, delay in jobs])
            return
        assert self.queue.put_many([(id, body, self._when(delay)) for id, body, delay in jobs]) == len(jobs)
        for id, body, delay in jobs:
            self._lose(id)
            self.waiting[id] = body, delay, 0

    @staticmethod
    def _when(delay: int) -> object:

        return timedelta(seconds=delay) if delay else None

    @rule(id=IDS)
    def delete(self, id: str) -> None:
        assert self.queue.delete(id) is (id in self.waiting or id in self.reserved)
        self.waiting.pop(id, None)
        self._lose(id)

    @rule(id=IDS, delay=DELAYS)
    def move(self, id: str, delay: int) -> None:
        assert self.queue.move(id, delay=delay) is (id in self.waiting)
        if id in self.waiting:
            body, _, attempts = self.waiting[id]
            self.waiting[id] = body, delay, attempts

    @rule(limit=st.integers(1, 4))
    def reserve(self, limit: int) -> None:
        jobs = self.queue.reserve(lease=3600, limit=limit)
        due = {id for id, (_, delay, _) in self.waiting.items() if delay == 0}
        assert len(jobs) == min(limit, len(due))
        for job in jobs:
            assert job.id in due
            body, _, attempts = self.waiting.pop(job.id)
            assert (job.body, job.attempts) == (body, attempts + 1)
            self.reserved[job.id] = job

    @rule(limit=st.integers(1, 4))
    def pull(self, limit: int) -> None:
        jobs = self.queue.pull(limit=limit)
        due = {id for id, (_, delay, _) in self.waiting.items() if delay == 0}
        assert len(jobs) == min(limit, len(due))
        for job in jobs:
            assert job.body == self.waiting.pop(job.id)[0]

    @rule(pick=st.integers(0, 9))
    def ack(self, pick: int) -> None:
        if self.reserved:
            job = self.reserved.pop(sorted(self.reserved)[pick % len(self.reserved)])
            self.queue.ack(job)
            self.old.append(job)

    @rule(pick=st.integers(0, 9), delay=DELAYS)
    def release(self, pick: int, delay: int) -> None:
        if not self.reserved:
            return
        job = self.reserved.pop(sorted(self.reserved)[pick % len(self.reserved)])
        self.queue.release(job, delay=delay)
        self.old.append(job)
        self._come_back(job, delay)

    def _come_back(self, job: Job, delay: int) -> None:
        if job.attempts >= 3:
            self.dead[job.id] = job.body
        else:
            self.waiting[job.id] = job.body, delay, job.attempts

    @rule(pick=st.integers(0, 9))
    def run_out(self, pick: int) -> None:
        """The lease of one ends, and whoever looks next gives the job back."""
        if not self.reserved:
            return
        job = self.reserved.pop(sorted(self.reserved)[pick % len(self.reserved)])
        self.queue.extend(job, lease=0.000001)
        assert self.queue.requeue() == 1
        self.old.append(job)
        self._come_back(job, 0)

    @rule(id=IDS)
    def revive(self, id: str) -> None:
        # One that was put anew meanwhile stays dead.
        free = id in self.dead and id not in self.waiting and id not in self.reserved
        if self.shards == 1 or free or id not in self.dead:
            assert self.queue.revive(id) == free
            if free:
                self.waiting[id] = self.dead.pop(id), 0, 0

    @rule(id=IDS)
    def discard(self, id: str) -> None:
        assert self.queue.discard(id) == (id in self.dead)
        self.dead.pop(id, None)

    @rule()
    def come_with_an_old_token(self) -> None:
        for job in self.old[-3:]:
            for attempt in (self.queue.ack, self.queue.release, self.queue.extend):
                with pytest.raises(LeaseLost):
                    attempt(job)

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        if not hasattr(self, "queue"):
            return
        load = self.queue.stats()
        due = sum(delay == 0 for _, delay, _ in self.waiting.values())
        assert (load.waiting, load.due, load.reserved, load.dead) == (
            len(self.waiting),
            due,
            len(self.reserved),
            len(self.dead),
        )
        assert {job.id: job.body for job in self.queue.scheduled()} == {
            id: body for id, (body, _, _) in self.waiting.items()
        }
        assert {job.id.decode(errors="surrogateescape"): job.body for job in self.queue.dead()} == self.dead


@pytest.mark.parametrize("shards", [1, 3])
def test_a_queue_does_what_the_model_does(server: RedisServer, shards: int) -> None:
    """Whatever is done in whatever order; the same orders each time."""
    machine = type("Machine", (Machine,), {"server": server, "shards": shards})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
    )
