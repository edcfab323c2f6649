"""Settings: validated whole, wrong ones refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from celery_delayq.errors import ImproperlyConfigured
from celery_delayq.settings import Settings, table


def test_the_defaults() -> None:
    """Without a word in the configuration everything is on."""
    assert Settings.read({}) == Settings(
        intercept=True,
        min_delay=0.0,
        prefix="delayq",
        dispatch=True,
        batch_size=1000,
        max_poll_interval=1.0,
        ready_position="back",
    )


def test_other_settings_are_not_ours() -> None:
    """Only names that begin with delayq_ are looked at."""
    assert Settings.read({"broker_url": "x", "delayq_min_delay": 5, "mydelayq_x": 1}).min_delay == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("delayq_intercept", "yes"),
        ("delayq_intercept", 1),
        ("delayq_min_delay", -1),
        ("delayq_min_delay", float("nan")),
        ("delayq_min_delay", "5"),
        ("delayq_min_delay", True),
        ("delayq_prefix", ""),
        ("delayq_prefix", "a{b}"),
        ("delayq_prefix", None),
        ("delayq_batch_size", 0),
        ("delayq_batch_size", 1.5),
        ("delayq_batch_size", 10**9),
        ("delayq_max_poll_interval", 0),
        ("delayq_max_poll_interval", float("inf")),
        ("delayq_ready_position", "middle"),
    ],
)
def test_a_wrong_value_is_refused(name: str, value: Any) -> None:
    """The error names the setting, what it must be, and what it was."""
    with pytest.raises(ImproperlyConfigured, match=f"{name} must be .*, not "):
        Settings.read({name: value})


@pytest.mark.parametrize(
    ("wrong", "right"), [("delayq_batchsize", "delayq_batch_size"), ("delayq_intercepts", "delayq_intercept")]
)
def test_an_unknown_setting_is_refused_with_the_nearest_right_one(wrong: str, right: str) -> None:
    """A slip of the pen is no silent default."""
    with pytest.raises(ImproperlyConfigured, match=f"unknown setting {wrong.lower()}; did you mean {right}"):
        Settings.read({wrong: 1})


def test_the_table_has_every_setting() -> None:
    """What the README shows is made from the fields."""
    for name in Settings.__dataclass_fields__:
        assert f"`delayq_{name}`" in table()
