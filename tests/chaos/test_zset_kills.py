"""Bare sorted sets: Redis and dispatchers are killed in the middle of their work."""

from __future__ import annotations

from contextlib import ExitStack

from celery_delayq.embedded import RedisServer
from tests.integration.test_dispatch_zset import now, running
from tests.replication import until

#: What Redis does when it is killed between two commands does not differ.
ONE_REDIS = True

COUNT = 6000


def test_each_member_comes_once(redis_server: RedisServer) -> None:
    """Whoever is killed: after each thousand members Redis, which has on disk whatever it has answered, or one of three
    dispatchers.
    """
    with (
        RedisServer(redis_server._program, ["--appendonly", "yes", "--appendfsync", "always"]) as server,
        server.client() as client,
        ExitStack() as stack,
    ):
        programs = [stack.enter_context(running(server, "-n", batch)) for batch in ("1", "10", "100")]
        begin = now(client) + 1
        members = [f"{number:04}" for number in range(COUNT)]
        client.zadd("delayedtaskset", {member: begin + int(member) / 1000 for member in members})
        for kill in range(1, COUNT // 1000):
            until(lambda moved=kill * 1000: client.llen("readytasklist") >= moved, f"{kill}000 are moved")
            if kill % 2:
                server.stop()
                server.start()
            else:
                programs[kill // 2 - 1].process.kill()
                programs.append(stack.enter_context(running(server)))
        until(lambda: client.zcard("delayedtaskset") == 0, "all are moved")
        assert sorted(client.lrange("readytasklist", 0, -1)) == [member.encode() for member in members]
        left = programs[2:]
        until(lambda: len(client.client_list(_type="pubsub")) == len(left), "who was started last is at work")
        for program in left:
            program.end()
