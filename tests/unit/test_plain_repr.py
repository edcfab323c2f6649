"""Where it says anything, it says what Celery says."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from enum import IntEnum
from typing import Any

import pytest
from celery.utils.saferepr import saferepr
from hypothesis import given
from hypothesis import strategies as st

from celery_delayq.plain_repr import ITEMS, plain_repr

LIMIT = 1024

texts = st.one_of(st.text(max_size=12), st.text("ab'\"\\ \n{}é", max_size=6))
items = st.one_of(texts, st.integers(), st.floats(), st.booleans(), st.none(), st.binary(max_size=3), st.decimals())
flat = st.one_of(
    st.lists(items, max_size=ITEMS + 2),
    st.lists(items, max_size=ITEMS + 2).map(tuple),
    st.dictionaries(st.one_of(texts, st.integers(), st.none()), items, max_size=ITEMS + 2),
)


@given(
    value=st.one_of(flat, st.lists(flat, max_size=3).map(tuple)), limit=st.one_of(st.just(LIMIT), st.integers(1, 60))
)
def test_as_celery(value: Any, limit: int) -> None:
    text = plain_repr(value, limit)
    assert text is None or text == saferepr(value, limit)


class Number(IntEnum):
    ONE = 1


Pair = namedtuple("Pair", "a b")
Words = type("Words", (str,), {"__repr__": lambda self: "words"})


@pytest.mark.parametrize(
    "value",
    [
        "text",
        None,
        Pair(1, 2),
        OrderedDict(a=1),
        {1, 2},
        (Number.ONE,),
        (Words("a"),),
        ((1,),),
        (10**5000,),
        ("x" * LIMIT,),
        [0] * (ITEMS + 1),
        {"a": object()},
        {(1,): 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_left_to_celery(value: Any) -> None:
    assert plain_repr(value, LIMIT) is None


@pytest.mark.parametrize("value", [(), [], {}, (1,), ("a1",), (1.5, None, True, "x y"), {"a": 1, "b": "c"}])
def test_what_is_plain(value: Any) -> None:
    assert plain_repr(value, LIMIT) == saferepr(value, LIMIT) == repr(value)
