"""A master that fails over under Sentinel, in every way: what waits is there, and tasks are put and run again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Event, Thread

from kombu.exceptions import OperationalError

from tests.conftest import skip_or_fail
from tests.replication import MASTER, Replicated, until

from .worker import Project, handed_over, wait_for


@contextmanager
def replicated(replicas: int = 1, sentinels: int = 1) -> Iterator[Replicated]:
    """Servers and Sentinels of the newest version that is here."""
    with ExitStack() as stack:
        try:
            servers = stack.enter_context(Replicated(replicas, sentinels))
        except FileNotFoundError as error:
            skip_or_fail(str(error))
        yield servers


@contextmanager
def service(servers: Replicated, *arguments: str) -> Iterator[Project]:
    """A project and a worker. Nothing is set but what Kombu needs, and that publishing is retried for long enough."""
    conf = {
        "broker_transport_options": {"master_name": MASTER},
        "task_publish_retry_policy": {"max_retries": 60, "interval_start": 0.2, "interval_max": 0.5},
    }
    with Project(servers.url, **conf) as project, project.worker(*arguments) as worker:
        worker.await_ready()
        yield project


def put_ahead(project: Project, servers: Replicated, seconds: float = 3) -> list[str]:
    """Tasks that are due after *seconds* and later; they are on the replicas."""
    task_ids = [project.send(countdown=seconds + number / 20) for number in range(20)]
    until(lambda: servers.client().wait(len(servers.servers) - 1, 1000), "the replicas have them")
    return task_ids


def assert_goes_on(project: Project, before: list[str]) -> None:
    """What was put before, and what is put now, runs once."""
    after = [project.send(countdown=0.3) for _ in range(5)]
    project.ledger.wait_for(after + before)
    assert project.ledger.runs() == dict.fromkeys(before + after, 1)


def test_tasks_outlive_a_hung_master() -> None:
    """A master that hangs, and hangs still when all is done: nobody waits for it, though nobody has a timeout."""
    with replicated() as servers, service(servers) as project:
        before = put_ahead(project, servers)
        old = servers.master
        old.hang()
        stuck: list[str] = []
        sender = Thread(target=lambda: stuck.append(project.send(countdown=0.3)))
        sender.start()
        servers.await_another(old)
        sender.join(60)
        assert len(stuck) == 1, "a put that hung with the master goes on with the new one"
        assert_goes_on(project, before + stuck)


def test_a_living_master_that_was_failed_over_is_left() -> None:
    """``SENTINEL FAILOVER``: all go to the new master, though the old one lives, and cannot even be demoted."""
    with replicated(2, 3) as servers, service(servers) as project:
        before = put_ahead(project, servers, seconds=6)  # when it is over: what is due in its middle can run twice
        old = servers.master
        servers.client(old).execute_command("ACL", "SETUSER", "default", "-slaveof", "-replicaof")
        servers.fail_over()
        servers.await_another(old)
        assert_goes_on(project, before)
        assert servers.client(old).info("replication")["role"] == "master"


def test_tasks_outlive_a_master_that_is_killed_with_a_sentinel() -> None:
    """The first of three Sentinels dies with the master, and holds up nobody."""
    with replicated(1, 3) as servers, service(servers) as project:
        before = put_ahead(project, servers)
        old = servers.master
        servers.sentinels[0].kill()
        old.stop()
        servers.await_another(old)
        assert_goes_on(project, before)


def test_a_planned_failover_loses_and_doubles_nothing() -> None:
    """Writes paused, then failed over, while tasks are put and fall due: each is handed over once by the new master."""
    with replicated() as servers, service(servers, "--queues=elsewhere") as project:
        sent: list[str] = []
        over = Event()

        def produce() -> None:
            while not over.wait(0.01):
                with suppress(OperationalError):  # then nothing was promised
                    sent.append(project.send(countdown=0.5, queue="orders"))

        producer = Thread(target=produce)
        producer.start()
        try:
            wait_for(lambda: servers.client().llen("orders") > 50, "tasks are put and handed over")
            old = servers.master
            servers.client(old).execute_command("CLIENT", "PAUSE", 30_000, "WRITE")
            servers.fail_over()
            servers.await_another(old)
            count = len(sent)
            wait_for(lambda: len(sent) > count + 50, "tasks are put again")
        finally:
            over.set()
            producer.join()
        wait_for(lambda: servers.client().zcard("delayq:{0}:schedule:orders") == 0, "all is handed over")
        found = handed_over(servers.client(), "orders")
        assert set(found.values()) == {1}
        assert set(sent) <= set(found)
