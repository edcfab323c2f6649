"""dispatch.lua: what is due leaves whole, once, in order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_delayq.delivery import Delivery
from celery_delayq.errors import DelayQError
from celery_delayq.scripts import script
from celery_delayq.store import Dispatched, Store, Upcoming

from .conftest import NOW, QUEUE, Contents, job, put, waiting


def popped(store: Store, key: str = "q") -> list[bytes]:
    """What consumers would get from a ready list, in their order: they pop the right end."""
    return store.client.lrange(key, 0, -1)[::-1]


def outcome(done: Dispatched) -> tuple[int, int, bool]:
    """Moved, orphans, whether more is due."""
    return done.moved, done.orphans, done.left


def test_it_says_what_is_due_next(store: Store) -> None:
    """Of all topics, with the way to its queue: a dispatcher need not ask again. Nothing, if nothing waits."""
    put(store, job("a", 1), job("b", 90), job("x", 50, topic="r"))

    done = store.dispatch("q", QUEUE, 10, now_us=NOW + 3)
    assert (done.now_us, done.next) == (NOW + 3, Upcoming(NOW + 50, "r", Delivery.plain("r")))
    done = store.dispatch("r", Delivery.plain("r"), 10, now_us=NOW + 60)
    assert done.next == Upcoming(NOW + 90, "q", QUEUE)
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 90).next is None


def test_only_what_is_due_leaves_and_in_order(store: Store) -> None:
    """Due jobs move to the ready list, the earliest first; the others stay."""
    put(store, job("b", 2), job("a", 1), job("c", 3), job("d", 4))

    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 3)) == (3, 0, False)
    assert popped(store) == [b"body of a", b"body of b", b"body of c"]
    assert waiting(store) == {b"d": 4}
    assert store.tick(now_us=NOW + 3).next == Upcoming(NOW + 4, "q", QUEUE)


def test_nothing_is_left_behind(store: Store, contents: Callable[[], Contents]) -> None:
    """When the last job has left, Redis holds the ready lists and none of our keys."""
    put(store, job("a", 5, step=3, max_wait_us=9), job("b", 5))

    store.dispatch("q", QUEUE, 10, now_us=NOW + 2000)

    assert contents() == {b"q": [b"body of b"], b"q\x06\x163": [b"body of a"]}


def test_nothing_is_handed_over_before_it_is_due(store: Store) -> None:
    """One microsecond too early is too early."""
    put(store, job("a", 5))

    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 4)) == (0, 0, False)
    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 5)) == (1, 0, False)


@pytest.mark.parametrize("limit", [1, 99, 100, 101, 1000, 1700])
def test_a_call_moves_no_more_than_its_limit(store: Store, limit: int) -> None:
    """A backlog goes in bounded batches, in order, and each says whether more is due."""
    ids = [f"{number:04}" for number in range(1700)]
    put(store, *(job(id, number) for number, id in enumerate(ids)))

    moved = 0
    while (done := store.dispatch("q", QUEUE, limit, now_us=NOW + 2000)).left:
        assert limit == done.moved
        moved += done.moved

    assert moved + done.moved == 1700
    assert [f"body of {id}".encode() for id in ids] == popped(store)


def test_large_bodies_make_smaller_batches(store: Store) -> None:
    """A call stops after the portion that passed 8 MB, so that no call holds Redis for long."""
    body = b"x" * 20_000
    put(store, *(job(f"{number:04}", 1, body=body) for number in range(1200)))

    assert outcome(store.dispatch("q", QUEUE, 1200, now_us=NOW + 2000)) == (500, 0, True)


def test_front_goes_before_what_is_ready_already(store: Store) -> None:
    """Position "front": due jobs are popped before the waiting ones, still in their own order."""
    store.client.lpush("q", "there already")
    put(store, job("a", 1), job("b", 2), job("c", 3))

    store.dispatch("q", QUEUE, 10, "front", now_us=NOW + 3)

    assert popped(store) == [b"body of a", b"body of b", b"body of c", b"there already"]


def test_back_goes_behind_what_is_ready_already(store: Store) -> None:
    """Position "back", the default: first come, first served."""
    store.client.lpush("q", "there already")
    put(store, job("a", 1), job("b", 2))

    store.dispatch("q", QUEUE, 10, now_us=NOW + 3)

    assert popped(store) == [b"there already", b"body of a", b"body of b"]


def test_each_priority_step_has_its_list(store: Store) -> None:
    """Jobs go to the list of their step; of a step that is no more, to the next lower one."""
    put(store, job("zero"), job("three", step=3), job("nine", step=9), job("seven", step=7), job("ten", step=10))

    store.dispatch("q", QUEUE, 10, now_us=NOW + 2000)

    lists = [popped(store, key) for key in QUEUE.lists]
    assert lists == [[b"body of zero"], [b"body of three"], [b"body of seven"], [b"body of nine", b"body of ten"]]


def test_expiring_queues_live_on(store: Store) -> None:
    """x-expires: a delivery renews the life of every sub-list that exists; a queue without it gets no TTL."""
    delivery = Delivery(QUEUE.steps, QUEUE.lists, expires_ms=60_000)
    for key in QUEUE.lists[1:3]:
        store.client.lpush(key, "waiting")
        store.client.pexpire(key, 5_000)
    put(store, job("a"), job("b", topic="r"))

    store.dispatch("q", delivery, 10, now_us=NOW + 1)
    store.dispatch("r", Delivery.plain("r"), 10, now_us=NOW + 1)

    assert all(50_000 < store.client.pttl(key) <= 60_000 for key in QUEUE.lists[:3])
    assert store.client.pttl("r") == -1


def test_an_id_without_a_body_is_dropped_and_counted(store: Store, contents: Callable[[], Contents]) -> None:
    """Orphans block nobody: they are counted, dropped, and the jobs around them leave."""
    put(store, job("a", 1), job("gone", 2), job("b", 3))
    store.client.hdel(store.keys.jobs("q"), "gone")

    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 3)) == (2, 1, False)
    assert contents() == {b"q": [b"body of b", b"body of a"]}


def test_nothing_but_orphans(store: Store, contents: Callable[[], Contents]) -> None:
    """A schedule whose bodies are all lost is cleaned up, too."""
    put(store, *(job(f"{number}") for number in range(700)))
    store.client.delete(store.keys.jobs("q"))

    assert outcome(store.dispatch("q", QUEUE, 1000, now_us=NOW + 1000)) == (0, 700, False)
    assert contents() == {}


def test_a_full_redis_may_be_asked_too_early(store: Store) -> None:
    """Out of memory and nothing due yet: no error, which would cost the dispatcher its connection."""
    put(store, job("a", 50))
    store.client.config_set("maxmemory", "1")
    try:
        assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW)) == (0, 0, False)
    finally:
        store.client.config_set("maxmemory", "0")


def test_a_wrong_time_in_the_index_is_put_right(store: Store) -> None:
    """A topic that the index calls due, and is not, is looked at once and not for ever."""
    put(store, job("a", 50))
    store.client.zadd(store.keys.index, {"q": 1})

    done = store.dispatch("q", QUEUE, 10, now_us=NOW)

    assert done.next == Upcoming(NOW + 50, "q", QUEUE)
    assert store.tick(now_us=NOW).due == ()


def test_a_full_redis_still_drains(store: Store) -> None:
    """Out of memory: puts are refused, yet what is due goes out, whole."""
    put(store, *(job(f"{number:03}") for number in range(700)))
    store.client.config_set("maxmemory", "1")
    try:
        assert outcome(store.dispatch("q", QUEUE, 1000, now_us=NOW + 1000)) == (700, 0, False)
    finally:
        store.client.config_set("maxmemory", "0")
    assert store.client.llen("q") == 700


@pytest.mark.parametrize("position", range(11))
def test_a_foreign_key_is_refused_before_anything_moves(
    store: Store, contents: Callable[[], Contents], position: int
) -> None:
    """A wrong type under any key, the ready lists included: nothing is taken out."""
    put(store, job("a"), job("b", step=9))
    keys = [store.keys.index, store.keys.topics, *store.keys.of_topic("q"), *QUEUE.lists]
    store.client.set(keys[position], "somebody else's")
    before = contents()

    with pytest.raises(DelayQError, match="is a string"):
        store.dispatch("q", QUEUE, 10, now_us=NOW + 1)

    assert before == contents()


@pytest.mark.parametrize(
    ("limit", "where", "steps"),
    [(0, "back", [0]), (-1, "back", [0]), ("", "back", [0]), (1, "middle", [0]), (1, "back", []), (1, "back", [0, 3])],
)
def test_unusable_arguments_move_nothing(
    store: Store, contents: Callable[[], Contents], limit: object, where: str, steps: list[int]
) -> None:
    """A limit that is none, an unknown end, steps that do not match the lists: refused, nothing moves."""
    put(store, job("a"))
    before = contents()
    keys = [store.keys.index, store.keys.topics, *store.keys.of_topic("q"), "q"]

    with pytest.raises(DelayQError, match="dispatch:"):
        script("dispatch")(store.client, keys, [NOW + 5, "q", limit, where, "", *steps])  # type: ignore[list-item]

    assert before == contents()


def test_an_unknown_topic_moves_nothing(store: Store, contents: Callable[[], Contents]) -> None:
    """Somebody else was faster: no error, nothing created."""
    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW)) == (0, 0, False)
    assert contents() == {}


def test_bytes_are_moved_as_they_are(store: Store) -> None:
    """Large integers, empty lists, NULs and broken UTF-8: what went in comes out."""
    body = b'{"n": 12345678901234567890, "empty": [], "f": 1.0}\x00\xff\xfe'
    put(store, job("a", body=body))

    store.dispatch("q", QUEUE, 10, now_us=NOW + 1)

    assert [body] == popped(store)


def test_order_among_equals_holds_while_a_backlog_drains(store: Store) -> None:
    """A put of the same due, while earlier ones of it are still being moved, goes behind them."""
    put(store, *(job(id, 5) for id in "dcb"))
    store.dispatch("q", QUEUE, 1, now_us=NOW + 500)
    store.put([job("a", 5)], {"q": QUEUE}, now_us=NOW)
    store.dispatch("q", QUEUE, 10, now_us=NOW + 500)

    assert popped(store) == [b"body of d", b"body of c", b"body of b", b"body of a"]
