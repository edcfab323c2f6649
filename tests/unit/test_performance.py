"""README and docs/performance.md show the figures of the committed results, and all of them."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import document, plots, report, results, scaling, targets
from benchmarks.__main__ import BENCHMARKS, ON_REQUEST
from benchmarks.circumstances import Circumstances, Machine, ProcessorTime

OUTCOMES = results.load(document.RESULTS)
MARKER = re.compile(r"<!-- figures: (\S+) -->")


@pytest.mark.parametrize("page", document.PAGES, ids=lambda page: page.name)
def test_the_pages_show_the_results(page: Path) -> None:
    """`python -m benchmarks.document` would change nothing."""
    text = page.read_text()
    assert document.filled(text, OUTCOMES, document.PAGES[page]) == text


def test_the_plots_show_the_results() -> None:
    """There is a file for each plot that has lines, made of these lines, and no other."""
    lines = document.plotted(OUTCOMES)
    files = {file.stem: file.read_text() for file in document.FOLDER.glob("*.svg")}
    assert files.keys() == lines.keys()
    assert lines.keys() <= plots.PLOTS.keys()
    for name, svg in files.items():
        assert plots.shows(svg, lines[name]), f"{name}.svg was made of other points"


def test_every_benchmark_has_its_place() -> None:
    """docs/performance.md shows each benchmark once, beside the short table and the circumstances."""
    page = (document.ROOT / "docs" / "performance.md").read_text()
    assert sorted(MARKER.findall(page)) == sorted([*BENCHMARKS, *ON_REQUEST, "targets", "circumstances"])


def test_results_are_of_benchmarks_that_there_are() -> None:
    assert OUTCOMES.keys() <= (BENCHMARKS | ON_REQUEST).keys()


def test_every_target_was_measured() -> None:
    """The short table has a line for each target, in which all of its rows are found."""
    rows = [row for outcome in OUTCOMES.values() for row in outcome.rows]
    for target in targets.TARGETS:
        for chosen in target.chosen:
            found = chosen.of(rows)
            assert found, f"no row is {chosen}"


MACHINE = Machine("Abacus", 2, 1.0, "Linux 6")
CIRCUMSTANCES = Circumstances(
    "python -m benchmarks", "2026-11-22T18:00:00+00:00", 3.0, MACHINE, {"Redis": "7"}, "abc", 0.5, None, quick=False
)
OUTCOME = results.Outcome(
    CIRCUMSTANCES,
    (
        report.Row("speed", "a", "1", "x | y 2", report.Spread(0.5, 0.25, 1.0), "ratio <= 1", met=True),
        report.Row("speed", "is set so", "", "x: fast"),
        report.Row("speed", "b", "3", ""),
    ),
    (report.Series("rate", "put", (1.0, 2.0), (3.0, 4.0)),),
)


def test_results_can_be_read_again(tmp_path: Path) -> None:
    """What was written is what is read."""
    file = tmp_path / "figures" / "results.json"
    assert results.load(file) == {}
    results.add(file, "speed", OUTCOME)
    assert results.load(file) == {"speed": OUTCOME}
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]


def test_a_run_replaces_its_own_figures_only(tmp_path: Path) -> None:
    """Of the benchmarks that did not run, the figures stay, under their own circumstances."""
    file = tmp_path / "results.json"
    later = results.Outcome(CIRCUMSTANCES, (), ())
    results.add(file, "speed", OUTCOME)
    results.add(file, "size", OUTCOME)
    results.add(file, "speed", later)
    assert results.load(file) == {"speed": later, "size": OUTCOME}


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [], "series": []}', json.dumps({"speed": {"rows": []}})])
def test_another_file_is_not_taken_for_results(text: str, tmp_path: Path) -> None:
    """A file of something else is named, not overwritten."""
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        results.add(file, "speed", OUTCOME)
    assert file.read_text() == text


def test_a_page_is_filled_between_its_markers() -> None:
    """A table without empty columns, the plots, what is only told; the rest stays; what is not measured is said."""
    page = "# A\n<!-- figures: speed -->\nold\n<!-- /figures -->\nB\n<!-- figures: size -->\n<!-- /figures -->\n"
    filled = document.filled(page, {"speed": OUTCOME}, "there")
    assert filled.splitlines() == [
        "# A",
        "<!-- figures: speed -->",
        "| measured | ours | compared with | ratio: median (min to max) | target | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | 1 | x \\| y 2 | 0.50 (0.25 to 1.00) | ratio <= 1 | met |",
        "| b | 3 |  |  |  |  |",
        "",
        "![Rates over waiting tasks](there/rate.svg)",
        "",
        "- is set so: x: fast",
        "<!-- /figures -->",
        "B",
        "<!-- figures: size -->",
        "Not measured: `python -m benchmarks size` does it.",
        "<!-- /figures -->",
    ]
    assert document.filled(filled, {"speed": OUTCOME}, "there") == filled


def test_a_target_that_was_not_measured_says_so() -> None:
    assert targets.short_table([]).count("not measured") == len(targets.TARGETS) == 8


def test_stolen_time_is_a_share_of_what_has_passed() -> None:
    """In percent; unknown where the system does not tell."""
    before = ProcessorTime(100.0, 5.0)
    assert ProcessorTime(300.0, 8.0).stolen_since(before) == 1.5
    assert before.stolen_since(before) is None
    assert ProcessorTime(300.0, None).stolen_since(before) is None


def test_other_points_make_another_digest() -> None:
    """A plot that was drawn of other points, or under other labels, is found out."""
    (line,) = OUTCOME.series
    svg = f"<svg>\n<!-- points {plots.digest([line])} -->\n</svg>"
    assert plots.shows(svg, [line])
    for other in (
        report.Series(line.plot, line.label, line.x, (3.0, 4.1)),
        report.Series(line.plot, "get", line.x, line.y),
    ):
        assert not plots.shows(svg, [other])


def test_every_label_has_a_style_of_its_own() -> None:
    """One that can be told from all others without its colour, within each of the two families."""
    systems, operations = [], []
    for label, style in plots.STYLES.items():
        family = operations if label in scaling.LABELS.values() else systems
        family.append((style.dash, style.marker))
    assert len(set(systems)) == len(systems)
    assert len(set(operations)) == len(operations)


@pytest.mark.parametrize("name", ["lateness-100", "rate", "queues", "peers-burst"])
def test_drawing_is_repeatable(name: str) -> None:
    """The same points make the same file, with a name for each line."""
    pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib: pip install -e '.[bench]'")
    lines = [report.Series(name, label, (1.0, 2.0, 4.0), (3.0, 4.0, 3.5)) for label in ("RQ", "new", "celery_delayq")]
    svg = plots.draw(plots.PLOTS[name], lines)
    assert svg == plots.draw(plots.PLOTS[name], lines)
    assert plots.shows(svg, lines)
    assert all(f">{line.label}<" in svg for line in lines)


def _run(monkeypatch: pytest.MonkeyPatch, file: Path, **benchmarks: object) -> int:
    """The exit code of a command that runs these, and keeps their figures in *file*."""
    monkeypatch.setattr(command, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--json", str(file), "--redis", "redis-server"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        return command.main()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_that_is_broken_off_keeps_what_has_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What ran before is kept and shown; what was running is not."""
    file = tmp_path / "results.json"

    def told_to_end(_: object) -> report.Results:
        assert results.load(file)["speed"].rows == OUTCOME.rows, "kept as soon as it ends"
        signal.raise_signal(signal.SIGTERM)
        return OUTCOME.rows

    ends = _run(monkeypatch, file, speed=lambda _: OUTCOME.rows, size=told_to_end, more=lambda _: OUTCOME.rows)
    assert ends == 1
    assert results.load(file).keys() == {"speed"}


def test_a_benchmark_that_fails_costs_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither those of the others, nor its own older ones; but the run does not count as good."""
    file = tmp_path / "results.json"
    results.add(file, "speed", OUTCOME)

    def fails(_: object) -> report.Results:
        raise TimeoutError("nobody came")

    assert _run(monkeypatch, file, speed=fails, size=lambda _: OUTCOME.rows) == 1
    found = results.load(file)
    assert found["speed"] == OUTCOME
    assert found["size"].rows == OUTCOME.rows
    assert found["size"].circumstances.command == "python -m benchmarks --redis redis-server"
    assert "TimeoutError: nobody came" in capsys.readouterr().out
