"""``celery delayq``: list, show, count, agenda, stats."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial

import pytest
from celery import Celery
from kombu import Exchange, Queue

from celery_delayq.clock import text_of
from celery_delayq.delivery import Delivery
from celery_delayq.job import Origin, Put

from .backlog import FAR_US, fill
from .command import Run, run
from .conftest import Inside

#: Redis is seen through the store, whose own tests run on every version.
ONE_REDIS = True

HOSTILE = "a\nb\x1b[31mred\u202e"


@pytest.fixture
def celery(app: Celery) -> Run:
    """Runs ``celery -A app delayq``."""
    return partial(run, app)


@pytest.fixture
def tasks(app: Celery) -> None:
    """Six tasks in two queues, an hour apart, the first in an hour."""
    now = datetime.now(timezone.utc)
    for number in range(1, 7):
        app.delayq.apply_at(
            f"proj.{'help' if number % 2 else 'news'}",
            now + timedelta(hours=number),
            (number,),
            task_id=f"task-{number}",
            queue="mail" if number > 3 else "celery",
            headers={"user": number},
        )


def overdue_since(inside: Inside, minutes: int) -> None:
    """Something that is due since then."""
    due_us = inside.store.now_us() - minutes * 60_000_000
    deliveries = {"celery": Delivery.plain("celery")}
    inside.store.put([Put("celery", "old", b"{}", at_us=due_us)], deliveries, origin=Origin.RESTORED)


def ids(lines: list[str]) -> list[str]:
    """The last column of a table, without its head."""
    return [line.split()[-1] for line in lines[1:]]


def test_list_shows_what_waits_in_due_order(celery: Run, tasks: None) -> None:
    """A row for each task: when, in how long, which queue, which task, which id; over all queues."""
    said = celery("list")

    assert (said.code, said.err) == (0, "")
    assert said.lines[0].split() == ["DUE", "IN", "QUEUE", "TASK", "ID"]
    assert ids(said.lines) == [f"task-{number}" for number in range(1, 7)]
    due, distance, *rest = said.lines[1].split("  ")
    assert datetime.fromisoformat(due.replace("Z", "+00:00")) > datetime.now(timezone.utc)
    assert distance == "1h" or distance.startswith("59m ")
    assert " ".join(rest).split() == ["celery", "proj.help", "task-1"]


def test_list_says_which_queues_are_paused(celery: Run, tasks: None) -> None:
    """So that nobody wonders why what is due stays."""
    celery("pause", "mail")

    queues = [line.split("  ")[2].strip() for line in celery("list").lines[1:]]

    assert queues == ["celery"] * 3 + ["mail (paused)"] * 3


def test_list_of_nothing(celery: Run) -> None:
    """Is an answer, and no failure."""
    said = celery("list")
    assert (said.code, said.out, said.err) == (0, "", "nothing waits\n")
    assert celery("list", "--queue", "mail").err == "nothing that waits is meant\n"
    assert celery("list", "--json").out == ""


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        (["--queue", "mail"], "456"),
        (["--task", "proj.help"], "135"),
        (["--task", "*help"], "135"),
        (["--from", "in 3h 30m"], "456"),
        (["--to", "in 3h 30m"], "123"),
        (["--from", "in 90m", "--to", "in 150 minutes"], "2"),
        (["--header", "user=5"], "5"),
        (["--header", "user=5", "--header", "task=proj.help"], "5"),
        (["--header", "user=5", "--queue", "celery"], ""),
        (["--stamp", "user=5"], ""),
        (["--queue", "mail", "--task", "proj.help", "--from", "in 1s"], "5"),
        (["--to", "10 minutes ago"], ""),
    ],
)
def test_filters(celery: Run, tasks: None, options: list[str], meant: str) -> None:
    """All that are given must hold; list, count and a dry run of cancel mean the same."""
    wanted = [f"task-{number}" for number in meant]

    assert [task["id"] for task in celery("list", "--json", *options).objects] == wanted
    assert celery("count", *options).out == f"{len(meant)}\n"
    assert celery("count", "--json", *options).objects == [{"count": len(meant)}]
    assert celery("cancel", "--dry-run", *options).code == (0 if meant else 1)


def test_list_tells_how_to_go_on(celery: Run, app: Celery, inside: Inside) -> None:
    """A table ends after 50 rows unless one says otherwise; the last line is where the next one begins."""
    all_ids = fill(inside, app, range(0, 120_000_000, 1_000_000))

    first = celery("list")
    assert ids(first.lines) == all_ids[:50]
    assert first.err == f"… 70 more: --from {text_of(FAR_US + 50_000_000)} goes on, --limit 0 shows all\n"
    second = celery("list", "--from", first.err.split()[4])
    assert ids(second.lines) == all_ids[50:100]
    third = celery("list", "--from", second.err.split()[4])
    assert (ids(third.lines), third.err) == (all_ids[100:], "")

    assert len(celery("list", "--limit", "0").lines) == 121
    assert ids(celery("list", "--limit", "3").lines) == all_ids[:3]
    assert celery("list", "--limit", "3", "--task", "record").err.startswith("… more: --from ")
    assert len(celery("list", "--json").lines) == 120
    assert len(celery("list", "--json", "--limit", "7").lines) == 7


def test_json_has_the_names_of_the_fields(celery: Run, app: Celery, tasks: None) -> None:
    """One object a line, with all that a ScheduledTask has; times in ISO 8601."""
    (task,) = celery("list", "--json", "--limit", "1").objects
    found = app.delayq.get("task-1")

    assert list(task) == [
        "id",
        "task",
        "argsrepr",
        "kwargsrepr",
        "queue",
        "priority",
        "due",
        "put_at",
        "state",
        "headers",
    ]
    assert datetime.fromisoformat(task["due"]) == found.due
    assert datetime.fromisoformat(task["put_at"]) == found.put_at
    assert task["headers"]["user"] == 1
    assert celery("show", "--json", "task-1").objects == [task]


def test_show_tells_all(celery: Run, tasks: None) -> None:
    """One line for each thing that is known, the headers that say something among them."""
    celery("pause", "celery")
    said = celery("show", "task-1")

    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in said.lines}
    assert said.code == 0
    assert told["id"] == "task-1"
    assert told["task"] == "proj.help"
    assert told["args"] == "(1,)"
    assert told["queue"] == "celery (paused)"
    assert told["due"].endswith("(in 1h)") or "(in 59m" in told["due"]
    assert "ago)" in told["put"] or "(now)" in told["put"]
    assert told["user:"] == "1"
    assert "eta" not in said.out


def test_show_in_several_queues(make_app: Callable[..., Celery]) -> None:
    """A topic exchange can put one id into several; each is shown."""
    exchange = Exchange("topics", type="topic")
    queues = [Queue("one", exchange, "log.#"), Queue("two", exchange, "log.*")]
    app = make_app(task_queues=queues)
    app.send_task("task", task_id="both", exchange=exchange, routing_key="log.x", countdown=60, declare=queues)

    shown = [line.split()[1] for line in run(app, "show", "both").lines if line.startswith("queue")]
    assert sorted(shown) == ["one", "two"]
    assert run(app, "cancel", "both").out == "both cancelled\n"


@pytest.mark.parametrize("command", ["show", "cancel", "run-now"])
def test_an_id_that_does_not_wait(celery: Run, command: str) -> None:
    """One line that names it, and 1."""
    said = celery(command, HOSTILE)
    assert (said.code, said.out) == (1, "")
    assert len(said.err.splitlines()) == 1
    assert r"a\nb\x1b[31mred\u202e" in said.err


def test_hostile_ids_and_messages(celery: Run, app: Celery, inside: Inside) -> None:
    """Nothing that a terminal would obey is written; a row is a line; JSON and other commands have the id as it is."""
    app.delayq.apply_delayed("ta\x1bsk", 60, (HOSTILE,), task_id=HOSTILE, queue="qu\neue", headers={"x\x07": "\x1b[0m"})
    jobs = [Put("q", b"\xff\xfe", b"\x00 no message", at_us=FAR_US), Put("q", "x" * 10_000, b"{}", at_us=FAR_US)]
    inside.store.put(jobs, {"q": Delivery.plain("q")})

    for arguments in (
        ["list"],
        ["show", HOSTILE],
        ["show", "\udcff\udcfe"],
        ["stats"],
        ["agenda"],
        ["cancel", HOSTILE],
    ):
        said = celery(*arguments)
        assert said.code == 0
        assert all(line.isprintable() for line in said.lines + said.err.splitlines()), arguments
    assert len(celery("list").lines) == 3
    assert "task      ? (its message cannot be read)" in celery("show", "\udcff\udcfe").lines
    assert celery("cancel", "\udcff\udcfe", "x" * 10_000).code == 0


def test_agenda_draws_the_next_hour_and_the_next_day(celery: Run, app: Celery, inside: Inside) -> None:
    """By minute and by hour, a row of bars for each queue; and says what should have gone long ago."""
    now = datetime.now(timezone.utc)
    for minutes in (3, 30, 30, 300):
        app.delayq.apply_at("task", now + timedelta(minutes=minutes), queue="mail" if minutes == 30 else "celery")
    overdue_since(inside, 90)

    said = celery("agenda")
    assert said.code == 0
    hour, day, overdue = said.out.split("\n\n")
    assert hour.startswith("next hour, by minute: ")
    assert day.startswith("next day, by hour: ")
    assert "celery: 1 task, at most 1 from" in hour
    assert "mail: 2 tasks, at most 2 from" in hour
    assert "celery: 2 tasks" in day
    assert hour.count("█") >= 2
    assert overdue == "1 is overdue\n"
    assert "mail" not in celery("agenda", "--queue", "celery").out
    assert "nothing" in celery("agenda", "--queue", "nobody").out


def test_agenda_in_json(celery: Run, app: Celery, inside: Inside) -> None:
    """An object for each step, from, to and as long as one says."""
    fill(inside, app, [0, 5_000_000, 5_000_001, 9_999_999, 10_000_000], queue="mail")
    said = celery("agenda", "--json", "--from", str(FAR_US // 10**6), "--to", str(FAR_US // 10**6 + 10), "--step", "4s")

    assert said.objects == [
        {"start": "2033-05-18T03:33:20.000000+00:00", "end": "2033-05-18T03:33:24.000000+00:00", "queues": {"mail": 1}},
        {"start": "2033-05-18T03:33:24.000000+00:00", "end": "2033-05-18T03:33:28.000000+00:00", "queues": {"mail": 2}},
        {"start": "2033-05-18T03:33:28.000000+00:00", "end": "2033-05-18T03:33:30.000000+00:00", "queues": {"mail": 1}},
    ]
    assert len(celery("agenda", "--json").lines) == 60 + 24
    drawn = celery("agenda", "--from", str(FAR_US // 10**6), "--to", str(FAR_US // 10**6 + 10), "--step", "5s")
    assert drawn.lines[:2] == [
        "by 5s: 2033-05-18 03:33 to 2033-05-18 03:33 UTC",
        "mail: 4 tasks, at most 3 from 03:33 on",
    ]


def test_stats(celery: Run, app: Celery, inside: Inside) -> None:
    """A row for each queue, with all that it holds and has done."""
    assert celery("stats").err == "nothing waits, and nothing ever has\n"
    overdue_since(inside, 5)
    app.delayq.apply_delayed("task", 3600, task_id="gone")
    app.delayq.apply_delayed("task", 3600, queue="mail")
    app.delayq.pause("mail")
    app.delayq.cancel("gone", mark=False)
    app.send_task("task")

    said = celery("stats")
    assert [line.split() for line in said.lines] == [
        ["QUEUE", "WAITING", "DUE", "OVERDUE", "PAUSED", "READY", "MOVED", "CANCELLED", "DROPPED", "ORPHANS"],
        ["celery", "1", "1", *said.lines[1].split()[3:-6], "-", "1", "0", "1", "0", "0"],
        ["mail", "1", "0", "-", "paused", "0", "0", "0", "0", "0"],
    ]
    assert " ".join(said.lines[1].split()[3:-6]) in {"5m", "5m 1s", "5m 2s", "5m 3s"}
    first, second = celery("stats", "--json").objects
    assert 300 <= first.pop("overdue") < 320
    assert first == {
        "queue": "celery", "waiting": 1, "due": 1, "paused": False, "ready": 1,
        "moved": 0, "cancelled": 1, "dropped": 0, "orphans": 0, "reserved": 0, "requeued": 0, "dead": 0, "buried": 0,
    }  # fmt: skip
    assert (second["queue"], second["paused"], second["overdue"]) == ("mail", True, 0.0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["list", "--from", "yesterday"], "Invalid value for '--from': 'yesterday' is no time; write one as '2030-"),
        (["list", "--to", "2030-13-01"], "Invalid value for '--to': '2030-13-01': month must be in 1..12"),
        (["list", "--from", "30"], "for a time from now write 'in 30s'"),
        (["list", "--to", "2300-01-01"], "too far ahead"),
        (["list", "--from", "in 2h", "--to", "in 1h"], "must not be after end"),
        (["count", "--header", "user"], "Invalid value for '--header': 'user' is no NAME=VALUE, as in user=42"),
        (["count", "--queue", ""], "Invalid value for '--queue': it must not be empty"),
        (["list", "--limit", "-1"], "Invalid value for '--limit'"),
        (["list", "--limit", "many"], "Invalid value for '--limit'"),
        (["show", ""], "an id must not be empty"),
        (["agenda", "--step", "5m"], "give both --to and --step, or neither"),
        (["agenda", "--to", "in 5m"], "give both --to and --step, or neither"),
        (["agenda", "--to", "in 5m", "--step", "5"], "is no length of time; write one as '90s'"),
        (["agenda", "--to", "in 5m", "--step", "-5m"], "step must be more than 0"),
        (["agenda", "--to", "in 50w", "--step", "1s"], "step must be greater"),
    ],
)
def test_wrong_use_is_told_in_one_line(celery: Run, arguments: list[str], reason: str) -> None:
    """With what is wrong and how it is right; exit status 2."""
    said = celery(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("Error: ")
    assert reason in said.err
    assert len(said.err.splitlines()) == 1


def test_a_command_that_is_not_there(celery: Run) -> None:
    """Is told with those that it may have been."""
    said = celery("reshedule", "x", "now")
    assert said.code == 2
    assert "Did you mean" in said.err
    assert "reschedule" in said.err


def test_help_names_every_command(celery: Run) -> None:
    """And says what each does, and how it exits."""
    said = celery("--help")
    names = ["agenda", "cancel", "count", "dead", "dispatch", "doctor", "drain", "export", "import", "list", "pause"]
    names += ["purge", "reschedule", "resume", "run-now", "shift", "show", "stats"]
    listed = [line.split()[0] for line in said.lines[said.lines.index("Commands:") + 1 :] if line.startswith("  ")]
    assert listed[: len(names)] == names
    assert "Exits with 0; with 1" in said.out
    for name in names:
        assert celery(name, "--help").code == 0


def test_an_app_that_has_none_is_told_what_to_do(make_app: Callable[..., Celery]) -> None:
    """No DelayQ, or a broker that is not Redis: wrong use."""
    said = run(make_app(joined=False), "list")
    told = (
        "the app 'test-0' has no celery_delayq: call DelayQ(app) where it is made, and name it: celery -A proj delayq …"
    )
    assert (said.code, said.err) == (2, f"Error: {told}\n")
    said = run(make_app(broker_url="amqp://user:secret@localhost"), "list")
    assert said.code == 2
    assert "is not Redis" in said.err
    assert "secret" not in said.err
    said = run(make_app(broker_url="nonsense://localhost"), "list")
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert "broker_url cannot be used" in said.err
    said = run(make_app(delayq_prefx="x"), "list")
    assert (said.code, said.err) == (2, "Error: unknown setting delayq_prefx; did you mean delayq_prefix?\n")


COMMANDS: list[list[str]] = [
    ["list"], ["list", "--json", "--task", "x"], ["show", "x"], ["count"], ["agenda"], ["stats"], ["cancel", "x"],
    ["cancel", "--queue", "q", "--yes"], ["reschedule", "x", "now"], ["shift", "--queue", "q", "--by", "1h"],
    ["run-now", "x"], ["pause", "q"], ["resume", "q"], ["purge", "--yes"], ["export"], ["import"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_redis_that_is_away_is_told_in_one_line(make_app: Callable[..., Celery], arguments: list[str]) -> None:
    """Where it should be, without the password, and what to look at; exit status 1."""
    app = make_app(broker_url="redis://:secret@127.0.0.1:1/3", task_publish_retry_policy={"max_retries": 0})
    said = run(app, *arguments, typed="")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("Error: Redis cannot be reached at redis://:**@127.0.0.1:1/3: ")
    assert said.err.endswith("Is it running, and is broker_url right?\n")
    assert len(said.err.splitlines()) == 1
    assert "secret" not in said.err


def test_what_redis_refuses_is_told_in_one_line(celery: Run, inside: Inside, app: Celery) -> None:
    """A key of ours that is something else, for example."""
    app.delayq.apply_delayed("task", 60)
    inside.client.delete(inside.keys.schedule("celery"))
    inside.client.set(inside.keys.schedule("celery"), "foreign")
    for arguments in (["list"], ["cancel", "--queue", "celery", "--yes"], ["export"]):
        said = celery(*arguments)
        assert said.code == 1
        assert "WRONGTYPE" in said.err or "Another program uses this key" in said.err
        assert len(said.err.splitlines()) == 1
