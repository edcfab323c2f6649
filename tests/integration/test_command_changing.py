"""``celery delayq``: cancel, reschedule, shift, run-now, pause, resume, purge."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial

import pytest
from celery import Celery
from celery.result import AsyncResult

from celery_delayq.clock import from_us, to_us
from celery_delayq.command.output import Bar
from celery_delayq.embedded import RedisServer

from .backlog import FAR_US, fill
from .command import Run, run
from .conftest import Inside

#: Redis is seen through the store, whose own tests run on every version.
ONE_REDIS = True


@pytest.fixture
def celery(app: Celery) -> Run:
    """Runs ``celery -A app delayq``."""
    return partial(run, app)


@pytest.fixture
def backlog(app: Celery, inside: Inside) -> list[str]:
    """2,500 tasks, every other one of user 1."""
    return fill(inside, app, range(2500), user=lambda number: number % 2)


def test_the_story_of_one_task(celery: Run, app: Celery) -> None:
    """Scheduled three days ahead under an id of one's own, seen, moved, taken back; no worker runs."""
    task_id = "need_some_help_email_42"
    app.delayq.apply_delayed("proj.help", timedelta(days=3), (42,), task_id=task_id)

    assert task_id in celery("list").out
    assert "(in 3d)" in celery("show", task_id).out or "(in 2d 23h)" in celery("show", task_id).out
    moved = celery("reschedule", task_id, "in", "2h", "30m")
    assert moved.code == 0
    assert moved.out.startswith(f"{task_id} is due in 2h 30m: 2")
    assert abs(app.delayq.get(task_id).due - datetime.now(timezone.utc) - timedelta(minutes=150)) < timedelta(
        seconds=20
    )
    assert celery("cancel", task_id).lines == [f"{task_id} cancelled"]
    assert celery("show", task_id).code == 1
    assert celery("list").err == "nothing waits\n"


def test_cancel_says_of_each_id_what_became_of_it(celery: Run, app: Celery) -> None:
    """Those that do not wait are named, and make it fail; each id counts once."""
    for task_id in "abc":
        app.delayq.apply_delayed("task", 60, task_id=task_id)

    said = celery("cancel", "a", "nope", "b", "a")
    assert (said.code, said.lines, said.err) == (1, ["a cancelled", "b cancelled"], "nope does not wait\n")
    assert celery("cancel", "--dry-run", "c").lines == ["c would be cancelled"]
    said = celery("cancel", "--json", "c", "a")
    assert said.code == 1
    assert said.objects == [{"id": "c", "cancelled": True}, {"id": "a", "cancelled": False}]


def test_cancel_marks_results(make_app: Callable[..., Celery], server: RedisServer) -> None:
    """Whoever waits for the result learns of it, unless one says otherwise."""
    app = make_app(result_backend=server.url(1))
    for task_id in ("told", "untold", "many"):
        app.delayq.apply_delayed("task", 60, task_id=task_id)

    run(app, "cancel", "told")
    run(app, "cancel", "untold", "--no-mark")
    run(app, "cancel", "--queue", "celery", "--yes")

    states = [AsyncResult(task_id, app=app).state for task_id in ("told", "untold", "many")]
    assert states == ["REVOKED", "PENDING", "REVOKED"]


def test_cancel_by_filter_asks(celery: Run, app: Celery, backlog: list[str]) -> None:
    """It says how many tasks are meant, and only a yes lets it go on."""
    said = celery("cancel", "--header", "user=1", "--no-mark", typed="n\n")
    assert (said.code, said.out) == (1, "")
    assert "Cancel 1,250 tasks? [y/N]" in said.err
    assert said.err.endswith("nothing was done\n")
    said = celery("cancel", "--header", "user=1", "--no-mark", typed="")
    assert said.code == 2
    assert said.err.endswith("Error: nobody answers; --yes goes on without asking\n")
    assert app.delayq.count() == 2500

    said = celery("cancel", "--header", "user=1", "--no-mark", typed="y\n")
    assert (said.code, said.out) == (0, "1,250 tasks cancelled\n")
    assert app.delayq.count() == 1250
    said = celery("cancel", "--header", "user=1", "--no-mark", typed="y\n")
    assert (said.code, said.err) == (1, "nothing that waits is meant\n")


