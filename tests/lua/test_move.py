"""move.lua: another due time for the same job."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from celery_delayq.clock import LATEST_US
from celery_delayq.errors import DelayQError
from celery_delayq.job import Move, Moved
from celery_delayq.scripts import script
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, announcements, full, index, job, put, waiting


def move(store: Store, id: str, **how: Any) -> Moved:
    """Move one job of the queue, at NOW."""
    (moved,) = store.move("q", [Move(id, **how)], now_us=NOW)
    return moved


def keys_of(store: Store) -> list[str]:
    """What move takes, in its order."""
    keys = store.keys
    return [keys.index, keys.holds, keys.schedule("q"), keys.jobs("q"), keys.ties("q"), keys.journal("j")]


def test_a_moved_job_keeps_its_body(store: Store) -> None:
    """Only the due time changes, to later, to earlier, and by a delay."""
    put(store, job("a", 50), job("b", 60))

    assert Moved.OK is move(store, "a", at_us=NOW + 90)
    assert waiting(store) == {b"b": 60, b"a": 90}
    assert Moved.OK is move(store, "a", in_us=10)
    assert waiting(store) == {b"a": 10, b"b": 60}
    assert store.client.hget(store.keys.jobs("q"), "a") == b"body of a"
    assert index(store) == {b"q": 10}


def test_move_to_the_past_is_due_now(store: Store) -> None:
    """What should have run already runs next."""
    put(store, job("a", 50))

    assert Moved.OK is move(store, "a", at_us=5)
    assert waiting(store) == {b"a": 0}


def test_a_job_moved_to_a_taken_time_goes_behind(store: Store) -> None:
    """Among jobs of one due, a moved one counts as the last that came; to its own time it stays where it is."""
    put(store, job("b", 50), job("a", 90))

    move(store, "a", at_us=NOW + 50)
    assert list(waiting(store)) == [b"b", b"a"]

    move(store, "b", at_us=NOW + 70)
    move(store, "b", at_us=NOW + 70)
    assert waiting(store)[b"b"] == 70


def test_what_does_not_wait_cannot_move(store: Store, contents: Reader) -> None:
    """An unknown id, and one that was dispatched: the caller is told, nothing is created."""
    assert Moved.MISSING is move(store, "a", at_us=NOW + 9)
    assert contents() == {}


def test_if_due_moves_only_what_the_caller_saw(store: Store, contents: Reader) -> None:
    """Compare and set: with another due time than the caller's, nothing changes."""
    put(store, job("a", 50))
    before = contents()

    assert Moved.CHANGED is move(store, "a", at_us=NOW + 9, if_due_us=NOW + 51)
    assert before == contents()
    assert Moved.OK is move(store, "a", at_us=NOW + 9, if_due_us=NOW + 50)


def test_a_job_moved_to_the_front_wakes_the_dispatchers(store: Store) -> None:
    """Earlier than all others: announced; later: not."""
    put(store, job("a", 50), job("b", 60))
    with announcements(store) as said:
        move(store, "a", at_us=NOW + 90)
        move(store, "a", at_us=NOW + 30)

        assert said() == [30]


def test_what_is_due_already_keeps_its_place(store: Store, contents: Reader) -> None:
    """Run now, of a job that is due: it would only fall behind others; the answer is yes all the same."""
    put(store, job("a", 1), job("b", 2))
    before = contents()

    assert store.move("q", [Move("a", in_us=0), Move("b", at_us=NOW - 5)], now_us=NOW + 10) == [Moved.OK, Moved.OK]
    assert before == contents()

    store.move("q", [Move("a", at_us=NOW + 11)], now_us=NOW + 10)
    assert waiting(store) == {b"b": 2, b"a": 11}


def test_many_move_in_one_call(store: Store) -> None:
    """Each of a batch has its answer, and each its own due time; what is named twice moves twice."""
    put(store, job("a", 50), job("b", 60), job("c", 70), job("d", 80))
    moves = [
        Move("d", at_us=NOW + 10),
        Move("missing", at_us=NOW + 10),
        Move("a", at_us=NOW + 90, if_due_us=NOW + 50),
        Move("b", at_us=NOW + 90, if_due_us=NOW + 59),
        Move("c", in_us=5),
        Move("a", in_us=7),
    ]

    done = store.move("q", moves, now_us=NOW)

    assert done == [Moved.OK, Moved.MISSING, Moved.OK, Moved.CHANGED, Moved.OK, Moved.OK]
    assert waiting(store) == {b"c": 5, b"a": 7, b"d": 10, b"b": 60}
    assert index(store) == {b"q": 5}


