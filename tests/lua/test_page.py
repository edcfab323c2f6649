"""page.lua: what waits, page by page; whatever comes and goes, a job that stays is found once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_delayq import verbs as verbs_module
from celery_delayq.errors import DelayQError
from celery_delayq.job import Move, Needle, OnConflict, Origin, Page, Place, Put, Waiting
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, job, put, waiting

#: A page behind which nothing comes.
NOTHING = Page((), left=0, end=None)


def pages(store: Store, limit: int = 1000, **how: object) -> Iterator[Page]:
    """One page after the other, each where the one before ended."""
    behind = None
    while True:
        page = store.page("q", behind=behind, limit=limit, **how)  # type: ignore[arg-type]
        if page.jobs:
            yield page
        if not page.left:
            return
        assert page.end != behind
        behind = page.end


def ids(*found: Page) -> list[bytes]:
    return [job.id for page in found for job in page.jobs]


def same_due(store: Store, count: int, due: int = 7) -> list[bytes]:
    """That many jobs of exactly one due time, in the order in which a sorted set has them."""
    names = [b"%05d" % number for number in range(count)]
    for start in range(0, count, 1000):
        put(store, *(job(name, due) for name in names[start : start + 1000]), origin=Origin.RESTORED)
    return names


def test_a_job_is_shown_whole(store: Store) -> None:
    """With all that was given with it; what has no body is shown as well."""
    put(store, job("b", 9), job("a", 5, step=3, max_wait_us=60, grace_us=70), job("orphan", 12))
    store.client.hdel(store.keys.jobs("q"), "orphan")

    page = store.page("q")

    assert page == Page(
        (
            Waiting("q", b"a", NOW + 5, b"body of a", step=3, first_us=NOW, grace_us=70),
            Waiting("q", b"b", NOW + 9, b"body of b"),
            Waiting("q", b"orphan", NOW + 12, None),
        ),
        left=0,
        end=Place(NOW + 12, b"orphan"),
    )
    assert [job.place for job in page.jobs] == [Place(NOW + 5, b"a"), Place(NOW + 9, b"b"), Place(NOW + 12, b"orphan")]


def test_a_topic_that_is_not_there(store: Store, contents: Reader) -> None:
    """An empty page, in every direction and from every place; and no key."""
    for backwards in (False, True):
        assert store.page("unknown", backwards=backwards) == NOTHING
        assert store.page("unknown", behind=Place(NOW, b"a"), start_us=NOW, backwards=backwards) == NOTHING
    assert contents() == {}


def test_looking_changes_nothing(store: Store, contents: Reader) -> None:
    """Nor does it matter whether the topic is paused."""
    put(store, *(job(f"{number}", number) for number in range(9)))
    store.pause("q")
    before = contents()

    assert len(store.page("q", limit=5).jobs) == 5
    assert before == contents()


@pytest.mark.parametrize("limit", [1, 7, 99, 100, 101, 1000, 2000])
@pytest.mark.parametrize("backwards", [False, True])
def test_pages_follow_each_other(store: Store, limit: int, backwards: bool) -> None:
    """All jobs in the order in which they leave, or against it; each page knows how many come behind."""
    count = min(1700, limit * 17)
    put(store, *(job(f"{number:04}", number // 3) for number in range(count)))
    expected = list(waiting(store))[:: -1 if backwards else 1]

    found = list(pages(store, limit, backwards=backwards))

    assert ids(*found) == expected
    assert [len(page.jobs) for page in found[:-1]] == [limit] * (len(found) - 1)
    assert [page.left for page in found] == [max(count - limit * (number + 1), 0) for number in range(len(found))]


@pytest.mark.parametrize("backwards", [False, True])
def test_ranges_are_half_open(store: Store, backwards: bool) -> None:
    """From the start on, and before the stop; either may be missing; an empty one is empty."""
    put(store, *(job(f"{number}", number) for number in range(10)))

    def between(start: int | None, stop: int | None, limit: int = 3) -> str:
        bounds = {"start_us": start and NOW + start, "stop_us": stop and NOW + stop}
        found = b"".join(ids(*pages(store, limit, backwards=backwards, **bounds))).decode()
        return found[::-1] if backwards else found

    assert between(None, None) == "0123456789"
    assert between(3, None) == "3456789"
    assert between(None, 3) == "012"
    assert between(3, 7) == "3456"
    assert between(3, 4) == "3"
    assert between(3, 3) == between(7, 3) == between(30, None) == between(None, -5) == ""
    assert between(-5, 30, limit=100) == "0123456789"


def test_a_place_outside_of_the_range(store: Store) -> None:
    """Behind a place before the start begins at the start; behind one after the stop nothing is left."""
    put(store, *(job(f"{number}", number) for number in range(10)))
    bounds = {"start_us": NOW + 3, "stop_us": NOW + 7}

    assert ids(store.page("q", behind=Place(NOW, b"0"), **bounds)) == [b"3", b"4", b"5", b"6"]
    assert store.page("q", behind=Place(NOW + 8, b"8"), **bounds) == NOTHING
    assert store.page("q", behind=Place(NOW, b"0"), backwards=True, **bounds) == NOTHING
    assert ids(store.page("q", behind=Place(NOW + 9, b"9"), backwards=True, **bounds)) == [b"6", b"5", b"4", b"3"]


@pytest.mark.parametrize("backwards", [False, True])
def test_thousands_of_one_due(store: Store, backwards: bool) -> None:
    """A place among equals is found by the id, also where the job of the place is gone."""
    names = same_due(store, 3500)
    expected = names[::-1] if backwards else names

    assert ids(*pages(store, 333, backwards=backwards)) == expected

    for at in (0, 1, 999, 1000, 1001, 2047, 3498, 3499):
        store.delete("q", [expected[at]])
        page = store.page("q", behind=Place(NOW + 7, expected[at]), limit=5, backwards=backwards)
        assert ids(page) == expected[at + 1 : at + 6]
        assert page.left == max(len(expected) - at - 6, 0)
        put(store, job(expected[at], 7), origin=Origin.RESTORED)


@pytest.mark.parametrize("backwards", [False, True])
def test_the_job_of_the_place_was_moved(store: Store, backwards: bool) -> None:
    """Its place is where the page began, not where it is now; there it is found once more, for it did not stay."""
    put(store, *(job(f"{number}", 10 * number) for number in range(6)))
    behind = Place(NOW + 20, b"2")

    for to in (0, 15, 35, 900):
        store.move("q", [Move("2", at_us=NOW + to)], now_us=NOW)
        assert waiting(store)[b"2"] in (to, to + 1)
        found = ids(store.page("q", behind=behind, backwards=backwards))
        assert [id for id in found if id != b"2"] == ([b"1", b"0"] if backwards else [b"3", b"4", b"5"])
        assert (b"2" in found) is ((to < 20) if backwards else (to > 20))
        store.move("q", [Move("2", at_us=NOW + 20)], now_us=NOW)


def test_any_place_will_do(store: Store) -> None:
    """It need not be one where a job ever stood; no id stands before all others of its due."""
    put(store, *(job(f"{number}", 10 * number) for number in range(1, 4)))

    assert ids(store.page("q", behind=Place(NOW + 15, b"x"))) == [b"2", b"3"]
    assert ids(store.page("q", behind=Place(NOW + 20, b""))) == [b"2", b"3"]
    assert ids(store.page("q", behind=Place(NOW + 20, b""), backwards=True)) == [b"1"]
    assert ids(store.page("q", behind=Place(NOW + 20, b"zzz"), backwards=True)) == [b"2", b"1"]
    assert ids(store.page("q", behind=Place(0, b"x"))) == [b"1", b"2", b"3"]
    assert store.page("q", behind=Place(2**53, b"x")) == NOTHING


HOSTILE = [
    b"\x00",
    b"\x00\x00",
    b" ",
    b"'); redis.call('FLUSHALL')--",
    b"(10",
    b"-inf",
    b"1e999",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff\x00",
    b"\xff\xff",
    b"\r\n$3\r\nfoo",
    "ü€😀".encode(),
    b"x" * 10_000,
    b"x" * 9_999,
    b"x" * 9_999 + b"y",
    b"[a",
    b"%s%n",
]


@pytest.mark.parametrize("backwards", [False, True])
def test_ids_of_any_bytes(store: Store, backwards: bool) -> None:
    """Binary, hostile and 10 kB long ones stand in the order of their bytes, whatever language Redis speaks."""
    put(store, *(job(id, 7) for id in HOSTILE), origin=Origin.RESTORED)
    expected = sorted(HOSTILE, reverse=backwards)

    assert ids(*pages(store, 1, backwards=backwards)) == expected
    for number, id in enumerate(expected):
        store.delete("q", [id])
        found = ids(store.page("q", behind=Place(NOW + 7, id), backwards=backwards))
        assert found == expected[number + 1 :]
        put(store, job(id, 7), origin=Origin.RESTORED)


@pytest.mark.parametrize("backwards", [False, True])
def test_large_bodies_make_smaller_pages(store: Store, backwards: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends after the portion of 100 that passed the bytes; nothing is skipped for it."""
    monkeypatch.setattr(verbs_module, "PAGE_BYTES", 100_000)
    put(store, *(job(f"{number:03}", number, body=b"x" * (2_000 if number < 300 else 190)) for number in range(900)))

    found = list(pages(store, backwards=backwards))

    assert ids(*found) == list(waiting(store))[:: -1 if backwards else 1]
    sizes = [len(page.jobs) for page in found]
    assert sizes == ([600, 100, 100, 100] if backwards else [100, 100, 100, 600])


