"""Errors: one root, messages that help, whole after pickling."""

from __future__ import annotations

import pickle

import celery_delayq
from celery_delayq import AlreadyScheduled, DelayQError, ImproperlyConfigured
from celery_delayq.errors import Outdated


def test_one_root() -> None:
    """except DelayQError catches all."""
    assert issubclass(ImproperlyConfigured, DelayQError)
    assert issubclass(AlreadyScheduled, DelayQError)


def test_they_survive_pickling() -> None:
    """A task may raise one in another process."""
    copy = pickle.loads(pickle.dumps(AlreadyScheduled("x")))

    assert (copy.task_id, str(copy)) == ("x", str(AlreadyScheduled("x")))
    outdated = Outdated("delayq:{0}", 2, 1)
    assert str(pickle.loads(pickle.dumps(outdated))) == str(outdated)


def test_a_long_id_makes_no_long_message() -> None:
    """10 kB of id are shown by their beginning."""
    assert len(str(AlreadyScheduled("x" * 10_000))) < 250


def test_the_public_names() -> None:
    """What __all__ promises is there."""
    assert all(hasattr(celery_delayq, name) for name in celery_delayq.__all__)
