"""Dead letters: seen, tried again, thrown away; in Python and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_delayq.embedded import RedisServer, free_port

from .command import run

ONE_REDIS = True


@pytest.fixture
def app(make_app: Callable[..., Celery], server: RedisServer) -> Celery:
    """An app with tasks a and b of the queue mail among its dead letters, and c of the queue other; d waits."""
    app = make_app(broker_url=f"amqp://127.0.0.1:{free_port()}//", delayq_store_url=server.url())
    for task_id, queue in (("a", "mail"), ("b", "mail"), ("c", "other")):
        app.delayq.apply_delayed("shop.remind", -1, (1,), task_id=task_id, queue=queue)
        with app.delayq._store() as store:
            jobs = store.reserve(queue, 1, 1_000_000).jobs
            store.release(queue, jobs, max_attempts=1, reason="no such exchange\n\x1b[31m")
    app.delayq.apply_delayed("shop.remind", 60, task_id="d")
    return app


def test_seen(app: Celery) -> None:
    """Each with its task, its queue, how often it was tried and why it failed."""
    letters = list(app.delayq.dead())
    assert [(one.id, one.queue, one.task, one.attempts) for one in letters] == [
        ("a", "mail", "shop.remind", 1),
        ("b", "mail", "shop.remind", 1),
        ("c", "other", "shop.remind", 1),
    ]
    assert letters[0].reason == "no such exchange\n\x1b[31m"
    assert letters[0].argsrepr == "(1,)"
    assert letters[0].due <= letters[0].died
    assert [one.id for one in app.delayq.dead("other")] == ["c"]
    assert app.delayq.get("a").state == "dead"
    assert app.delayq.count() == 1
    stats = app.delayq.stats()["mail"]
    assert (stats.waiting, stats.dead, stats.buried) == (0, 2, 2)


def test_tried_again_and_thrown_away(app: Celery) -> None:
    """By id or by queue; what is counted was one, and is none any more."""
    delayq = app.delayq
    assert delayq.retry_dead("a", "d", "nobody") == 1
    task = delayq.get("a")
    assert (task.state, task.argsrepr) == ("waiting", "(1,)")
    assert delayq.delete_dead("b", "b") == 1
    assert delayq.get("b") is None
    assert delayq.retry_dead(queue="other") == 1
    assert delayq.delete_dead(queue="other") == 0
    assert list(delayq.dead()) == []
    with pytest.raises(ValueError, match="a queue"):
        delayq.retry_dead()
    with pytest.raises(ValueError, match="a queue"):
        delayq.delete_dead("a", queue="mail")
    with pytest.raises(TypeError, match="queue"):
        delayq.dead(queue=3).__next__()


def test_the_commands_of_the_readme(app: Celery) -> None:
    """Each of them works as it is written there."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    commands = [line.split("#")[0].split() for line in readme.splitlines() if " delayq dead " in line]
    assert len(commands) >= 4
    codes = [run(app, *("c" if word == "ID" else word for word in words[4:]), typed="y\n").code for words in commands]
    assert codes == [0] * (len(commands) - 1) + [1]  # all have been retried, none is left to delete
    assert list(app.delayq.dead()) == []


def test_many(app: Celery) -> None:
    """More than one page of them."""
    app.delayq.apply_many([(app.signature("x", (number,)).set(queue="many"), 0) for number in range(1200)])
    with app.delayq._store() as store:
        while jobs := store.reserve("many", 1000, 1_000_000).jobs:
            store.release("many", jobs, max_attempts=1)
    assert len(list(app.delayq.dead("many"))) == 1200
    assert app.delayq.retry_dead(queue="many") == 1200
    assert app.delayq.count("many") == 1200


def test_listed(app: Celery) -> None:
    """As a table, nothing of which reaches the terminal unescaped; as objects, with all fields."""
    said = run(app, "dead", "list")
    assert said.code == 0
    header, *rows = said.lines
    assert header.split() == ["DIED", "TRIED", "QUEUE", "TASK", "ID", "REASON"]
    assert [{"mail", "other"} & set(row.split()) for row in rows] == [{"mail"}, {"mail"}, {"other"}]
    assert "\x1b" not in said.out
    objects = run(app, "dead", "list", "--queue", "mail", "--json").objects
    assert [(one["id"], one["attempts"]) for one in objects] == [("a", 1), ("b", 1)]
    said = run(app, "dead", "list", "--limit", "1")
    assert len(said.lines) == 2
    assert "--limit 0" in said.err
    assert run(app, "dead", "list", "--queue", "none").err == "no dead letters\n"


