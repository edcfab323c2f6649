"""A Redis Cluster of one's own: its nodes are started here, formed by commands, and may be killed and change slots."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import redis

from celery_delayq.cluster import slot_of
from celery_delayq.embedded import RedisServer, free_port
from celery_delayq.scripts import PURPOSE

from .replication import until

SLOTS = 16384

#: A node that is silent for so long (ms) is down.
NODE_TIMEOUT = 1000

#: A node's bus listens on its port and this.
BUS = 10000


def _port() -> int:
    """A free port whose bus port is free, too."""
    while True:
        port = free_port()
        if port + BUS < 65536:
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port + BUS))
                except OSError:
                    continue
                return port


class Nodes:
    """A context manager: a cluster of masters that share the slots, the first of which have a replica each.

    Args:
        masters, replicas: how many.
        program: the server; by default the oldest one that is here.
    """

    def __init__(self, masters: int = 3, replicas: int = 0, program: str | None = None) -> None:
        self._count = masters, replicas
        self._program = program
        self._stack = ExitStack()
        self.servers: list[RedisServer] = []

    def __enter__(self) -> Nodes:
        masters, replicas = self._count
        with ExitStack() as stack:
            options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT)]
            options += ["--cluster-config-file", "nodes.conf", "--repl-diskless-sync-delay", "0"]
            for _ in range(masters + replicas):
                server = RedisServer(self._program, options)
                server.port = _port()
                self.servers.append(stack.enter_context(server))
            self._clients = [
                stack.enter_context(redis.Redis(port=server.port, decode_responses=True)) for server in self.servers
            ]
            self.ids = [self.tell(number, "CLUSTER", "MYID") for number in range(len(self.servers))]
            self._form()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _form(self) -> None:
        masters, replicas = self._count
        for number in range(masters):
            self.tell(number, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            share = range(SLOTS * number // masters, SLOTS * (number + 1) // masters)
            self.tell(number, "CLUSTER", "ADDSLOTS", *share)
        everybody = range(len(self.servers))
        for number in everybody:  # each: gossip would take seconds
            for server in self.servers[number + 1 :]:
                self.tell(number, "CLUSTER", "MEET", "127.0.0.1", server.port)
        until(
            lambda: all(id in self.tell(number, "CLUSTER", "NODES") for number in everybody for id in self.ids),
            "all nodes know each other",
        )
        for number in range(replicas):
            self.tell(masters + number, "CLUSTER", "REPLICATE", self.ids[number])
        until(lambda: all(self._is_well(number) for number in everybody), "the cluster is there")
        until(lambda: all(self.tell(n, "WAIT", 1, 100) == 1 for n in range(replicas)), "the replicas follow")

    def _is_well(self, number: int) -> bool:
        return "cluster_state:ok" in self.tell(number, "CLUSTER", "INFO")

    def tell(self, number: int, *words: str | int) -> Any:
        """Send a command to the node of that number; the reply as it is."""
        client = self._clients[number]
        connection: Any = client.connection_pool.get_connection(*PURPOSE)
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            client.connection_pool.release(connection)

    @property
    def url(self) -> str:
        """For ``delayq_store_url``."""
        return f"redis-cluster://{','.join(f'127.0.0.1:{server.port}' for server in self.servers)}"

    def client(self, number: int) -> redis.Redis:
        """Of the node of that number; its replies are text."""
        return self._clients[number]

    def owner(self, slot: int) -> int:
        """The number of the node that owns *slot*, when all masters that live have come to agree on it."""
        said: set[str] = set()

        def agreed() -> bool:
            said.clear()
            said.update(self._said(number, slot) for number in range(len(self.servers)) if self.servers[number].running)
            return len(said) == 1 and said <= {*self.ids}

        until(agreed, f"all nodes agree on who owns slot {slot}")
        return self.ids.index(said.pop())

    def _said(self, number: int, slot: int) -> str:
        """The id of the node that owns *slot*, as the node of that number sees it."""
        ranges = self.tell(number, "CLUSTER", "SLOTS")
        return next((owner[2] for first, last, owner, *_ in ranges if first <= slot <= last), "")

    def await_replica(self, number: int) -> None:
        """Wait until the replica of that master has all that was put over any connection."""

        def has_all() -> bool:
            told = self.client(number).info("replication")
            return bool(told["slave0"]["offset"] == told["master_repl_offset"])

        until(has_all, f"the replica of node {number} follows")

    def _epochs(self, number: int) -> dict[str, int]:
        """The configuration epoch of each node, by its id, as the node of that number knows it."""
        lines: list[str] = self.tell(number, "CLUSTER", "NODES").splitlines()
        return {id: int(epoch) for id, _, _, _, _, _, epoch, *_ in map(str.split, lines)}

    def _await_epochs(self) -> None:
        """Wait until all nodes that live know the same epochs, and no two masters have the same.

        The node to which a slot moves takes an epoch above all that it knows. If gossip has not brought it the last
        one, two nodes may have one and the same, and each may believe for good that a slot is its own.
        """

        def agreed() -> bool:
            living = [number for number, server in enumerate(self.servers) if server.running]
            told = [self._epochs(number) for number in living]
            masters = [told[0][id] for id in self.ids[: self._count[0]]]
            return all(epochs == told[0] for epochs in told) and len({*masters}) == len(masters)

        until(agreed, "all nodes know the same epochs")

    def begin_move(self, slot: int, target: int) -> int:
        """The slot is on its way: keys of it may be here or there. Returns the number of the node it is leaving."""
        source = self.owner(slot)
        self._await_epochs()
        self.tell(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source])
        self.tell(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target])
        return source

    def move_keys(self, slot: int, source: int, target: int, limit: int = 1000) -> int:
        """Move some keys of a slot that is on its way; returns how many."""
        keys = self.tell(source, "CLUSTER", "GETKEYSINSLOT", slot, limit)
        if keys:
            self.tell(source, "MIGRATE", "127.0.0.1", self.servers[target].port, "", 0, 10_000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, source: int, target: int) -> None:
        """The slot has arrived: all masters are told."""
        for number in (target, source, *(set(range(self._count[0])) - {target, source})):
            self.tell(number, "CLUSTER", "SETSLOT", slot, "NODE", self.ids[target])

    def move(self, slot: int, target: int) -> None:
        """Move a slot with all its keys, as redis-cli does it."""
        source = self.begin_move(slot, target)
        while self.move_keys(slot, source, target):
            pass
        self.end_move(slot, source, target)

    def empty(self) -> None:
        """Delete all keys."""
        for number in range(self._count[0]):
            self.tell(number, "FLUSHALL")


def slots_of_shards(count: int, prefix: str = "delayq") -> list[int]:
    """The slot of each shard's keys."""
    return [slot_of(f"{prefix}:{{{shard}}}:index") for shard in range(count)]