def test_if_body_moves_only_what_the_caller_read(store: Store) -> None:
    """Of an id that was put anew meanwhile, or whose body is lost, the caller is told so."""
    put(store, job("a", 50), job("orphan", 60, body=b""))
    store.client.hdel(store.keys.jobs("q"), "orphan")

    assert Moved.CHANGED is move(store, "a", in_us=9, if_body=b"another body")
    assert Moved.CHANGED is move(store, "orphan", in_us=9, if_body=b"")
    assert Moved.MISSING is move(store, "missing", in_us=9, if_body=b"")
    assert Moved.OK is move(store, "a", in_us=9, if_body=b"body of a", if_due_us=NOW + 50)


def test_a_move_leaves_all_else_of_a_job(store: Store, contents: Reader) -> None:
    """Priority, first put and grace stay: they count for the new due time."""
    put(store, job("a", 50, step=3, max_wait_us=60, grace_us=70))
    before = contents()

    move(store, "a", at_us=NOW + 900)

    assert contents() == before | {
        store.keys.schedule("q").encode(): {b"a": NOW + 900},
        store.keys.index.encode(): {b"q": NOW + 900},
    }
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 970).moved == 1


def test_a_paused_topic_stays_out_of_the_index(store: Store) -> None:
    """Its jobs move, and nobody is woken for them."""
    put(store, job("a", 50))
    store.pause("q")

    with announcements(store) as said:
        assert Moved.OK is move(store, "a", in_us=0)
        assert said() == []
    assert index(store) == {}
    assert waiting(store) == {b"a": 0}


def test_a_topic_held_back_is_looked_at_when_its_turn_comes(store: Store) -> None:
    """A job that is moved to the front does not leave before its topic may."""
    put(store, job("a", 1), job("b", 2), job("c", 900))
    store.resume("q", 1_000_000.0, now_us=NOW + 3)
    store.dispatch("q", QUEUE, 10, now_us=NOW + 3)

    store.move("q", [Move("c", in_us=0)], now_us=NOW + 3)

    assert index(store) == {b"q": 1_000_003}


def test_a_journal_is_written_in_the_same_call_and_expires(store: Store) -> None:
    """How far a long change has come, by topic: all or nothing of it, also where no job was left to move."""
    put(store, job("a", 50), job("x", 50, topic="r"))

    store.move("q", [Move("a", in_us=9)], progress=("shift", "50 a", 60_000), now_us=NOW)
    store.move("r", [Move("missing", in_us=9)], progress=("shift", "50 \udcff\udc80", 60_000), now_us=NOW)

    assert store.journal("shift") == {"q": "50 a", "r": "50 \udcff\udc80"}
    assert store.journal("another") == {}
    assert 50_000 < store.client.pttl(store.keys.journal("shift")) <= 60_000

    store.end_journal("shift")
    assert store.journal("shift") == {}


def test_a_move_that_is_refused_writes_no_journal(store: Store) -> None:
    """Whoever goes on from the journal must find moved what it says is moved."""
    put(store, job("a", 50))

    with full(store), pytest.raises(redis.ResponseError, match="OOM|maxmemory"):
        store.move("q", [Move("a", in_us=9)], progress=("shift", "50 a", 60_000), now_us=NOW)

    assert store.journal("shift") == {}
    assert waiting(store) == {b"a": 50}


@pytest.mark.parametrize("due", ["", "soon", "nan", "inf", str(LATEST_US + 1)])
def test_one_unusable_due_time_changes_nothing(store: Store, contents: Reader, due: str) -> None:
    """What is no time, or beyond what can be kept, is refused, with the good ones beside it; the error says which."""
    put(store, job("a", 50), job("b", 60))
    before = contents()

    with pytest.raises(DelayQError, match="move: job 2"):
        script("move")(store.client, keys_of(store), ["", NOW, "q", "", 0, "b", NOW + 1, "", "", "a", due, "", ""])

    assert before == contents()


def test_a_full_redis_refuses_a_move_whole(store: Store, contents: Reader) -> None:
    """Out of memory: the jobs stay due when they were, of a paused topic, too; what need not move is answered."""
    put(store, job("a", 50), job("b", 60), job("x", 1, topic="r"))
    store.pause("r")
    before = contents()

    with full(store):
        for topic, id in (("q", "a"), ("r", "x")):
            with pytest.raises(redis.ResponseError, match="OOM|maxmemory"):
                store.move(topic, [Move(id, in_us=90), Move("b", in_us=9)], now_us=NOW)
        assert store.move("r", [Move("x", in_us=0), Move("missing", in_us=0)], now_us=NOW + 1) == [
            Moved.OK,
            Moved.MISSING,
        ]

    assert before == contents()


def test_nothing_to_move(store: Store, contents: Reader) -> None:
    """No moves: no call, no key."""
    assert store.move("q", []) == []
    assert contents() == {}
