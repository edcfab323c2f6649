"""A real HTTP server on a free port of the loopback interface, that answers as a test tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What came: ``path`` with the query, as it came."""

    path: str
    headers: Mapping[str, str]
    client_address: tuple[str, int]


class Answering(BaseHTTPRequestHandler):
    """One request; what a test's function is given to answer it."""

    protocol_version = "HTTP/1.1"
    # The headers leave with the body, and no answer waits for the other side's acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: HttpServer

    def do_GET(self) -> None:
        self.server.requests.append(Request(self.path, self.headers, self.client_address))
        try:
            self.server.answer(self)
        except ConnectionError:  # the other side has had enough
            self.close_connection = True

    def send(self, body: bytes | str, status: int = 200, **headers: str) -> None:
        """A whole answer; ``Retry_After`` stands for the header ``Retry-After``."""
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, value: Any) -> None:
        self.send(json.dumps(value), Content_Type="application/json")

    def redirect(self, location: str, status: int = 302) -> None:
        self.send("", status, Location=location)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class HttpServer(ThreadingHTTPServer):
    """Answers each request by :attr:`answer`, in a thread of its own.

    Attributes:
        answer: may be replaced at any time.
        requests: what came, in its order.
        stopping: set when the server is to end; what waits in an answer waits for this.
    """

    daemon_threads = True
    request_queue_size = 128
    answer: Callable[[Answering], object]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.requests: list[Request] = []
        self.stopping = threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def paths(self) -> list[str]:
        """Of all requests."""
        return [request.path for request in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error."""


@contextmanager
def http_server() -> Iterator[HttpServer]:
    """A server that runs."""
    with HttpServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            server.shutdown()
            thread.join()
