"""``celery delayq``: export, import."""

from __future__ import annotations

import io
import json
import shlex
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import pytest
from celery import Celery

from celery_delayq import transfer
from celery_delayq.command import transferring

from .backlog import fill
from .command import Run, run
from .conftest import Inside
from .worker import ROOT

#: Redis is seen through the store, whose own tests run on every version.
ONE_REDIS = True


@pytest.fixture
def celery(app: Celery) -> Run:
    """Runs ``celery -A app delayq``."""
    return partial(run, app)


@pytest.fixture
def backlog(app: Celery, inside: Inside) -> list[str]:
    """120 tasks of one queue, 30 of another one."""
    return fill(inside, app, range(120)) + fill(inside, app, range(30), queue="mail", user=7)


def test_a_round_trip_through_a_file(celery: Run, inside: Inside, backlog: list[str], tmp_path: Path) -> None:
    """One task a line; what is put back is what was there; a second time there is nothing to do."""
    file = tmp_path / "jobs.jsonl"
    before = {(job.topic, job.id, job.due_us, job.raw) for job in inside.waiting()}

    said = celery("export", str(file))
    assert (said.code, said.out, said.err) == (0, "", "150 tasks exported\n")
    assert len(file.read_bytes().splitlines()) == 150
    celery("purge", "--yes")

    said = celery("import", str(file))
    assert (said.code, said.out, said.err) == (0, "150 tasks imported\n", "")
    assert {(job.topic, job.id, job.due_us, job.raw) for job in inside.waiting()} == before
    assert celery("import", str(file)).out == "0 tasks imported, 150 waited already\n"
    assert celery("import", str(file), "--json").objects == [{"lines": 150, "written": 0, "unchanged": 150}]


def test_a_round_trip_through_a_pipe(celery: Run, app: Celery, backlog: list[str]) -> None:
    """Without a file it is the standard output and input; only what the filters mean."""
    said = celery("export", "--header", "user=7")
    assert (len(said.lines), said.err) == (30, "30 tasks exported\n")
    assert {fields["queue"] for fields in said.objects} == {"mail"}
    celery("purge", "--yes")

    assert celery("import", typed=said.out).out == "30 tasks imported\n"
    assert celery("import", "-", typed=said.out).code == 0
    assert app.delayq.count("mail") == 30


def test_conflicts_are_told_with_what_to_do(celery: Run, app: Celery, backlog: list[str]) -> None:
    """Line and id, and the options that go on."""
    lines = celery("export", "--queue", "mail").out
    celery("reschedule", "mail-000003", "in", "1h")

    said = celery("import", typed=lines)
    assert (said.code, said.out) == (1, "")
    assert said.err == (
        "Error: line 4: task id 'mail-000003' waits already in queue 'mail', with another time or message; "
        "--on-conflict keep leaves it, --on-conflict replace overwrites it (nothing was imported)\n"
    )
    assert celery("import", "--on-conflict", "keep", typed=lines).out == "0 tasks imported, 30 waited already\n"
    assert celery("import", "--on-conflict", "replace", typed=lines).out == "1 task imported, 29 waited already\n"
    assert celery("import", "--on-conflict", "overwrite", typed=lines).code == 2


def test_a_bad_line_is_told(celery: Run, app: Celery, backlog: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With its number, and how much was imported before it."""
    monkeypatch.setattr(transfer, "BATCH", 10)
    lines = celery("export", "--queue", "mail").out
    celery("purge", "--yes")

    said = celery("import", typed=f"{lines}\x1b[31m nonsense\n")
    assert said.code == 1
    assert said.err.startswith("Error: line 31: Expecting value")
    assert said.err.endswith("(20 tasks of the lines before were imported)\n")
    assert said.err[:-1].isprintable()
    assert app.delayq.count() == 20


def test_a_file_is_replaced_when_all_is_written(
    celery: Run, backlog: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that breaks off leaves the one before."""
    file = tmp_path / "jobs.jsonl"
    file.write_text("the one before")

    def broken(*_: object) -> object:
        yield [b"{}\n"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(transferring, "export_jobs", broken)
        said = celery("export", str(file))
    assert (said.code, said.err) == (130, "stopped after 1 of 150 tasks\n")
    assert file.read_text() == "the one before"
    assert list(tmp_path.iterdir()) == [file]
    assert celery("export", str(file)).code == 0
    assert len(file.read_text().splitlines()) == 150


def test_a_file_that_cannot_be_opened(celery: Run, tmp_path: Path) -> None:
    """Is told in one line, as wrong use."""
    for arguments in (["import", str(tmp_path / "nothing")], ["export", str(tmp_path / "no folder" / "file")]):
        said = celery(*arguments)
        assert said.code in {1, 2}
        assert len(said.err.splitlines()) == 1
        assert "No such file or directory" in said.err


def test_nothing_to_do(celery: Run) -> None:
    """An empty export is one, and so is an empty import."""
    assert (celery("export").out, celery("export").err) == ("", "0 tasks exported\n")
    assert celery("import", typed="").out == "0 tasks imported\n"
    assert celery("import", "--json", typed="").objects == [{"lines": 0, "written": 0, "unchanged": 0}]


def test_a_bar_shows_how_far_it_is(
    app: Celery, backlog: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tasks when exporting, by bytes when importing."""
    import click

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    real = click.progressbar
    monkeypatch.setattr("celery_delayq.command.output.is_terminal", lambda _: True)
    monkeypatch.setattr(click, "progressbar", lambda **options: real(**{**options, "file": shown}))
    file = tmp_path / "jobs"

    run(app, "export", str(file))
    run(app, "import", str(file))

    size = file.stat().st_size
    assert "exporting" in shown.getvalue()
    assert "150/150" in shown.getvalue()
    assert f"{size}/{size}" in shown.getvalue()


def test_every_line_is_json_that_others_can_read(celery: Run, backlog: list[str]) -> None:
    """The message inside is what Celery wrote."""
    for line in celery("export").lines:
        fields = json.loads(line)
        assert list(fields) == ["id", "queue", "due", "body"]
        assert json.loads(fields["body"])["headers"]["id"] == fields["id"]


def test_the_commands_of_the_readme(celery: Run, app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them works as it is written there, one after the other; but for those that have tests of their own."""
    elsewhere = {"dead", "dispatch", "doctor"}
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True) for line in readme.splitlines() if line.startswith("celery -A proj")]
    assert len(commands) >= 15
    for task_id in ("need_some_help_email_42", "remind-A2"):
        app.delayq.apply_delayed("shop.remind", 3 * 86_400, task_id=task_id)
    at = datetime(2030, 1, 2, tzinfo=timezone.utc)
    app.delayq.apply_at("shop.remind", at, queue="mail", headers={"batch": "b1"})
    app.delayq.apply_at("shop.remind", at, queue="mail")

    for words in commands:
        if words[4] in elsewhere:
            continue
        if words[-1] == "drain":  # it is there twice
            app.delayq.apply_delayed("shop.remind", 3 * 86_400)
        said = celery(*words[words.index("delayq") + 1 :], typed="y\n")
        assert (said.code, "Error" in said.err) == (0, False), (words, said)
    assert app.delayq.queues() == []