def test_retried_on_the_command_line(app: Celery) -> None:
    """Exit status 0 if all were dead letters, else 1, 2 for wrong use."""
    assert run(app, "dead", "retry", "a").out == "a retried\n"
    said = run(app, "dead", "retry", "a", "b")
    assert (said.code, said.out, said.err) == (1, "b retried\n", "a is no dead letter\n")
    assert run(app, "dead", "retry", "--queue", "other", "--json").objects == [{"retried": 1}]
    assert run(app, "dead", "retry", "--queue", "other").code == 1
    for wrong in ((), ("a", "--queue", "mail")):
        assert run(app, "dead", "retry", *wrong).code == 2


def test_deleted_on_the_command_line(app: Celery) -> None:
    """A whole queue is asked about."""
    assert run(app, "dead", "delete", "c", "--json").objects == [{"id": "c", "deleted": True}]
    said = run(app, "dead", "delete", "--queue", "mail", typed="n\n")
    assert (said.code, "Delete 2 tasks?" in said.err) == (1, True)
    assert run(app, "dead", "delete", "--queue", "mail", typed="").code == 2
    assert run(app, "dead", "delete", "--queue", "mail", "--yes").out == "2 tasks deleted\n"
    assert run(app, "dead", "delete", "--queue", "mail").code == 1


def test_other_commands(app: Celery) -> None:
    """They work with a store of its own, and name the setting that is wrong when it is away."""
    assert [task["id"] for task in run(app, "list", "--json").objects] == ["d"]
    assert "dead" in run(app, "show", "a").out
    stats = {one["queue"]: one for one in run(app, "stats", "--json").objects}
    assert (stats["mail"]["ready"], stats["mail"]["dead"]) == (None, 2)
    assert "RESERVED" in run(app, "stats").out
    assert run(app, "cancel", "--dry-run", "a").code == 1
    assert run(app, "cancel", "d", "--no-mark").code == 0


def test_a_store_that_is_away(make_app: Callable[..., Celery]) -> None:
    """One line, with the setting and without a password."""
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    policy: dict[str, Any] = {"max_retries": 0, "interval_start": 0}
    app = make_app(broker_url="memory://", delayq_store_url=url, task_publish_retry_policy=policy)
    said = run(app, "list")
    assert said.code == 1
    assert "is delayq_store_url right?" in said.err
    assert "secret" not in said.err


def test_no_store(make_app: Callable[..., Celery]) -> None:
    """A broker that is not Redis, and no store: wrong use, and which settings would help."""
    said = run(make_app(broker_url="memory://"), "list")
    assert said.code == 2
    assert "delayq_store_url" in said.err


def test_settings(make_app: Callable[..., Celery]) -> None:
    """Wrong values are refused, and no password is shown."""
    from celery_delayq.errors import ImproperlyConfigured
    from celery_delayq.settings import Settings

    for wrong in ({"store_url": 3}, {"store_url": "host"}, {"lease": 0.5}, {"max_attempts": 0}, {"max_attempts": True}):
        with pytest.raises(ImproperlyConfigured):
            Settings.read({f"delayq_{name}": value for name, value in wrong.items()})
    with pytest.raises(ImproperlyConfigured) as caught:
        Settings.read({"delayq_lease": "redis://user:secret@host/0"})
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(Settings.read({"delayq_store_url": "redis://:secret@host"}))


def test_an_export_says_what_is_not_in_it(app: Celery) -> None:
    """Dead letters, and what somebody has under a lease; by queue, if it is of one."""
    app.delayq.apply_delayed("shop.remind", -1, task_id="e")
    with app.delayq._store() as store:
        store.reserve("celery", 1, 60_000_000)
    said = run(app, "export")
    assert [fields["id"] for fields in said.objects] == ["d"]
    assert said.err.splitlines() == [
        "1 task exported",
        "not in it: 1 task under a lease, being handed over or given back later",
        "not in it: 3 dead letters; 'dead retry' lets them wait",
    ]
    assert "not in it: 1 dead letter;" in run(app, "export", "--queue", "other").err
