"""Every way to reach a Redis that Kombu knows works for the dispatcher too, with no settings of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from celery_delayq.embedded import RedisServer, free_port

from .certificates import write_certificate
from .worker import Project, Worker, newest_redis, wait_for

#: All that Kombu and we ask of Redis, but for channels.
RIGHTS = ["~*", "+@read", "+@write", "+@scripting", "+@pubsub", "+@transaction", "+@connection", "+time", "-@dangerous"]

#: All that a dispatcher asks of Redis: its own keys and channels, the ready lists, and scripts over them.
DISPATCHER_RIGHTS = [
    *("~delayq:{0}:*", "~celery*", "resetchannels", "&delayq:{0}:*"),
    *("+@read", "+@write", "-@dangerous", "+time"),
    *("+ping", "+hello", "+client", "+subscribe", "+unsubscribe", "+publish", "+evalsha", "+eval"),
]


def check(project: Project, worker: Worker) -> None:
    """A task that waits and one that becomes the earliest meanwhile are both run once."""
    later = project.send(countdown=1.5)
    sooner = project.send(countdown=0.3)
    project.ledger.wait_for([sooner, later])
    assert project.ledger.runs() == {sooner: 1, later: 1}
    for task_id in (sooner, later):
        (run,) = project.ledger.of(task_id)
        assert run["at"] >= run["due"]
    assert worker.said("Traceback") == 0


@contextmanager
def tls_server(port: int, certificate: Path, key: Path) -> Iterator[RedisServer]:
    """A server that also speaks TLS, if the newest one here can."""
    options = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    options += ["--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no"]
    servers = newest_redis(options)
    try:
        server = servers.__enter__()
    except RuntimeError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"this Redis was built without TLS: {error}")
    try:
        yield server
    finally:
        server.close()


def test_tls(tmp_path: Path) -> None:
    """A ``rediss://`` broker whose certificate is verified: the dispatcher's connections are encrypted, too."""
    certificate, key = write_certificate(tmp_path)
    port = free_port()
    url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={certificate}"
    with tls_server(port, certificate, key) as server, Project(url) as project, project.worker() as worker:
        worker.await_ready()
        check(project, worker)
        with server.client() as redis:
            plain = [entry for entry in redis.client_list() if not entry["laddr"].endswith(f":{port}")]
        assert len(plain) == 1  # the one that asks


def test_a_unix_socket(tmp_path: Path) -> None:
    """A ``redis+socket://`` broker."""
    socket = tmp_path / "redis.sock"
    with (
        newest_redis(["--unixsocket", str(socket)]),
        Project(f"redis+socket://{socket}?virtual_host=2") as project,
        project.worker() as worker,
    ):
        worker.await_ready()
        check(project, worker)


def test_a_user_with_few_rights(own_server: RedisServer) -> None:
    """A user of the ACL who may do what Kombu and we need, and nothing dangerous."""
    with own_server.client() as redis:
        redis.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", "&*", *RIGHTS)
    url = f"redis://app:secret@127.0.0.1:{own_server.port}/0"
    with Project(url) as project, project.worker() as worker:
        worker.await_ready()
        check(project, worker)
        assert "secret" not in worker.log()


def test_a_user_whose_channel_is_forbidden(own_server: RedisServer) -> None:
    """Without the right to our channel everything works by polling, and one warning names the right to give."""
    channels = ["resetchannels", "&/0.celery.pidbox", "&/0.reply.celery.pidbox"]
    with own_server.client() as redis:
        redis.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", *RIGHTS, *channels)
    url = f"redis://app:secret@127.0.0.1:{own_server.port}/0"
    with Project(url) as project, project.worker() as worker:
        worker.await_ready()
        check(project, worker)
        wait_for(lambda: worker.said("allow them with &delayq:{0}:*"), "the warning")
        assert worker.said("forbids the channels") == 1


def test_a_dispatcher_of_its_own_needs_very_little(own_server: RedisServer) -> None:
    """A dispatcher outside of workers gets along with the rights to its own keys, its channel and the ready lists."""
    with own_server.client() as redis:
        redis.execute_command("ACL", "SETUSER", "mover", "reset", "on", ">secret", *DISPATCHER_RIGHTS)
        with (
            Project(own_server.url()) as project,
            Project(f"redis://mover:secret@127.0.0.1:{own_server.port}/0") as restricted,
        ):
            dispatcher = restricted.app.delayq.dispatcher()
            dispatcher.start()
            try:
                task_ids = [
                    project.send(countdown=delay, priority=priority) for delay, priority in ((0.6, 0), (0.3, 9))
                ]
                wait_for(lambda: redis.llen("celery") + redis.llen("celery\x06\x169") == 2, "both are handed over")
            finally:
                dispatcher.stop()
        assert len(task_ids) == 2
        assert dispatcher.counts.errors == 0
        assert [entry["object"] for entry in redis.acl_log()] == []
