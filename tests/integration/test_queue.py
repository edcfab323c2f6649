"""DelayQueue, and its twin for asyncio: jobs without Celery."""

from __future__ import annotations

import re
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_delayq import AlreadyScheduled, DelayQError, DelayQueue, ImproperlyConfigured, LeaseLost
from celery_delayq.cluster import slot_of
from celery_delayq.embedded import RedisServer
from celery_delayq.errors import Outdated
from celery_delayq.keys import Keys
from celery_delayq.queue_arguments import LARGEST_PUT
from celery_delayq.sharding import shard_of
from tests.clustering import Nodes

from .proxy import Proxy
from .queues import MakeQueue, make_queue

#: What differs between versions of Redis is asked by the tests of the scripts.
ONE_REDIS = True

__all__ = ["make_queue"]

#: Far away (s).
LATER = 3600.0


def ids(jobs: object) -> list[str]:
    return [job.id for job in jobs]  # type: ignore[attr-defined]


def test_a_job_comes_when_it_is_due_and_not_before(make_queue: MakeQueue) -> None:
    """With its id, its body and its time, to whoever asks then."""
    queue = make_queue()
    due = datetime.now(timezone.utc) + timedelta(seconds=0.5)
    queue.put("welcome", b"\x00body", at=due)

    assert queue.reserve() == []
    assert len(queue) == 1
    [job] = queue.reserve(wait=30)

    assert datetime.now(timezone.utc) >= due
    assert (job.id, job.body, job.due, job.attempts) == ("welcome", b"\x00body", due, 1)
    queue.ack(job)
    assert queue.stats() == queue.stats().__class__(0, 0, 0, 0)


@pytest.mark.parametrize(
    "when",
    [
        {},
        {"delay": 0},
        {"delay": -5},
        {"delay": timedelta(seconds=-1)},
        {"at": 0},
        {"at": -1.5},
        {"at": datetime(1970, 1, 2)},  # a naive one is UTC
    ],
)
def test_what_is_past_is_due_now(make_queue: MakeQueue, when: dict[str, object]) -> None:
    """However it is said."""
    queue = make_queue()
    queue.put("a", b"", **when)

    assert ids(queue.reserve()) == ["a"]


def test_an_id_is_there_once(make_queue: MakeQueue) -> None:
    """Whoever puts it again is told; or keeps it; or replaces it."""
    queue = make_queue()
    queue.put("a", b"first", delay=LATER)

    with pytest.raises(AlreadyScheduled, match="'a'"):
        queue.put("a", b"first", delay=LATER)
    queue.put("a", b"second", on_conflict="keep")
    assert queue.reserve() == []
    queue.put("a", b"third", on_conflict="replace")

    assert [job.body for job in queue.reserve(limit=9)] == [b"third"]


def test_an_id_is_free_in_every_topic(make_queue: MakeQueue) -> None:
    """Topics share nothing."""
    mails, calls = make_queue("mails"), make_queue("calls")
    mails.put("a", b"mail")
    calls.put("a", b"call")

    assert calls.delete("a")
    assert [job.body for job in mails.reserve(limit=9)] == [b"mail"]


@pytest.mark.parametrize("id", [b"\xff\x00\n", "ü\n", "\udcff", "x" * 100_000, " ", b"+", "0"])
def test_ids_are_bytes(make_queue: MakeQueue, id: str | bytes) -> None:
    """Whatever they hold; what is no UTF-8 comes back as a str that means the same bytes."""
    queue = make_queue()
    queue.put(id, b"body", delay=LATER)
    [seen] = queue.scheduled()

    assert queue.move(seen.id, delay=0)
    [job] = queue.reserve()
    assert job.id.encode(errors="surrogateescape") == (
        id if isinstance(id, bytes) else id.encode(errors="surrogateescape")
    )
    queue.extend(job)
    queue.release(job, delay=LATER)
    assert queue.delete(job.id)