def test_needles_are_looked_for_in_redis(store: Store) -> None:
    """Only what holds all of them comes back, in its order; what has no body holds none."""
    put(
        store,
        *(
            job(f"{number:03}", number, body=b'{"n": %d, "even": %d}' % (number, number % 2 == 0))
            for number in range(300)
        ),
    )
    store.client.hdel(store.keys.jobs("q"), "010")
    even, ten = Needle('"even": ', "^yes[,}]", "^1[,}]"), Needle('"n": ', "^%d*0,")

    assert ids(*pages(store, 7, needles=[even, ten])) == [
        b"%03d" % number for number in range(0, 300, 10) if number != 10
    ]
    assert ids(*pages(store, needles=[Needle("\x00")])) == []
    assert ids(*pages(store, 7, needles=[Needle('"n": 29')], backwards=True)) == [
        *(b"%d" % number for number in range(299, 289, -1)),
        b"029",
    ]


def test_a_page_may_be_empty_and_others_come(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks for one among many is told where the next page begins, also if nothing was found."""
    monkeypatch.setattr(verbs_module, "PAGE_BYTES", 1_000)
    put(store, *(job(f"{number:03}", number, body=b"" if number < 400 else b"x" * 50) for number in range(800)))
    put(store, job("needle", 9_000, step=3, grace_us=70))

    page = store.page("q", needles=[Needle("needle")])

    assert (page.jobs, page.left, page.end) == ((), 401, Place(NOW + 399, b"399"))
    assert list(pages(store, needles=[Needle("needle")])) == [
        Page(
            (Waiting("q", b"needle", NOW + 9_000, b"body of needle", step=3, grace_us=70),),
            left=0,
            end=Place(NOW + 9_000, b"needle"),
        )
    ]


def test_a_page_of_bytes_is_some_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the bodies are, each page goes on."""
    monkeypatch.setattr(verbs_module, "PAGE_BYTES", 0)
    put(store, *(job(f"{number}", number, body=b"x" * 1_000_000) for number in range(5)))

    assert [len(page.jobs) for page in pages(store, 2)] == [2, 2, 1]


#: What may happen between two pages: a put, a delete, a move or a dispatch of one of these.
PASSING = [b"\x00", b"05", b"1", b"15x", b"2\xff", b"3", b"\xff"]
HAPPENING = st.tuples(
    st.sampled_from(["put", "delete", "move", "dispatch"]), st.sampled_from(PASSING), st.integers(0, 12)
)


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    staying=st.dictionaries(st.integers(0, 40).map(lambda number: b"%d" % number), st.integers(3, 8), min_size=1),
    happening=st.lists(st.lists(HAPPENING, max_size=4), max_size=12),
    limit=st.integers(1, 4),
    backwards=st.booleans(),
)
def test_who_stays_is_found_once(
    store: Store,
    staying: dict[bytes, int],
    happening: list[list[tuple[str, bytes, int]]],
    limit: int,
    backwards: bool,
) -> None:
    """Whatever comes, goes, and moves to and fro between two pages: no job that stays is skipped or found twice."""
    store.client.flushdb()
    staying = {b"stays " + id: due for id, due in staying.items()}
    put(store, *(job(id, due) for id, due in staying.items()), origin=Origin.RESTORED)
    found: list[bytes] = []
    for number, page in enumerate(pages(store, limit, backwards=backwards)):
        found += ids(page)
        for what, id, due in happening[number] if number < len(happening) else ():
            if what == "put":
                put(store, job(id, due), on_conflict=OnConflict.REPLACE, origin=Origin.RESTORED)
            elif what == "delete":
                store.delete("q", [id])
            elif what == "move":
                store.move("q", [Move(id, at_us=NOW + due)], now_us=NOW)
            else:  # who stays is not due yet
                store.dispatch("q", QUEUE, 3, now_us=NOW + 2)

    stayed = [id for id in found if id in staying]
    assert stayed == sorted(staying, key=lambda name: (staying[name], name), reverse=backwards)


