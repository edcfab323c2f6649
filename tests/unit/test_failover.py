"""What Sentinels say, read: of which master; and who has nothing to do with them."""

from __future__ import annotations

import pytest
import redis

from celery_delayq.failover import _master_in, follow


@pytest.mark.parametrize(
    "text",
    [
        "main 127.0.0.1 6379 127.0.0.1 6380",
        "slave 127.0.0.1:6380 127.0.0.1 6380 @ main 127.0.0.1 6379",
        "master main 127.0.0.1 6379",
    ],
)
def test_an_event_names_its_master(text: str) -> None:
    """In each of the three forms in which Sentinels write it, the master's name is found."""
    assert _master_in(text) == "main"


def test_a_master_called_master_is_no_exception() -> None:
    """``+switch-master`` begins with the name itself, whatever it is."""
    assert _master_in("master 127.0.0.1 6379 127.0.0.1 6380") == "master"


def test_a_pool_without_sentinels_is_left_alone() -> None:
    """A plain connection pool is followed by nobody."""
    with redis.Redis() as client:
        assert follow(client.connection_pool) is None