def test_bodies_are_bytes_of_any_size(make_queue: MakeQueue) -> None:
    """Empty ones and huge ones; of whatever holds bytes."""
    queue = make_queue()
    bodies = [b"", b"\n\x00\xff", bytes(5_000_000)]
    for number, body in enumerate(bodies):
        queue.put(f"{number}", memoryview(body) if number else bytearray(body))

    found: list[bytes] = []
    while jobs := queue.reserve(limit=10):
        found += [job.body for job in jobs]
    assert found == bodies


@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        (("a", "text"), {}, TypeError, "must be bytes, not str: encode"),
        ((7, b""), {}, TypeError, "id must be a str or bytes"),
        (("", b""), {}, ValueError, "must not be empty"),
        (("a", b""), {"at": 5, "delay": 5}, TypeError, "either at or delay"),
        (("a", b""), {"at": "tomorrow"}, TypeError, "at must be a datetime or seconds"),
        (("a", b""), {"delay": float("nan")}, ValueError, "delay must be finite"),
        (("a", b""), {"at": 1e20}, ValueError, "before the year 2255"),
        (("a", b""), {"delay": 1e15}, ValueError, "2255"),
        (("a", b""), {"on_conflict": "perhaps"}, ValueError, "perhaps"),
    ],
)
def test_what_cannot_be_put_is_refused(
    make_queue: MakeQueue, args: tuple[object, ...], options: dict[str, object], error: type[Exception], words: str
) -> None:
    """By an error that says why, and nothing is stored."""
    queue = make_queue()

    with pytest.raises(error, match=words):
        queue.put(*args, **options)
    assert len(queue) == 0


@pytest.mark.parametrize("call", ["delete", "move", "revive", "discard"])
def test_an_id_of_another_type_is_refused(make_queue: MakeQueue, call: str) -> None:
    """By an error that says what an id is."""
    with pytest.raises(TypeError, match="id must be a str or bytes, not int 7"):
        getattr(make_queue(), call)(7)


@pytest.mark.parametrize("call", ["ack", "release", "extend"])
def test_what_is_no_job_is_refused(make_queue: MakeQueue, call: str) -> None:
    """An id is not enough: the token is what counts."""
    with pytest.raises(TypeError, match="give the Job that reserve returned, not str 'a'"):
        getattr(make_queue(), call)("a")


def test_a_batch_is_stored_whole_or_not_at_all(make_queue: MakeQueue) -> None:
    """One id that waits already, one that is there twice, one job that is none: then none is stored."""
    queue = make_queue()
    at = datetime.now(timezone.utc) + timedelta(hours=1)
    assert queue.put_many([("a", b"1", at), ("b", b"2", timedelta(hours=2)), ("c", b"3", None)]) == 3
    assert queue.put_many([]) == 0

    for more in ([("d", b"", at), ("b", b"", at)], [("d", b"", at), ("d", b"", at)]):
        with pytest.raises(AlreadyScheduled):
            queue.put_many(more)
    with pytest.raises(TypeError, match=r"job 1 of the batch must be \(id, body, at\)"):
        queue.put_many([("d", b"", at), ("e", b"")])
    with pytest.raises(ValueError, match=f"{LARGEST_PUT} at most"):
        queue.put_many([("d", b"", at)] * (LARGEST_PUT + 1))
    assert ids(queue.scheduled()) == ["c", "a", "b"]
    assert queue.put_many([("d", b"", at), ("b", b"", at)], on_conflict="keep") == 1


def test_jobs_leave_in_the_order_of_their_times(make_queue: MakeQueue) -> None:
    """Those of one time in the order in which they were put."""
    queue = make_queue()
    queue.put_many([("z", b"", 5), ("a", b"", 5), ("m", b"", 3)])

    # What is past is due at one moment: when it was put.
    assert ids(queue.reserve(limit=9)) == ["z", "a", "m"]


