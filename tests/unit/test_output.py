"""What the commands write: safe on a terminal, whatever an id or a message holds."""

from __future__ import annotations

import io
import json
import os
import sys
from datetime import datetime, timedelta, timezone
from types import MappingProxyType

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_delayq.command.agenda import Chart, chart_lines
from celery_delayq.command.output import Bar, Column, Stopped, Table, as_json, columns_of, cut, safe, write

NOON = datetime(2030, 1, 2, 12, 0, tzinfo=timezone.utc)


class Terminal(io.StringIO):
    """Somebody looks at it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def look(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, standard output is a terminal of 60 columns."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((60, 24)))


HOSTILE = "a\nb\r\t\x1b[31m\x07\x9b\u202e\u200b\ud800\x00"


def test_nothing_reaches_a_terminal_that_it_would_obey() -> None:
    """Line breaks, escape sequences, changes of direction, lone surrogates: written as Python writes them."""
    assert safe(HOSTILE) == r"a\nb\r\t\x1b[31m\x07\x9b\u202e\u200b\ud800\x00"
    assert safe("need_some_help_email_42 ü 中文") == "need_some_help_email_42 ü 中文"


@given(st.text())
def test_safe_text_is_printable(text: str) -> None:
    """Whatever it was; and safe text stays as it is."""
    assert safe(text).isprintable()
    assert safe(safe(text)) == safe(text)


def test_columns_are_those_of_a_terminal() -> None:
    """East Asian characters take two, what is put over another one takes none."""
    assert [columns_of(text) for text in ("abc", "中文", "e\u0301")] == [3, 4, 1]
    assert cut("abcdef", 4) == "abc…"
    assert cut("中文中文", 5) == "中文…"
    assert cut("abc", 3) == "abc"


ROWS = [("1", "proj.a_task_with_a_long_name", "x"), ("1000", "b", "中文"), ("2", HOSTILE, "y" * 90)]
COLUMNS = (Column("N", right=True), Column("TASK", narrows=True), Column("ID"))


def test_a_table_is_not_cut_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """Into a file or another program, everything is whole, each row on one line."""
    write(Table(*COLUMNS).lines(ROWS))

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["N", "TASK", "ID"]
    assert lines[1].startswith("   1  proj.a_task_with_a_long_name")
    assert lines[3].endswith("y" * 90)
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)


def test_a_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are narrowed, ids are not: whoever looks wants to copy one."""
    look(monkeypatch)
    rows = [*ROWS[:2], ("3", "x" * 50, "0b7c1f3e-0000-0000-0000-000000000042")]
    lines = list(Table(*COLUMNS).lines(rows))

    assert lines[0] == click.style("   N  TASK              ID", bold=True)
    assert [columns_of(line) <= 60 for line in lines[1:]] == [True] * 3
    assert lines[1] == "   1  proj.a_task_wit…  x"
    assert lines[3].endswith("…  0b7c1f3e-0000-0000-0000-000000000042")


def test_a_table_begins_before_all_rows_are_known() -> None:
    """It never holds more than the first of them; what comes behind stands in the same columns."""
    taken = 0

    def rows() -> object:
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield (str(number), "task", "id")

    lines = Table(*COLUMNS).lines(rows())  # type: ignore[arg-type]
    assert next(lines).split() == ["N", "TASK", "ID"]
    assert taken <= 101
    assert sum(1 for _ in lines) == 10_000
    assert list(Table(*COLUMNS).lines([])) == []


def test_an_output_without_the_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an encoding lacks is written with a backslash, not raised."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write(["ü 中"])
    assert raw.getvalue() == rb"\xfc \u4e2d" + b"\n"


def test_json_is_one_line_of_ascii() -> None:
    """Times in ISO 8601, lengths in seconds."""
    fields = {
        "id": HOSTILE,
        "due": NOON,
        "overdue": timedelta(milliseconds=1500),
        "headers": MappingProxyType({"user": 42}),
    }
    line = as_json(fields)

    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == {
        "id": HOSTILE,
        "due": "2030-01-02T12:00:00.000000+00:00",
        "overdue": 1.5,
        "headers": {"user": 42},
    }
    with pytest.raises(TypeError, match="set has no form in JSON"):
        as_json({"x": {1}})


def test_a_bar_is_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal it shows how far the work is; elsewhere nothing at all."""
    with Bar("working", "stopped") as bar:
        bar.progress(5, 10)
    assert capsys.readouterr() == ("", "")

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Bar("working", "stopped") as bar:
        bar.progress(5, 10)
        bar.progress(12, 12)
    assert "working" in terminal.getvalue()
    assert "12/12" in terminal.getvalue()


def test_ctrl_c_has_a_last_word() -> None:
    """How far it came, and the exit status that shells know; other errors pass."""

    def work(error: type[BaseException]) -> None:
        with Bar("working", "stopped at {done} of {total}") as bar:
            bar.progress(5000, 10_000)
            raise error

    with pytest.raises(Stopped, match="stopped at 5,000 of 10,000") as raised:
        work(KeyboardInterrupt)
    assert raised.value.exit_code == 130
    with pytest.raises(RuntimeError):
        work(RuntimeError)


def chart(loads: list[dict[str, int]], width: int = 60, step: timedelta = timedelta(minutes=1)) -> list[str]:
    """A chart of one step for each of *loads*."""
    steps = [(NOON + number * step, load) for number, load in enumerate(loads)]
    return list(chart_lines(Chart("next", NOON, NOON + len(loads) * step, step), steps, width))


def test_a_chart_of_bars_by_queue() -> None:
    """One scale for all queues; what is there is seen, however little it is."""
    assert chart([{"mail": 1}, {}, {"mail": 16, "celery": 8}, {"celery": 1}] + [{}] * 8) == [
        "next: 2030-01-02 12:00 to 2030-01-02 12:12 UTC",
        "celery: 9 tasks, at most 8 from 12:02 on",
        "  ····██▁▁················",
        "mail: 17 tasks, at most 16 from 12:02 on",
        "      ██",
        "  ▁▁··██··················",
        "  12:00     12:05     12:10",
    ]


def test_a_chart_without_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that has ASCII only gets a picture, too."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    lines = chart([{"q": 1}, {"q": 6}, {}])
    assert lines[1] == "q: 7 tasks, at most 6 from 12:01 on"
    assert [line.strip() for line in lines[2:4]] == ["||", "..||__"]


def test_a_chart_of_nothing() -> None:
    """Says so."""
    assert chart([{}, {}]) == ["next: 2030-01-02 12:00 to 2030-01-02 12:02 UTC: nothing"]


def test_a_long_chart_goes_on_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is wider than the terminal."""
    lines = chart([{"a very long name \n of a queue" * 3: 5}] * 200, width=60, step=timedelta(days=1))
    assert max(map(columns_of, lines)) <= 60
    assert sum("█" in line for line in lines) == 2 * 4
    assert all(line.isprintable() for line in lines)
