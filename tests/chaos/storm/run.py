"""One storm from its beginning to its end: start, faults, heal, drain, judge."""

from __future__ import annotations

import heapq
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import redis

from celery_delayq import embedded
from celery_delayq.keys import Keys
from tests.rabbit import RabbitServer

from .cast import BROKER_RACK, CONSUMED, POOLS, RACKS, WATCHED, cast, ledger_of, ready_lists
from .network import Network
from .participants import Participant, faketime
from .plan import BROKER, DECK, REDIS, RELAY, Fault, faults
from .records import Attempt, Copy, count_acked, read_attempts, read_runs
from .servers import Broker, Lives, RabbitBroker, RedisBroker, client_of, lasting_redis
from .verdict import After, Excuses, Verdict, judge

#: Seconds that something may take after all faults are healed, before that is a fault of its own.
PATIENCE = 300.0

#: A traceback in a log that passes through it should end with one of these: what a storm makes of a connection.
PACKAGE = Path(embedded.__file__).parent
EXPECTED = ("redis.exceptions.", "kombu.exceptions.OperationalError", "amqp.exceptions.", "Connection", "OSError")
EXPECTED += ("TimeoutError", "BrokenPipeError")

#: With these words a relay tells how many tasks were no longer its own when it acked them.
LATE_ACKS = re.compile(r"(\d+) tasks of \S+ were no longer ours when they were acked")

#: Seconds of a relay's lease: what a dead dispatcher holds comes back after that.
LEASE = 5.0


@dataclass(frozen=True)
class Wish:
    """What storm it shall be.

    Attributes:
        tasks, kills: at least so many are acknowledged, and so many processes killed.
        seed: fixes the kinds of faults, whom they hit, when and for how long.
        pace: tasks a second.
        every: seconds from one fault to the next, on average.
        countdown: seconds that tasks wait, from and to.
        relay: "redis" or "rabbitmq": the broker is another server; None: tasks wait in the broker itself.
        stock_patience: seconds that stock Kombu gets to run what is ready. What it does not run by then is told, and is
            no fault of ours.
        pools: of the workers.
    """

    tasks: int
    kills: int
    seed: int
    pace: float
    every: float
    countdown: tuple[float, float]
    relay: str | None = None
    stock_patience: float = 60.0
    pools: tuple[str, ...] = POOLS


@dataclass
class Outcome:
    """What a storm was, and what it did."""

    wish: Wish
    folder: Path
    seconds: float = 0.0
    server_versions: dict[str, str] = field(default_factory=dict)
    with_clocks: bool = False
    inflicted: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    events: list[tuple[float, str]] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    after: After | None = None
    attempts: dict[str, Attempt] = field(default_factory=dict)
    taken: dict[str, list[Copy]] = field(default_factory=dict)
    #: Workers that ended though nobody killed them, with their last words.
    ended: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(number for kind, number in self.inflicted.items() if kind.startswith("kill"))

    def explain(self, task_id: str, around: float = 3.0) -> str:
        """What is known of one task: when it was sent, was due and was taken, and the faults about these times."""
        attempt, copies = self.attempts.get(task_id), sorted(self.taken.get(task_id, []))
        lines = [
            f"{task_id}: {attempt}",
            "    handed over: " + (", ".join(f"{c.at:.3f} {c.by}" for c in copies) or "never"),
        ]
        moments = [copy.at for copy in copies]
        if attempt is not None:
            due = attempt.begun + attempt.countdown
            lines.append(f"    due at: {due:.3f} or later")
            moments += [attempt.begun, attempt.ended, due]
        for at, what in self.events:
            if any(abs(at - moment) <= around for moment in moments):
                lines.append(f"    {at:.3f} {what}")
        return "\n".join(lines)


