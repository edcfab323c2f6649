"""Pattern: what it writes for itself is what Celery and Kombu would have written."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from celery.utils.saferepr import saferepr
from hypothesis import example, given
from hypothesis import strategies as st

from celery_delayq.pattern import _shown, _uuid

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = st.recursive(
    PLAIN | st.binary(max_size=5) | st.decimals(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.tuples() | st.tuples(VALUES) | st.lists(PLAIN, max_size=20).map(tuple) | st.dictionaries(PLAIN, VALUES),
    st.sampled_from([1024, 40, 12, 1, 0, None]),
    st.sampled_from([3, 1, 0, None, -1]),
)
@example(("it's", "a\n\\ü"), 1024, 3)
@example(("x" * 10,), 15, 3)
@example(("x" * 10,), 14, 3)
def test_arguments_are_shown_as_celery_shows_them(values: Any, limit: Any, levels: Any) -> None:
    """argsrepr and kwargsrepr: the same text as saferepr's, whatever the values and the limits."""
    assert _shown(values, limit, levels) == saferepr(values, limit, levels)


class Count(int):
    """A number that calls itself something else."""

    def __str__(self) -> str:
        return "many"


@pytest.mark.parametrize("values", [(Count(3),), {"n": Count(3)}, [1, 2], {1: 2}, (True, 1, 1.0), {"a": ()}])
def test_what_only_looks_plain(values: Any) -> None:
    """Subclasses, lists, and keys of other types are left to Celery."""
    assert _shown(values, 1024, 3) == saferepr(values, 1024, 3)


def test_ids_are_random_uuids() -> None:
    """Version 4, of the usual form, and not twice the same."""
    ids = [_uuid() for _ in range(1000)]
    assert all(str(UUID(id)) == id and UUID(id).version == 4 and "9" <= max(id[19], "9") <= "b" for id in ids)
    assert all(UUID(id).variant == UUID(ids[0]).variant for id in ids)
    assert {id[19] for id in ids} == set("89ab")
    assert len(set(ids)) == len(ids)
