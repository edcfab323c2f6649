"""The README keeps its word: what can be checked by a machine is."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery

import celery_delayq
from celery_delayq import DelayQ
from celery_delayq.settings import Settings, table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_the_settings_table_is_generated() -> None:
    """The table is what the settings say of themselves; `python -m celery_delayq.settings` prints it."""
    between = README.split("<!-- settings -->")[1].split("<!-- /settings -->")[0]
    assert between.strip() == table()


def test_code_comes_first() -> None:
    """A reader meets code before line 25, and can take it in: 15 lines."""
    lines = README.splitlines()
    begin = next(number for number, line in enumerate(lines, start=1) if line.startswith("```"))
    end = next(number for number, line in enumerate(lines, start=1) if line == "```")
    assert begin < 25
    assert lines[begin - 1] == "```python"
    assert end - begin - 1 <= 15


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_the_examples_compile(number: int) -> None:
    """Each Python example is Python, and imports only what celery_delayq has."""
    tree = ast.parse(PYTHON[number])
    compile(tree, f"README example {number}", "exec")
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "celery_delayq"
        for alias in node.names
    }
    assert imported <= set(celery_delayq.__all__)


def test_the_django_settings_are_read() -> None:
    """Under Django's namespace the settings are found, also those of the README's example."""
    (source,) = (source for source in PYTHON if "namespace=" in source)
    given = {
        node.targets[0].id: node.value.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert given, "the example sets nothing"
    app = Celery("django", set_as_current=False)
    delayq = DelayQ(app)
    app.config_from_object(SimpleNamespace(**given), namespace="CELERY")
    expected = {name.removeprefix("CELERY_DELAYQ_").lower(): value for name, value in given.items()}
    assert delayq.settings == Settings(**expected)


@pytest.mark.parametrize(
    "name",
    ["README.md", *(str(path.relative_to(ROOT)) for path in (*ROOT.glob("examples/*/*.md"), *ROOT.glob("docs/*.md")))],
)
def test_links_lead_somewhere(name: str) -> None:
    """Each link to a file of the project names one that exists."""
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