class Storm:
    """Runs once."""

    def __init__(self, wish: Wish, folder: Path, say: Callable[[str], None]) -> None:
        self.outcome = Outcome(wish, folder)
        self._wish = wish
        self._folder = folder
        self._say = say
        self._keys = Keys("delayq")
        self._heals: list[tuple[float, int, Callable[[], None]]] = []  # when (s, monotonic), a number, what
        self._numbers = count()
        self._broker_troubles: list[tuple[float, float]] = []  # from when to when (s, monotonic)

    def run(self) -> Outcome:
        """All of it. Whatever happens, nothing that was started is left."""
        began = time.monotonic()
        with ExitStack() as stack:
            self._start_servers(stack)
            racks = dict.fromkeys(RACKS, self._server.port)
            if self._wish.relay:
                racks[BROKER_RACK] = self._broker.port
            self._racks = tuple(racks)
            self._network = stack.enter_context(Network(racks))
            self._enlist()
            try:
                for participant in self._participants.values():
                    participant.start()
                self._blow()
                self._calm()
                self._drain()
                self._account()
            finally:
                for participant in self._participants.values():
                    participant.kill()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _start_servers(self, stack: ExitStack) -> None:
        relay = self._wish.relay
        self._server = stack.enter_context(lasting_redis())
        store = self._lives(stack, self._server.start, self._server.stop)
        self._servers = {REDIS: store}
        self._client = stack.enter_context(client_of(self._server))
        self._clients = {REDIS: self._client}
        self.outcome.server_versions["Redis"] = self._client.info("server")["redis_version"]
        if relay == "rabbitmq":
            rabbit = stack.enter_context(RabbitServer())
            lives = self._lives(stack, rabbit.start, rabbit.kill)
            self._broker: Broker = RabbitBroker(rabbit, lives, WATCHED)
            self.outcome.server_versions["RabbitMQ"] = self._broker.version()
        elif relay == "redis":
            other = stack.enter_context(lasting_redis())
            self._broker = RedisBroker(other, self._lives(stack, other.start, other.stop), ready_lists())
        else:
            self._broker = RedisBroker(self._server, store, ready_lists())
        if relay:
            self._servers[BROKER] = self._broker.lives
            if self._broker.client is not None:
                self._clients[BROKER] = self._broker.client
        stack.callback(self._broker.close)

    @staticmethod
    def _lives(stack: ExitStack, start: Callable[[], None], kill: Callable[[], None]) -> Lives:
        lives = Lives(start, kill)
        stack.callback(lives.close)
        return lives

    def _enlist(self) -> None:
        wish = self._wish
        self.outcome.with_clocks = faketime() is not None

        def conf_of(rack: str) -> dict[str, Any]:
            store_url = f"redis://127.0.0.1:{self._network.port(rack)}/0"
            if not wish.relay:
                return {"broker_url": store_url}
            broker_url = self._broker.url(self._network.port(BROKER_RACK))
            return {"broker_url": broker_url, "delayq_store_url": store_url, "delayq_lease": LEASE}

        with_clocks = self.outcome.with_clocks
        roles = cast(self._folder, conf_of, wish.seed, wish.pace, wish.countdown, wish.pools, with_clocks=with_clocks)
        self._participants = {role.name: Participant(role, self._folder) for role in roles}
        self._ledgers = [ledger_of(self._folder, role.name) for role in roles if role.group == "producer"]
        groups = {group: [r.name for r in roles if r.group == group] for group in ("producer", "worker", "dispatcher")}
        self._faults = faults(wish.seed, wish.every, {**groups, "rack": self._racks}, RELAY[wish.relay])

    # The storm

    def _blow(self) -> None:
        """Inflict faults until there were enough kills and tasks, and every kind of fault."""
        wish, outcome = self._wish, self.outcome
        kinds = {card.kind for card in (*DECK, *RELAY[wish.relay])}
        # Not before everything works: a put has come through, and has been handed over.
        if not self._await(self._broker.has_any, "the first task is handed over"):
            raise RuntimeError(f"nothing was handed over in {PATIENCE:g} seconds: see the logs in {self._folder}")
        self._say("the first task is handed over: the storm begins")
        fault = next(self._faults)
        due = time.monotonic() + fault.after
        looked = 0.0
        acked = 0
        while acked < wish.tasks or outcome.kills < wish.kills or outcome.inflicted.keys() < kinds:
            now = time.monotonic()
            self._heal_until(now)
            if now >= due:
                self._inflict(fault)
                fault = next(self._faults)
                due += fault.after
                due = max(due, time.monotonic())
            if now - looked >= 1:
                looked = now
                acked = count_acked(self._ledgers)
                self._look_after()
            time.sleep(max(min(due, self._heals[0][0] if self._heals else due, now + 1) - time.monotonic(), 0))

    def _note(self, what: str) -> None:
        self.outcome.events.append((time.monotonic(), what))

    def _later(self, seconds: float, heal: Callable[[], None]) -> None:
        heapq.heappush(self._heals, (time.monotonic() + seconds, next(self._numbers), heal))

    def _heal_until(self, moment: float) -> None:
        while self._heals and self._heals[0][0] <= moment:
            heapq.heappop(self._heals)[2]()

    def _inflict(self, fault: Fault) -> None:
        kind, target = fault.kind, fault.target
        server, participant = self._servers.get(target), self._participants.get(target)
        may_hit = server is None or (server.is_rested if fault.is_kill else server.is_up)
        if not may_hit or (participant is not None and not participant.lives):
            self._later(0.1, lambda: self._inflict(fault))  # it comes as soon as there is somebody to hit
            return
        began = time.monotonic()
        self._note(f"{kind} {target} {fault.seconds:.2f} s")
        self.outcome.inflicted[kind] += 1
        self.outcome.targets[f"{kind}: {target}"] += 1
        victim = server or participant
        if victim is not None and fault.is_kill:
            victim.kill()
            self._later(fault.seconds, victim.start)
        elif participant is not None and kind.startswith("end"):
            participant.dismiss()  # who follows is started when it has ended
        elif participant is not None:
            incarnation = participant.stop()
            self._later(fault.seconds, lambda: participant.resume(incarnation))
        elif kind.startswith("network"):
            cut = {"reset": self._network.reset, "refused": self._network.refuse, "black": self._network.hole}
            cut[kind.split()[1]](target)
            self._later(fault.seconds, lambda: self._mend(target, began))
        else:
            self._strike(fault, began)

    def _mend(self, rack: str, began: float) -> None:
        self._network.heal(rack)
        if rack == BROKER_RACK:
            self._broker_troubles.append((began, time.monotonic()))

    def _strike(self, fault: Fault, began: float) -> None:
        """What a living Redis is told to do."""
        kind, target = fault.kind, fault.target
        client = self._clients[target]
        if kind.startswith("client kill"):
            client.client_kill_filter(_type=kind.split()[2], skipme=True)
        elif kind == "client pause":
            client.client_pause(round(fault.seconds * 1000))
            self._servers[target].add_outage(began, time.monotonic() + fault.seconds)
        elif kind == "script flush":
            client.script_flush()
        elif kind == "memory limit":
            client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
            self._later(fault.seconds, lambda: self._lift_limit(target, began))
        else:
            raise ValueError(kind)
        if target == BROKER:
            self._broker_troubles.append((began, time.monotonic()))

    def _lift_limit(self, target: str, began: float) -> None:
        if self._servers[target].is_up:  # else it comes back without one
            self._clients[target].config_set("maxmemory", 0)
        if target == BROKER:
            self._broker_troubles.append((began, time.monotonic()))

    def _look_after(self) -> None:
        """Note who ended by himself, and let another follow."""
        self._broker.check()
        for participant in self._participants.values():
            if participant.has_ended():
                name, group = participant.role.name, participant.role.group
                if participant.incarnation in participant.dismissed:
                    self._note(f"{name} has ended")
                else:
                    self._note(f"{name} ended by itself")
                    words = f"{name} ended by itself:\n{participant.last_words(200)}"
                    # A worker that gives up when its broker goes away is stock Celery's.
                    (self.outcome.ended if group == "worker" else self.outcome.verdict.faults).append(words)
                participant.start()

    # And after it

    def _await(self, condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> bool:
        """Wait for something. False: in vain."""
        deadline = time.monotonic() + patience
        while True:
            with suppress(redis.RedisError):
                if condition():
                    return True
            if time.monotonic() > deadline:
                self._note(f"waited {patience:g} seconds in vain: {what}")
                return False
            self._look_after()
            time.sleep(0.1)

    def _calm(self) -> None:
        """Heal everything, and let the producers finish what they have begun."""
        self._say(f"{self.outcome.kills} kills: everything is healed")
        while self._heals:  # what waits for a server may still come, and is healed then
            self._heal_until(float("inf"))
            time.sleep(0.05)
        self._await(lambda: all(server.is_up for server in self._servers.values()), "all servers are back")
        for rack in self._racks:
            self._network.heal(rack)
        for participant in self._participants.values():
            participant.start()
        for name in self._dismiss("producer", PATIENCE):
            self.outcome.verdict.faults.append(f"{name} did not end in {PATIENCE:g} seconds after the storm")

    def _dismiss(self, group: str, patience: float) -> list[str]:
        """Let all of a group end, and wait for that. Who had to be killed?"""
        dismissed = [participant for participant in self._participants.values() if participant.role.group == group]
        for participant in dismissed:
            participant.dismiss()
        deadline = time.monotonic() + patience
        return [p.role.name for p in dismissed if not p.end(max(deadline - time.monotonic(), 0))]

    def _drain(self) -> None:
        """Wait until nothing waits any more, and nothing of ours is left."""
        expected = {f"{self._keys.beginning}{name}".encode() for name in ("totals", "beat", "serves", "version")}

        def left() -> set[bytes]:
            return set(self._client.keys(f"{self._keys.beginning}*")) - expected

        if not self._await(lambda: not left(), "all tasks are handed over"):
            self.outcome.verdict.faults.append(f"{PATIENCE:g} seconds after the storm there still were {left()}")
        self._await(self._broker.is_taken, "all that was handed over is taken")
        self._say("all is handed over")

    def _account(self) -> None:
        """Judge, and count what stock Kombu made of what it was given."""
        outcome = self.outcome
        self._await(
            lambda: self._broker.is_empty(CONSUMED), "the workers have run what is ready", self._wish.stock_patience
        )
        self._dismiss("worker", self._wish.stock_patience)
        self._broker.finish()
        deaths = {name: participant.deaths for name, participant in self._participants.items()}
        outcome.taken = self._broker.taken
        outcome.attempts = read_attempts((path, deaths[path.stem]) for path in self._ledgers)
        runs = read_runs(self._folder / "runs")
        faults_so_far = outcome.verdict.faults
        outcome.verdict = judge(
            outcome.attempts,
            outcome.taken,
            CONSUMED,
            [outage for server in self._servers.values() for outage in server.outages],
            excuses=self._excuses() if self._wish.relay else None,
            ran={task_id: list(copies) for task_id, copies in runs.items()},
        )
        outcome.verdict.faults += faults_so_far
        self._read_logs()
        totals = {
            key.decode().partition("moved:")[2]: int(number)
            for key, number in self._client.hgetall(self._keys.totals).items()
            if key.startswith(b"moved:")
        }
        outcome.after = self._stock(totals.pop(CONSUMED, 0), runs)
        self._check_totals(sum(totals.values()), outcome.after.moved)

    def _read_logs(self) -> None:
        verdict = self.outcome.verdict
        for participant in self._participants.values():
            for text in participant.tracebacks():
                if str(PACKAGE) in text and not text.splitlines()[-1].startswith(EXPECTED):
                    verdict.faults.append(f"{participant.role.name}: {text}")

    def _excuses(self) -> Excuses:
        everybody = self._participants.values()

        def until_death(one: Participant, begins: Mapping[int, float]) -> dict[str, tuple[float, float]]:
            return {
                f"{one.role.name}.{number}": (begin, one.deaths.get(number, float("inf")))
                for number, begin in begins.items()
            }

        return Excuses(
            {by: times for one in everybody for by, times in until_death(one, one.dying).items()},
            {by: times for one in everybody for by, times in until_death(one, one.dismissed).items()},
            [*self._broker_troubles, *self._servers[BROKER].outages],
            {one.role.name: sum(map(int, LATE_ACKS.findall(one.said()))) for one in everybody},
        )

    def _stock(self, moved: int, runs: Mapping[str, Counter[Copy]]) -> After:
        listed, held = self._broker.left(CONSUMED)
        ready = set(listed) - runs.keys()
        unacked = set(held) - runs.keys() - ready
        again = sum(max(copies.values()) > 1 for copies in runs.values())
        once = sum(copies.total() == 1 for copies in runs.values())
        return After(moved, once, again, len(runs) - once - again, len(unacked), len(ready))

    def _check_totals(self, moved_watched: int, moved_consumed: int) -> None:
        """The store's own count must agree with what was found, and with what was put."""
        verdict = self.outcome.verdict
        attempts = [attempt for attempt in self.outcome.attempts.values() if attempt.queue == CONSUMED]
        others = [attempt for attempt in self.outcome.attempts.values() if attempt.queue != CONSUMED]
        if self._wish.relay:  # a job is counted when it is acked, which is once, however often it was published
            least, most = len(self.outcome.taken), len(self.outcome.taken) + _resendings(others)
        else:
            least = most = verdict.watched
        if not least <= moved_watched <= most:
            verdict.faults.append(f"the store counts {moved_watched} tasks handed over, {least} to {most} were found")
        acked = sum(attempt.is_acked for attempt in attempts)
        most = len(attempts) + _resendings(attempts)
        if not acked <= moved_consumed <= most:
            verdict.faults.append(
                f"of {CONSUMED} {acked} to {most} tasks were put, but the store counts {moved_consumed} handed over"
            )


def _resendings(attempts: Iterable[Attempt]) -> int:
    """How many more may be stored than were put: one that outlasts its task's waiting may store it again each time."""
    return sum(int((a.ended - a.begun) / a.countdown) for a in attempts if a.outlasted)
