"""A bad connection: what passes on bytes, and loses an answer where it is told to."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """A context manager: listens on :attr:`port`, and passes all on to another port of this machine."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._loses = False
        self.port: int = self._listener.getsockname()[1]
        self.lost = 0

    def lose_next_answer(self) -> None:
        """The next answer is not passed on: its connection breaks instead."""
        self._loses = True

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for one in (self._listener, *self._sockets):
            _close(one)

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._behind))
            self._sockets += here, there
            threading.Thread(target=self._pass_on, args=(here, there, False), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(there, here, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(65536):
                if answers and self._loses:
                    self._loses = False
                    self.lost += 1
                    break
                target.sendall(data)
        except OSError:
            pass
        _close(source)
        _close(target)


def _close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