def test_find_and_where(store: Store) -> None:
    """One id, in whatever topics it waits, with all that was given with it; many ids, by topic."""
    put(store, job("a", 9, step=3, max_wait_us=60, grace_us=70), job("a", 5, topic="r"), job("b", topic="r"))

    assert store.find("a") == [
        Waiting("r", b"a", NOW + 5, b"body of a"),
        Waiting("q", b"a", NOW + 9, b"body of a", step=3, first_us=NOW, grace_us=70),
    ]
    assert store.find(b"missing") == store.find("\udcff") == []
    assert sorted(store.where(["missing", "b", "a"])) == [("q", ["a"]), ("r", ["b", "a"])]
    assert list(store.where([])) == list(store.where(["missing"])) == []


def test_count(store: Store) -> None:
    """How many are due in each range, half-open; of a topic that is not there, none."""
    put(store, *(job(f"{number}", number) for number in range(10)), job("x", 5, topic="r"))
    ranges = [(None, None), (NOW + 3, None), (None, NOW + 3), (NOW + 3, NOW + 7), (NOW + 7, NOW + 3)]

    assert store.count(["q", "r", "s"], ranges) == [[10, 7, 3, 4, 0], [1, 1, 0, 1, 0], [0] * 5]
    assert store.count([], ranges) == []
    assert store.count(["q"], []) == []