def test_delete_takes_what_waits_and_what_is_reserved(make_queue: MakeQueue) -> None:
    """And whoever had it under a lease has lost that."""
    queue = make_queue()
    queue.put("waits", b"", delay=LATER)
    queue.put("held", b"")
    [held] = queue.reserve()

    assert queue.delete("waits")
    assert queue.delete("held")
    assert not queue.delete("held")
    assert not queue.delete("never")
    with pytest.raises(LeaseLost, match="'held' is no longer yours"):
        queue.ack(held)


def test_move_gives_another_time(make_queue: MakeQueue) -> None:
    """To what waits, and to nothing else."""
    queue = make_queue()
    queue.put("a", b"", delay=LATER)

    assert queue.move("a", delay=0)
    [job] = queue.reserve()
    assert not queue.move("a", delay=5)
    assert not queue.move("b", at=5)
    queue.ack(job)


def test_a_lease_that_is_over_gives_the_job_to_another(make_queue: MakeQueue) -> None:
    """The old token does nothing any more, whatever is tried with it; of several jobs the others are done."""
    queue = make_queue()
    queue.put("a", b"")
    [old] = queue.reserve(lease=0.001)
    [new] = queue.reserve(wait=30)
    queue.put("b", b"")
    [other] = queue.reserve()

    assert (new.id, new.attempts) == ("a", 2)
    with pytest.raises(LeaseLost):
        queue.release(old)
    with pytest.raises(LeaseLost):
        queue.extend(old)
    with pytest.raises(LeaseLost) as raised:
        queue.ack(old, other)
    assert raised.value.ids == ("a",)
    queue.ack(new)
    assert queue.stats().reserved == 0


def test_a_lease_can_be_extended(make_queue: MakeQueue) -> None:
    """From now on, to a later or an earlier end."""
    queue = make_queue()
    queue.put("a", b"")
    [job] = queue.reserve(lease=LATER)

    queue.extend(job, lease=0.001)
    [again] = queue.reserve(wait=30)
    assert again.attempts == 2


def test_release_gives_back(make_queue: MakeQueue) -> None:
    """Now or later, as often as is allowed; then the job is dead, with the reason, until a person says otherwise."""
    queue = make_queue(max_attempts=2)
    queue.put("a", b"body")
    [job] = queue.reserve()
    queue.release(job, delay=LATER)
    assert queue.reserve() == []
    queue.move("a", delay=0)
    [job] = queue.reserve()
    assert job.attempts == 2
    queue.release(job, reason="no such address")

    assert queue.stats().dead == 1
    [dead] = queue.dead()
    assert (dead.id, dead.body, dead.attempts, dead.reason) == (b"a", b"body", 2, "no such address")
    assert queue.revive("a", "b") == 1
    [job] = queue.reserve()
    assert job.attempts == 1
    queue.release(job)
    [job] = queue.reserve()
    queue.release(job)
    assert queue.discard("a") == 1
    assert queue.stats().dead == 0


def test_requeue_ends_leases(make_queue: MakeQueue) -> None:
    """For those who only pull, and look after leases by a clock of their own; not more than they say."""
    queue = make_queue()
    queue.put_many([(f"{number}", b"", None) for number in range(5)])
    queue.reserve(lease=0.000001, limit=5)

    assert queue.requeue(limit=2) == 2
    assert queue.requeue() == 3
    assert queue.requeue() == 0
    assert len(queue) == 5


def test_pull_takes_for_good(make_queue: MakeQueue) -> None:
    """Nobody else gets it, and nobody can ack it."""
    queue = make_queue()
    queue.put_many([("a", b"1", None), ("b", b"2", None), ("c", b"3", timedelta(hours=1))])

    pulled = queue.pull(limit=5)
    assert [(job.id, job.body) for job in pulled] == [("a", b"1"), ("b", b"2")]
    with pytest.raises(LeaseLost):
        queue.ack(pulled[0])
    assert queue.pull() == []


