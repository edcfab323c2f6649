"""Keys: all in one shard's slot, none in another's place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from celery_delayq.delivery import Delivery
from celery_delayq.keys import Keys


@given(st.text(), st.text())
def test_topics_never_meet(one: str, other: str) -> None:
    """Whatever their names hold, the keys of two topics differ, and those that belong to no topic from all of them."""
    keys = Keys("delayq")
    mine, theirs = ([*keys.of_topic(topic), *keys.of_leases(topic), *keys.of_dead(topic)] for topic in (one, other))
    shared = {keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains}
    shared |= {keys.beat, keys.expiries, keys.ways, keys.serves, keys.shards, keys.version}

    assert len({*mine, *shared, keys.journal(other)}) == 13 + 13 + 1
    assert one == other or not set(mine) & set(theirs)


def test_every_key_has_prefixes_and_hash_tag() -> None:
    """global_keyprefix first, then ours, then the shard's tag."""
    keys = Keys("mine", "shop.", database=3, shard=2)

    everything = [keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains]
    everything += [keys.journal("shift"), *keys.of_topic("q"), keys.wake, keys.expiries, keys.ways]
    everything += [keys.beat, keys.serves, keys.shards, keys.version, keys.fleet]
    everything += [*keys.of_leases("q"), *keys.of_dead("q")]
    assert all(key.startswith("shop.mine:{2}:") for key in everything)
    assert keys.ready("q") == "shop.q"


def test_a_queue_of_its_own_has_keys_and_a_slot_of_its_own() -> None:
    """Nothing of Celery's and nothing of another queue's; all of one shard under one tag, as of any shard."""
    mine = Keys("delayq", shard=2, queue="emails")

    assert mine.index == "delayq:{2:emails}:index"
    assert mine.schedule("emails") == "delayq:{2:emails}:schedule:emails"
    assert mine.wake == "delayq:{2:emails}:wake:0"
    assert not mine.index.startswith(Keys("delayq", shard=2).beginning)


def test_channels_differ_by_database() -> None:
    """Redis's channels know no databases."""
    assert Keys("delayq", database=0).wake != Keys("delayq", database=1).wake


@given(st.lists(st.tuples(st.integers(0, 255), st.text()), min_size=1), st.one_of(st.none(), st.integers(1, 10**12)))
def test_a_delivery_comes_back(lists: list[tuple[int, str]], expires_ms: int | None) -> None:
    """What a put stores is what a dispatcher reads."""
    delivery = Delivery(tuple(step for step, _ in lists), tuple(key for _, key in lists), expires_ms)

    assert Delivery.loads(delivery.dumps().encode()) == delivery
