"""A small HTTP server in a thread of its own, for probes and scrapers: each path is a function that answers.

Knows nothing of what it tells. It serves few, inside of a cluster; it is not meant for the open net.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

logger = logging.getLogger(__name__)

#: Seconds that a client may take to send its request.
PATIENCE = 5.0


@dataclass(frozen=True)
class Answer:
    """What a path answers."""

    status: int
    content_type: str
    body: bytes


#: From what a client accepts, as the header of its request says it, to what it gets.
Route = Callable[[str], Answer]


class Endpoint:
    """Answers GET and HEAD on some paths.

    Args:
        routes: path -> what answers it, called in a thread of the request. What it raises is logged, and a 500.
        host: the address to listen on, IPv4 or IPv6.
        port: 0 for a free one.
    """

    def __init__(self, routes: Mapping[str, Route], host: str, port: int) -> None:
        self._routes = dict(routes)
        self._host = host
        self._port = port
        self._server: _Server | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: there is no such address here, or another program listens on it.
        """
        server = self._server = _Server(self._host, self._port, self._routes)
        self._port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.1,), name="delayq-endpoint", daemon=True).start()

    def stop(self) -> None:
        """Close it. A request under way is left to its end."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"


class _Server(ThreadingHTTPServer):
    block_on_close = False

    def __init__(self, host: str, port: int, routes: Mapping[str, Route]) -> None:
        self.routes = routes
        self.address_family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # and not HTTPServer's, which asks DNS for our name: seconds, where DNS is away
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, *_: object) -> None:
        logger.debug("delayq endpoint: a request broke off", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "celery_delayq", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        answer = self._answer()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_GET  # noqa: N815  # http.server's name

    def _answer(self) -> Answer:
        path = self.path.partition("?")[0]
        route = self.server.routes.get(path)
        if route is None:
            return _text(404, f"there is {' and '.join(self.server.routes)}")
        try:
            return route(self.headers.get("Accept", ""))
        except Exception:
            logger.exception("delayq endpoint: %s failed", path)
            return _text(500, "it failed; the log says why")

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("delayq endpoint: %s: %s", self.address_string(), format % args)


def _text(status: int, text: str) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode())