def test_who_iterates_gets_what_is_due(make_queue: MakeQueue) -> None:
    """One after the other, under a lease; who leaves the loop holds one job and no more."""
    queue = make_queue()
    queue.put_many([("a", b"", None), ("b", b"", None), ("c", b"", None), ("d", b"", timedelta(hours=1))])

    for job in queue:
        queue.ack(job)
        break
    assert queue.stats().reserved == 0
    assert ids(queue) == ["b", "c"]
    assert len(queue) == 1


def test_a_look_takes_nothing(make_queue: MakeQueue) -> None:
    """Waiting jobs in the order in which they leave, all or those of some time; many pages of them."""
    queue = make_queue()
    begin = time.time() + LATER
    queue.put_many([(f"{number:04}", b"%d" % number, begin + number) for number in range(2500)])

    assert ids(queue.scheduled()) == [f"{number:04}" for number in range(2500)]
    assert ids(queue.scheduled(begin + 5, begin + 7)) == ["0005", "0006"]
    assert len(queue) == 2500


def test_who_waits_is_woken_by_a_put(make_queue: MakeQueue, server: RedisServer) -> None:
    """Also if others wait for a later time, and although another topic has earlier jobs."""
    queue = make_queue()
    with DelayQueue(server.url(), "emails") as putter, DelayQueue(server.url(), "other") as other:
        other.put("early", b"", delay=0.1)
        queue.put("late", b"", delay=LATER)
        timer = threading.Timer(0.3, putter.put, ("now", b""))
        timer.start()
        begin = time.monotonic()
        [job] = queue.reserve(wait=60)
        timer.join()

    assert job.id == "now"
    assert time.monotonic() - begin < 4  # by far less than a poll


def test_who_waits_has_a_limit(make_queue: MakeQueue) -> None:
    """Then he has nothing."""
    queue = make_queue()
    queue.put("late", b"", delay=LATER)

    assert queue.reserve(wait=0.05) == []
    assert queue.reserve(wait=0.05) == []


def test_who_waits_gets_what_a_dead_consumer_held(make_queue: MakeQueue) -> None:
    """When its lease is over, without anybody's help."""
    queue = make_queue()
    queue.put("a", b"")
    queue.reserve(lease=0.3)

    begin = time.monotonic()
    [job] = queue.reserve(wait=None)
    assert job.attempts == 2
    assert time.monotonic() - begin < 4


def test_jobs_are_spread_over_shards(make_queue: MakeQueue) -> None:
    """All that holds of a queue holds of one with shards, too; only an order among them there is not."""
    queue = make_queue(shards=4)
    assert queue.put_many([(f"{number}", b"%d" % number, None) for number in range(40)]) == 40
    queue.put("late", b"", delay=LATER)

    with pytest.raises(AlreadyScheduled):
        queue.put("late", b"")
    assert len(queue) == 41
    assert set(ids(queue.scheduled())) == {"late", *map(str, range(40))}
    taken = queue.reserve(limit=30)
    assert len(taken) == 30
    assert {job.shard for job in taken} >= {0, 1, 2}
    queue.ack(*taken[:20])
    queue.extend(*taken[20:])
    assert all(queue.delete(job.id) for job in taken[20:])
    assert queue.move("late", delay=0)
    assert len(queue.pull(limit=100)) == 11
    assert queue.stats().waiting == 0


def test_shards_can_be_added_while_jobs_wait(make_queue: MakeQueue) -> None:
    """What waits stays where it is and is found; also by who has not heard of the new shards when he began."""
    old = make_queue(shards=1)
    old.put_many([(f"{number}", b"", timedelta(hours=1)) for number in range(20)])
    new = make_queue(shards=3)

    with pytest.raises(AlreadyScheduled):
        new.put_many([(f"{number}", b"", None) for number in range(20)])
    assert new.put_many([(f"{number}", b"", None) for number in range(40)], on_conflict="keep") == 20
    assert all(new.move(f"{number}", delay=0) for number in range(20))
    seen = set()
    while jobs := old.reserve(limit=7, wait=0.1):
        seen.update(ids(jobs))
    assert seen == set(map(str, range(40)))