def test_cancel_by_filter_in_scripts(celery: Run, app: Celery, backlog: list[str]) -> None:
    """--yes does not ask, --dry-run only counts, --json says it in an object."""
    until = str((FAR_US + 100) / 1e6)
    assert celery("cancel", "--to", until, "--dry-run", "--json").objects == [{"would_cancel": 100}]
    assert celery("cancel", "--to", until, "--yes", "--no-mark", "--json").objects == [{"cancelled": 100}]
    said = celery("cancel", "--to", until, "--yes", "--no-mark", "--json")
    assert (said.code, said.objects) == (1, [{"cancelled": 0}])
    assert app.delayq.count() == 2400


def test_what_was_cancelled_when_it_stops_stays_cancelled(
    celery: Run, app: Celery, backlog: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C says how far it came; the same command goes on."""

    def interrupted(self: Bar, done: int, total: int) -> None:
        (self._done, self._total) = (done, total)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Bar, "progress", interrupted)
        said = celery("cancel", "--queue", "celery", "--yes", "--no-mark")
    assert said.code == 130
    assert said.err == (
        "stopped: 1,000 of 2,500 tasks were looked at, and what was cancelled stays cancelled; "
        "the same command goes on\n"
    )
    assert celery("cancel", "--queue", "celery", "--yes", "--no-mark").out == "1,500 tasks cancelled\n"


def test_reschedule_to_any_time(celery: Run, app: Celery) -> None:
    """ISO 8601, epoch seconds, from now; in JSON, too."""
    app.delayq.apply_delayed("task", 60, task_id="x")

    assert celery("reschedule", "x", "2030-01-02T03:04:05.000006").code == 0
    assert to_us(app.delayq.get("x").due) == 1_893_553_445_000_006
    assert celery("reschedule", "x", "2030-01-02", "03:04:05+01:00").code == 0
    assert app.delayq.get("x").due == datetime(2030, 1, 2, 2, 4, 5, tzinfo=timezone.utc)
    said = celery("reschedule", "--json", "x", "1893553445")
    assert said.objects == [{"id": "x", "rescheduled": True, "due": "2030-01-02T03:04:05.000000+00:00"}]


def test_reschedule_only_what_one_saw(celery: Run, app: Celery) -> None:
    """Another due time is told, and nothing is moved."""
    app.delayq.apply_at("task", datetime(2030, 1, 2, tzinfo=timezone.utc), task_id="x")

    said = celery("reschedule", "x", "in", "1h", "--if-due", "2030-01-03")
    assert (said.code, said.err) == (1, "x is due at another time: 2030-01-02T00:00:00+00:00\n")
    said = celery("reschedule", "--json", "x", "in 1h", "--if-due", "2030-01-03")
    assert said.objects == [{"id": "x", "rescheduled": False, "due": "2030-01-02T00:00:00.000000+00:00"}]
    assert celery("reschedule", "x", "2031-01-01", "--if-due", "2030-01-02").code == 0
    said = celery("reschedule", "nope", "in", "1h")
    assert (said.code, said.err) == (1, "no task of the id nope waits\n")
    said = celery("reschedule", "--json", "nope", "in 1h")
    assert (said.code, said.objects) == (1, [{"id": "nope", "rescheduled": False, "due": None}])


def test_shift_moves_all_that_are_meant(celery: Run, app: Celery, backlog: list[str]) -> None:
    """Later or earlier; a dry run counts."""
    assert celery("shift", "--header", "user=1", "--by", "2h", "--dry-run").out == "1,250 tasks would be moved\n"
    assert celery("shift", "--header", "user=1", "--by", "2h", "--dry-run", "--json").objects == [{"would_move": 1250}]
    assert celery("shift", "--header", "user=1", "--by", "2h").out == "1,250 tasks moved\n"
    assert app.delayq.get(backlog[1]).due == from_us(FAR_US + 1) + timedelta(hours=2)
    assert app.delayq.get(backlog[0]).due == from_us(FAR_US)
    assert celery("shift", "--from", str(FAR_US // 10**6 + 3600), "--by", "-1h", "--json").objects == [{"moved": 1250}]
    assert celery("shift", "--queue", "celery", "--by=-1h").code == 0
    assert app.delayq.get(backlog[1]).due == from_us(FAR_US + 1)
    assert celery("shift", "--queue", "nobody", "--by", "1h").code == 1


def test_run_now(celery: Run, app: Celery, inside: Inside) -> None:
    """Due at once, of each id said."""
    for task_id in "ab":
        app.delayq.apply_delayed("task", 3600, task_id=task_id)

    said = celery("run-now", "a", "nope")
    assert (said.code, said.lines, said.err) == (1, ["a is due now"], "nope does not wait\n")
    assert celery("run-now", "--json", "b").objects == [{"id": "b", "due_now": True}]
    assert app.delayq.stats()["celery"].due == 2


def test_pause_and_resume(celery: Run, app: Celery) -> None:
    """What they changed, and how many tasks wait for it; 1 if nothing."""
    app.delayq.apply_delayed("task", 60)

    said = [celery("pause", "celery"), celery("pause", "celery")]
    assert [(one.code, one.out) for one in said] == [
        (0, "queue celery is paused; 1 task waits for it\n"),
        (1, "queue celery was paused already; 1 task waits for it\n"),
    ]
    assert app.delayq.paused() == {"celery"}
    said = [celery("resume", "celery", "--rate", "2.5"), celery("resume", "other")]
    assert [(one.code, one.out) for one in said] == [
        (0, "queue celery goes on; 1 task waits for it\n"),
        (1, "queue other was not paused; 0 tasks wait for it\n"),
    ]
    assert celery("pause", "mail", "--json").objects == [{"queue": "mail", "paused": True, "changed": True}]
    assert celery("resume", "mail", "--json").objects == [{"queue": "mail", "paused": False, "changed": True}]


def test_purge_asks(celery: Run, app: Celery, inside: Inside, backlog: list[str]) -> None:
    """For one queue or for all; how many tasks that are, and only a yes lets it go on."""
    fill(inside, app, range(10), queue="mail")

    said = celery("purge", typed="n\n")
    assert said.code == 1
    assert "Take back 2,510 tasks of all queues? [y/N]" in said.err
    said = celery("purge", "--queue", "mail", typed="y\n")
    assert "Take back 10 tasks of queue mail? [y/N]" in said.err
    assert (said.code, said.out) == (0, "10 tasks purged\n")
    assert (celery("purge", typed="").code, app.delayq.count()) == (2, 2500)
    assert celery("purge", "--yes", "--json").objects == [{"purged": 2500}]
    assert [(one.code, one.err) for one in (celery("purge"), celery("purge", "--yes"))] == [
        (1, "nothing waits\n"),
        (1, "nothing waits\n"),
    ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["cancel"], "give ids, or filters such as --queue; for all that waits there is purge"),
        (["cancel", "x", "--queue", "q"], "give ids or filters, not both"),
        (["cancel", ""], "an id must not be empty"),
        (["reschedule", "x", "soon"], "Invalid value for 'TIME...': 'soon' is no time; write one as '2030-"),
        (["reschedule", "x", "in", "2"], "'2' is no length of time"),
        (["reschedule", "", "now"], "an id must not be empty"),
        (["reschedule", "x", "now", "--if-due", "then"], "Invalid value for '--if-due': 'then' is no time"),
        (["shift", "--by", "1h"], "say which tasks: give filters such as --queue or --from"),
        (["shift", "--queue", "q", "--by", "2"], "Invalid value for '--by': '2' is no length of time"),
        (["shift", "--queue", "q", "--by", "0s"], "--by must be other than 0"),
        (["shift", "--queue", "q"], "Missing option '--by'"),
        (["resume", "q", "--rate", "0"], "Invalid value for '--rate'"),
        (["resume", "q", "--rate", "nan"], "--rate must be a finite number"),
        (["resume", "q", "--rate", "inf"], "--rate must be a finite number"),
        (["pause", ""], "Invalid value for 'QUEUE': it must not be empty"),
    ],
)
def test_wrong_use_is_told_in_one_line(celery: Run, app: Celery, arguments: list[str], reason: str) -> None:
    """With what is wrong and how it is right; exit status 2, and nothing is changed."""
    app.delayq.apply_delayed("task", 60, task_id="x", queue="q")
    before = app.delayq.get("x")

    said = celery(*arguments)

    assert (said.code, said.out) == (2, "")
    assert reason in said.err
    assert len(said.err.splitlines()) == 1
    assert app.delayq.get("x") == before
