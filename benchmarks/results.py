"""The results file: each benchmark's rows, its lines of plots and its circumstances. A run replaces its own only."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .circumstances import Circumstances
from .report import Results, Row, Series

#: A list of numbers, as json.dumps spreads it over lines. (Text in JSON holds no line breaks.)
NUMBERS = re.compile(r"\[\n[-+.,\deE\s]*\]")


@dataclass(frozen=True)
class Outcome:
    """What one benchmark has found, and when and where."""

    circumstances: Circumstances
    rows: tuple[Row, ...]
    series: tuple[Series, ...]

    @classmethod
    def of(cls, circumstances: Circumstances, results: Results) -> Outcome:
        return cls(
            circumstances,
            tuple(result for result in results if isinstance(result, Row)),
            tuple(result for result in results if isinstance(result, Series)),
        )

    def as_json(self) -> dict[str, object]:
        return {
            "circumstances": self.circumstances.as_json(),
            "rows": [row.as_json() for row in self.rows],
            "series": [line.as_json() for line in self.series],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Outcome:
        return cls(
            Circumstances.from_json(found["circumstances"]),
            tuple(map(Row.from_json, found["rows"])),
            tuple(map(Series.from_json, found["series"])),
        )


def load(path: Path) -> dict[str, Outcome]:
    """Benchmark -> its outcome; nothing if there is no such file.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: Outcome.from_json(outcome) for name, outcome in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a file that this version of the benchmarks has written: {error!r}") from error


def add(path: Path, name: str, outcome: Outcome) -> None:
    """Put the outcome of the benchmark *name* in the place of its last one; the others' stay."""
    save(path, {**load(path), name: outcome})


def save(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write them all; whoever reads meanwhile, or whatever stops us, finds the old file or the new one."""
    text = json.dumps({name: outcome.as_json() for name, outcome in outcomes.items()}, indent=1, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(NUMBERS.sub(lambda numbers: " ".join(numbers[0].split()), text) + "\n")
    os.chmod(file.name, 0o644)  # it is no secret
    os.replace(file.name, path)