def test_a_cluster_is_a_place_like_any(make_queue: MakeQueue) -> None:
    """Shards, and topics, lie on several of its nodes; who waits is woken there, too."""
    with Nodes() as nodes:
        queue = make_queue("emails", nodes.url, shards=5)
        queue.put_many([(f"{number}", b"", None) for number in range(50)])
        queue.put("late", b"", delay=0.3)

        taken = queue.reserve(limit=100)
        assert len(taken) == 50
        queue.ack(*taken)
        [job] = queue.reserve(wait=30)
        queue.release(job, delay=LATER)
        assert queue.delete("late")
        sizes = [redis.Redis(port=server.port).dbsize() for server in nodes.servers]
        assert sum(map(bool, sizes)) > 1


def test_a_shard_that_is_away_holds_up_no_other(make_queue: MakeQueue) -> None:
    """Jobs of the others are handed out, each once; only if they have none, it is told that one is away."""
    with Nodes() as nodes:
        for client in (redis.Redis(port=server.port) for server in nodes.servers):
            client.config_set("cluster-require-full-coverage", "no")
        queue = make_queue("emails", f"{nodes.url}/?socket_timeout=5", shards=5)
        queue.put_many([(f"{number}", b"", None) for number in range(50)])
        held = {shard: nodes.owner(slot_of(queue.protocol.keys(shard).index)) for shard in range(5)}
        assert len(set(held.values())) > 1
        gone = held[0]
        nodes.servers[gone].stop()

        seen: list[str] = []

        def take_all() -> None:
            while True:
                seen.extend(ids(queue.reserve(limit=3)))

        with pytest.raises(redis.RedisError):
            take_all()
        expected = [f"{number}" for number in range(50) if held[shard_of(b"%d" % number, 5)] != gone]
        assert sorted(seen) == sorted(expected)


def test_a_clients_own_settings_do_not_matter(server: RedisServer) -> None:
    """One that decodes; of a cluster that one is refused, for it would break bodies."""
    with (
        redis.Redis(port=server.port, decode_responses=True) as client,
        DelayQueue(client, "emails", shards=2) as queue,
    ):
        queue.put("a", b"\xff")
        [job] = queue.reserve(wait=1)
        assert job.body == b"\xff"
        queue.put("b", b"", delay=0.1)
        assert ids(queue.reserve(wait=30)) == ["b"]

    with pytest.raises(TypeError, match="must be a URL or a client"):
        DelayQueue(7, "emails")


def test_a_cluster_client_must_not_decode() -> None:
    """It says so at once. One that does not is as good as a URL."""
    with Nodes() as nodes:
        port = nodes.servers[0].port
        with pytest.raises(ImproperlyConfigured, match="without decode_responses"):
            DelayQueue(redis.RedisCluster("127.0.0.1", port, decode_responses=True), "emails")
        with redis.RedisCluster("127.0.0.1", port) as client, DelayQueue(client, "emails", shards=3) as queue:
            queue.put_many([(f"{number}", b"\xff", None) for number in range(20)])
            queue.ack(*queue.reserve(limit=20))
            queue.put("late", b"", delay=0.2)
            assert ids(queue.reserve(wait=30)) == ["late"]


@pytest.mark.parametrize(
    ("topic", "options", "words"),
    [
        ("", {}, "needs a name"),
        ("a{b}", {}, "without braces"),
        ("a", {"shards": 0}, "shards must be 1"),
        ("a", {"max_attempts": 0}, "max_attempts must be 1"),
    ],
)
def test_a_queue_that_cannot_be_is_refused(
    make_queue: MakeQueue, topic: str, options: dict[str, int], words: str
) -> None:
    """When it is made."""
    with pytest.raises(ValueError, match=words):
        make_queue(topic, **options)


@pytest.mark.parametrize("call", ["reserve", "pull", "requeue"])
def test_a_limit_is_one_or_more(make_queue: MakeQueue, call: str) -> None:
    """None is an error and not nothing."""
    with pytest.raises(ValueError, match="limit must be 1 or more"):
        getattr(make_queue(), call)(limit=0)


