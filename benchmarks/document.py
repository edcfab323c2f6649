"""``python -m benchmarks.document``: write the README's table, docs/performance.md and its plots, from the results.

In both pages, what stands between ``<!-- figures: NAME -->`` and ``<!-- /figures -->`` is made here; the rest is by
hand. NAME is a benchmark (its rows and its plots), ``targets`` (the short table) or ``circumstances``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from .circumstances import ROOT, Circumstances, named
from .plots import PLOTS, draw
from .report import HEAD, Row, Series, markdown
from .results import Outcome, load
from .targets import TARGETS, short_table

#: Where the figures are kept that the pages show, with the plots that are made of them.
FOLDER = ROOT / "docs" / "performance"
RESULTS = FOLDER / "results.json"
#: The pages, and how each names the folder.
PAGES = {ROOT / "README.md": "docs/performance", ROOT / "docs" / "performance.md": "performance"}

FIGURES = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- /figures -->)", re.DOTALL)

Outcomes = Mapping[str, Outcome]


def filled(page: str, outcomes: Outcomes, folder: str) -> str:
    """The text of *page* with these outcomes in it; *folder* is how it names that of the plots."""
    return FIGURES.sub(lambda found: f"{found[1]}{_figures(found[2], outcomes, folder)}\n{found[3]}", page)


def plotted(outcomes: Outcomes) -> dict[str, list[Series]]:
    """Plot -> its lines."""
    lines = sorted((line for outcome in outcomes.values() for line in outcome.series), key=lambda line: line.plot)
    return {name: list(group) for name, group in groupby(lines, key=lambda line: line.plot)}


def write(outcomes: Outcomes) -> None:
    """Write the pages and the plots.

    Raises:
        ImportError: matplotlib is not here.
    """
    plots = plotted(outcomes)
    for name, lines in plots.items():
        (FOLDER / f"{name}.svg").write_text(draw(PLOTS[name], lines), encoding="utf-8")
    for old in FOLDER.glob("*.svg"):
        if old.stem not in plots:
            old.unlink()
    for page, folder in PAGES.items():
        page.write_text(filled(page.read_text(encoding="utf-8"), outcomes, folder), encoding="utf-8")


def _figures(name: str, outcomes: Outcomes, folder: str) -> str:
    if name == "targets":
        return _targets(outcomes)
    if name == "circumstances":
        return _circumstances(outcomes)
    if name not in outcomes:
        return f"Not measured: `python -m benchmarks {name}` does it."
    outcome = outcomes[name]
    shown = dict.fromkeys(line.plot for line in outcome.series)
    images = [f"![{PLOTS[plot].title}]({folder}/{plot}.svg)" for plot in shown]
    remarks = [row for row in outcome.rows if not row.ours and row.ratio is None and row.met is None]
    measured = [row for row in outcome.rows if row not in remarks]
    told = "\n".join(f"- {row.figure}: {row.compared}" for row in _by_figure(remarks))
    return "\n\n".join(filter(None, [_table(measured), *images, told]))


def _by_figure(rows: Sequence[Row]) -> list[Row]:
    """Those of one figure together, in the order of their first ones."""
    figures = list(dict.fromkeys(row.figure for row in rows))
    return sorted(rows, key=lambda row: figures.index(row.figure))


def _table(rows: Sequence[Row]) -> str:
    """Rows of one benchmark, without columns that are empty."""
    lines = [HEAD, *(row.cells() for row in _by_figure(rows))]
    columns = [column for column in zip(*lines, strict=True) if any(column[1:]) and column[0] != "benchmark"]
    return markdown(list(zip(*columns, strict=True)))


def _targets(outcomes: Outcomes) -> str:
    """The short table, and what made it."""
    names = {chosen.benchmark for target in TARGETS for chosen in target.chosen}
    used = [outcome for name, outcome in outcomes.items() if name in names]
    table = short_table([row for outcome in used for row in outcome.rows])
    origins = _origins([outcome.circumstances for outcome in used])
    return "\n\n".join([*(f"{origin}." for origin in origins), table])


def _circumstances(outcomes: Outcomes) -> str:
    """Machine and versions; and when each benchmark ran, for how long, and with how much other work."""
    head = ("benchmark", "begun (UTC)", "took, s", "commit", "load before", "stolen, %")
    lines = [
        (
            name,
            it.begun[:16].replace("T", " "),
            f"{it.seconds:.0f}",
            it.commit,
            f"{it.load:.2f}",
            "?" if it.steal is None else f"{it.steal:.1f}",
        )
        for name, it in ((name, outcome.circumstances) for name, outcome in outcomes.items())
    ]
    origins = _origins([outcome.circumstances for outcome in outcomes.values()])
    return "\n".join([*(f"- {origin}." for origin in origins), "", markdown([head, *lines])])


def _origins(ran: Sequence[Circumstances]) -> list[str]:
    """Where these figures come from: a sentence, without its stop, for each machine with its versions."""
    commands: dict[str, dict[str, None]] = {}
    for it in ran:
        place = f"on {it.machine}; {named(it.versions)}{'; a QUICK run: these figures are ROUGH' if it.quick else ''}"
        commands.setdefault(place, {})[f"`{it.command}` ({it.begun[:10]})"] = None
    return [f"Made by {', '.join(made)} {place}" for place, made in commands.items()]


def main(arguments: Sequence[str]) -> int:
    results = Path(arguments[0]) if arguments else RESULTS
    outcomes = load(results)
    if not outcomes:
        print(f"no figures in {results}: `python -m benchmarks --document` makes them", file=sys.stderr)
        return 1
    write(outcomes)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
