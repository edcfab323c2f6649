"""The HTTP server of probes and scrapers."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from celery_delayq.endpoint import Answer, Endpoint


def fails(_: str) -> Answer:
    raise RuntimeError("a fault")


@pytest.fixture(params=["127.0.0.1", "::1"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    routes = {
        "/a": lambda _: Answer(200, "text/a", b"it is a"),
        "/b": lambda _: Answer(503, "text/b", b"no"),
        "/c": fails,
    }
    made = Endpoint(routes, request.param, 0)
    try:
        made.start()
    except OSError:
        pytest.skip(f"this machine has no {request.param}")
    yield made
    made.stop()


def ask(endpoint: Endpoint, path: str, method: str = "GET") -> tuple[int, str | None, bytes]:
    where = urlsplit(endpoint.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
    try:
        connection.request(method, path)
        said = connection.getresponse()
        return said.status, said.headers["Content-Type"], said.read()
    finally:
        connection.close()


def test_paths_answer(endpoint: Endpoint) -> None:
    """Each its own; a question behind the path is left alone; HEAD is GET without a body."""
    assert ask(endpoint, "/a") == (200, "text/a", b"it is a")
    assert ask(endpoint, "/a?x=1") == (200, "text/a", b"it is a")
    assert ask(endpoint, "/a", "HEAD") == (200, "text/a", b"")
    assert ask(endpoint, "/b") == (503, "text/b", b"no")
    assert ask(endpoint, "/")[::2] == (404, b"there is /a and /b and /c\n")
    assert ask(endpoint, "/a", "POST")[0] == 501


def test_a_path_that_fails(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    """Says so, to who asks and to the log; the others go on."""
    assert ask(endpoint, "/c")[::2] == (500, b"it failed; the log says why\n")
    assert "a fault" in caplog.text
    assert ask(endpoint, "/a")[0] == 200


def test_who_says_nothing_holds_up_nobody(endpoint: Endpoint) -> None:
    """A connection without a request, and half of one."""
    where = urlsplit(endpoint.url)
    with socket.create_connection((where.hostname or "", where.port or 0)) as silent:
        silent.sendall(b"GET /a")
        assert ask(endpoint, "/a")[0] == 200


def test_a_port_that_is_taken() -> None:
    """Is an error at the start."""
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        Endpoint({}, "127.0.0.1", other.getsockname()[1]).start()


def test_a_stop_closes_it(endpoint: Endpoint) -> None:
    """Also a second one."""
    endpoint.stop()
    endpoint.stop()
    with pytest.raises(OSError, match="refused"):
        ask(endpoint, "/a")