@pytest.mark.parametrize("lease", [0, -1, float("nan"), float("inf")])
def test_a_lease_has_an_end(make_queue: MakeQueue, lease: float) -> None:
    """After a finite time, and not before it began."""
    queue = make_queue()
    queue.put("a", b"")

    with pytest.raises(ValueError, match="lease must be"):
        queue.reserve(lease=lease)
    assert queue.stats().waiting == 1


def test_a_foreign_key_is_named(make_queue: MakeQueue, server: RedisServer) -> None:
    """And nothing is changed."""
    with server.client() as client:
        client.set(Keys("delayq", queue="emails").jobs("emails"), "somebody else's")
    queue = make_queue()

    with pytest.raises(DelayQError, match=r"delayq:\{0:emails\}:jobs:emails is a string"):
        queue.put("a", b"")


def test_a_later_version_of_the_keys_is_left_alone(make_queue: MakeQueue, server: RedisServer) -> None:
    """Whoever does not know it says so at his first call."""
    with server.client() as client:
        client.set(Keys("delayq", queue="emails").version, "99")
    queue = make_queue()

    for _ in range(2):
        with pytest.raises(Outdated, match="99"):
            queue.put("a", b"")
    assert server.client().dbsize() == 1


def test_a_put_whose_answer_was_lost_is_put_once(make_queue: MakeQueue, server: RedisServer) -> None:
    """Redis has stored it, and the connection breaks before it says so: the client asks again, and that is no conflict;
    to put the same a second time is one.
    """
    with Proxy(server.port) as proxy:
        queue = make_queue(url_or_client=f"redis://127.0.0.1:{proxy.port}?retry_on_timeout=true")
        queue.put("first", b"")
        proxy.lose_next_answer()
        queue.put("second", b"")

        assert proxy.lost == 1
        assert len(queue) == 2
        with pytest.raises(AlreadyScheduled):
            queue.put("second", b"")


def test_a_new_server_knows_no_scripts(make_queue: MakeQueue, server: RedisServer) -> None:
    """They are sent again, and nobody notices."""
    queue = make_queue()
    queue.put("a", b"")
    with server.client() as client:
        client.script_flush()

    assert ids(queue.reserve()) == ["a"]


def test_where_channels_are_forbidden_jobs_are_polled_for(
    make_queue: MakeQueue, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, with what to allow, and works; only somewhat later."""
    with own_server.client() as client:
        client.execute_command("ACL", "SETUSER", "deaf", "on", ">secret", "~*", "+@all", "resetchannels")
    queue = make_queue(url_or_client=f"redis://deaf:secret@127.0.0.1:{own_server.port}")
    with DelayQueue(own_server.url(), "emails") as putter:
        timer = threading.Timer(0.2, putter.put, ("a", b""))
        timer.start()
        assert ids(queue.reserve(wait=60)) == ["a"]
        timer.join()

    assert "allow it with &delayq:{0:emails}:*" in caplog.text


def test_a_queue_leaves_celery_alone(make_queue: MakeQueue, server: RedisServer) -> None:
    """Its keys are its own: nothing of it is in the index that dispatchers of Celery's look at."""
    queue = make_queue("celery")
    queue.put("a", b"")
    with server.client() as client:
        keys = client.keys()

    assert keys
    assert all(key.startswith(b"delayq:{0:celery}:") for key in keys)


def test_the_manual_keeps_its_word(server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The first example of docs/queue.md is run as it stands; the others are Python."""
    text = (Path(__file__).parents[2] / "docs" / "queue.md").read_text()
    first, *others = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    for block in others:
        compile(block, "docs/queue.md", "exec")
    assert "redis://localhost:6379/0" in first

    names: dict[str, Any] = {}
    exec(first.replace("redis://localhost:6379/0", server.url()), names)  # our own text

    assert capsys.readouterr().out.startswith("report b'{}' ")
    assert len(names["queue"]) == 0
    names["queue"].close()