def test_loads(store: Store) -> None:
    """What a topic holds and has done, and until when it is held back."""
    put(store, job("late", 1, grace_us=0), job("gone", 2), job("x", topic="r"))
    put(store, *(job(f"{number}", number, step=3 * (number % 2)) for number in range(3, 9)))
    put(store, Put("q", "later", b"", at_us=2 * NOW))
    store.client.hdel(store.keys.jobs("q"), "gone")
    store.dispatch("q", QUEUE, 4, now_us=NOW + 5)
    store.delete("q", ["5"])
    store.pause("r")

    _, loads = store.loads(store.topics())

    q, r = loads["q"], loads["r"]
    assert (q.waiting, q.ready, q.moved, q.cancelled, q.dropped, q.orphans) == (4, 2, 2, 1, 1, 1)
    assert (q.due, q.head_us, q.held_us) == (0, NOW + 6, None)
    assert (r.waiting, r.head_us, r.held_us, r.moved) == (1, NOW + 1, float("inf"), 0)
    assert store.counted() == {"q"}


@pytest.mark.parametrize("pattern", ["%", "[", "(", "%b"])
def test_what_is_no_pattern_is_refused(store: Store, pattern: str) -> None:
    """In our words, and not in Lua's; in either place."""
    put(store, job("a"))
    for tails in ((pattern, ""), ("^x", pattern)):
        with pytest.raises(DelayQError, match="^page: needs patterns"):
            store.page("q", needles=[Needle("body", *tails)])
