"""docs/rules.md keeps its word: its tables are the models', its files can be used, its expressions are told truly."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from celery_delayq import rules as package
from celery_delayq.rules import load, reference
from celery_delayq.rules.expression import compile_expression
from celery_delayq.rules.model import Make

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text("utf-8")
EXPRESSIONS = re.findall(r"^\| `(\S+)` \| `(\S+)` \|$", PAGE.split("## Regular expressions")[1].split("\n## ")[0], re.M)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def test_the_tables_are_generated() -> None:
    """`python -m celery_delayq.rules.reference docs/rules.md` would change nothing; each model has its table, under its
    name, to which types link, and each field a meaning.
    """
    assert reference.filled(PAGE) == PAGE
    assert re.findall(r"<!-- fields: (\w+) -->", PAGE) == [kind.__name__ for kind in reference.MODELS]
    for kind in reference.MODELS:
        assert f"\n### {kind.__name__}\n" in PAGE
        assert all(field.description for field in kind.model_fields.values())
    linked = set(re.findall(r"\]\(#(\w+)\)", "".join(map(reference.table, reference.MODELS))))
    assert linked == {kind.__name__.lower() for kind in reference.MODELS} - {"rules"}


def test_all_models_are_there() -> None:
    """Also one that is added later."""
    public = {kind for name in package.__all__ if hasattr(kind := getattr(package, name), "model_fields")}
    assert public == set(reference.MODELS)
    assert {kind.__name__ for kind in reference.MODELS} >= set(re.findall(r"\w+Make", str(Make)))


def test_the_file_can_be_used(tmp_path: Path) -> None:
    """The first one as it stands, the one with a Celery task in its place."""
    first, celery = blocks("hjson")
    path = tmp_path / "rules.hjson"
    path.write_text(first)
    (watcher,) = load(path).watchers
    assert (watcher.input_queue, watcher.taken, len(watcher.rules)) == ("global/done", "global/done/taken", 1)
    whole, made = re.subn(r"make: \{.*?\n {20}\}\n", lambda _: celery, first, flags=re.S)
    path.write_text(whole)
    (make,) = load(path).watchers[0].rules[0].make
    assert (made, make.name, make.on_conflict) == (1, None, "replace")


def test_its_python_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules as Python objects, and rules of a file."""
    first, setting = blocks("python")
    (tmp_path / "rules.hjson").write_text(blocks("hjson")[0])
    monkeypatch.chdir(tmp_path)
    exec(compile(first, "docs/rules.md", "exec"), {})
    ast.parse(setting)


def test_its_json_is_json() -> None:
    for block in blocks("json"):
        assert isinstance(json.loads(block), dict)


@pytest.mark.parametrize(("of_rust", "of_ours"), EXPRESSIONS)
def test_an_expression_that_differs(of_rust: str, of_ours: str) -> None:
    """It is refused; what stands beside it is not."""
    with pytest.raises(ValueError, match=r"is written|is unknown|are unknown|is possessive|hold for a group"):
        compile_expression(of_rust)
    compile_expression(of_ours)


def test_there_are_expressions() -> None:
    assert len(EXPRESSIONS) > 10
