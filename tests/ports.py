"""Ports for servers that are killed and started again."""

from __future__ import annotations

import socket
from contextlib import suppress
from random import Random


def quiet_port() -> int:
    """A free loopback port that the system gives to no outgoing connection: ours must still be free after a restart."""
    chance = Random()
    while True:
        port = chance.randrange(15_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
