"""The network between the participants and a server: a proxy for each rack, whose connections can be cut.

A thread with an event loop of its own; the methods are called from another thread and return when they have worked.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

#: Close with a reset: what is on its way is lost, and the peer is told so.
RESET = struct.pack("ii", 1, 0)


class End(asyncio.Protocol):
    """One of the two sockets of a link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.transport: Any = None
        self.gone = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.link.opened(self)

    def data_received(self, data: bytes) -> None:
        self.link.carry(self, data)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        self.link.lost(self)

    def reset(self) -> None:
        if self.transport is not None and not self.gone:
            with suppress(OSError):  # it is closed already
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()


class Link:
    """A connection through a rack's proxy: *near* is the participant's, *far* is the server's."""

    def __init__(self, rack: Rack) -> None:
        self.rack = rack
        self.near, self.far = End(self), End(self)
        self.held: list[tuple[End, bytes]] = []  # for whom, what

    def opened(self, end: End) -> None:
        if end is self.near:
            self.rack.links.add(self)
            self.rack.network.spawn(self._reach())
        elif self.near.gone:
            end.reset()
        else:
            self.flush()

    async def _reach(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: self.far, "127.0.0.1", self.rack.server_port)
        except OSError:  # the server is down
            self.far.gone = True
            self.lost(self.far)

    def carry(self, end: End, data: bytes) -> None:
        self.held.append((self.far if end is self.near else self.near, data))
        self.flush()

    def flush(self) -> None:
        """Pass on what is held, unless the rack is in a black hole or the server not reached yet."""
        if self.rack.is_hole or self.far.transport is None:
            return
        for end, data in self.held:
            if not end.gone:
                end.transport.write(data)
        self.held.clear()

    def lost(self, end: End) -> None:
        if self.rack.is_hole and end is self.far:
            return  # the participant hears of it when the hole ends
        # What a participant that has given up had sent into a hole never arrives: else it could come after a put that
        # was sent again, and after its dispatch.
        self.reset()

    def reset(self) -> None:
        self.held.clear()
        self.near.reset()
        self.far.reset()
        self.rack.links.discard(self)


class Rack:
    """The proxy of some participants."""

    def __init__(self, network: Network, server_port: int) -> None:
        self.network = network
        self.server_port = server_port
        self.links: set[Link] = set()
        self.is_hole = False
        self._server: asyncio.Server | None = None
        # Bound and never listening, it keeps the port while connections are refused.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._holder.bind(("127.0.0.1", 0))
        self.port = self._holder.getsockname()[1]

    async def reset(self) -> None:
        for link in list(self.links):
            link.reset()

    async def refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.reset()

    async def hole(self) -> None:
        self.is_hole = True

    async def heal(self) -> None:
        self.is_hole = False
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(
                lambda: Link(self).near, "127.0.0.1", self.port, reuse_port=True, backlog=200
            )
        for link in list(self.links):
            if link.far.gone:
                link.reset()
            else:
                link.flush()

    async def close(self) -> None:
        await self.refuse()
        self._holder.close()


class Network:
    """A proxy for each of *racks*: its name, and the port of the server on loopback that it leads to."""

    def __init__(self, racks: Mapping[str, int]) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._racks = {rack: Rack(self, port) for rack, port in racks.items()}
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def port(self, rack: str) -> int:
        """Where the participants of a rack find their server."""
        return int(self._racks[rack].port)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def reset(self, rack: str) -> None:
        """End all connections of a rack; new ones can be made."""
        self._do(self._racks[rack].reset())

    def refuse(self, rack: str) -> None:
        """End all connections of a rack, and refuse new ones until it is healed."""
        self._do(self._racks[rack].refuse())

    def hole(self, rack: str) -> None:
        """Let nothing of a rack through until it is healed; nobody is told."""
        self._do(self._racks[rack].hole())

    def heal(self, rack: str) -> None:
        """Let everything through, also what came meanwhile from who is still there."""
        self._do(self._racks[rack].heal())

    def __enter__(self) -> Network:
        self._thread.start()
        for rack in self._racks:
            self.heal(rack)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for rack in self._racks.values():
            self._do(rack.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
