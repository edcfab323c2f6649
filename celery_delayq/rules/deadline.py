"""HTTP with one deadline for a whole answer, however slowly its bytes come.

httpx's timeouts are for each step alone: to them, a server that sends a byte a second, in its headers or its body, is
never late.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import httpcore
import httpx


class DeadlineTransport(httpx.BaseTransport):
    """Sends requests that have a moment (`time.monotonic()`) as their extension ``deadline``.

    Raises httpcore's errors: ``TimeoutException`` as soon as that moment has passed, also while a body is read;
    ``NetworkError``, ``ProtocolError``.
    """

    def __init__(self) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=_trust(),
            max_connections=None,
            keepalive_expiry=5.0,
            network_backend=_Network(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, its body still to be read."""
        url = request.url
        # httpcore hands these on as they are, and only _Network and _Stream read them: as a moment, not as a length.
        deadlines = dict.fromkeys(("connect", "read", "write"), request.extensions["deadline"])
        answer = self._pool.handle_request(
            httpcore.Request(
                request.method,
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                extensions={"timeout": deadlines},
            )
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer))

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


@cache
def _trust() -> ssl.SSLContext:
    """Whose certificates are trusted: read once, since that takes 50 ms."""
    return httpx.create_ssl_context()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


class _Network(httpcore.NetworkBackend):
    """Connections whose every step is given only what is left of the time until a deadline."""

    def __init__(self) -> None:
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error
        failure: httpcore.TimeoutException | httpcore.NetworkError = httpcore.ConnectError("the host has no address")
        for position, (*_, address) in enumerate(found):
            # So that an address that swallows everything leaves time for the next.
            seconds = _left(timeout, httpcore.ConnectTimeout) / (len(found) - position)
            try:
                stream = self._network.connect_tcp(str(address[0]), port, seconds, local_address, socket_options)
            except (httpcore.ConnectTimeout, httpcore.ConnectError) as error:
                failure = error
            else:
                return _Stream(stream)
        raise failure


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float | None, too_late: type[httpcore.TimeoutException]) -> float:
    """Seconds until *deadline*."""
    assert deadline is not None  # noqa: S101  # what handle_request gave
    left = deadline - time.monotonic()
    if left <= 0:
        raise too_late
    return left
