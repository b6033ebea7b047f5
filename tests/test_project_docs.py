"""The documentation names what exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = r"capo|rewards|models|data|train|evaluate|run_folder"


@cache
def names_in(path: Path) -> set[str]:
    """Functions and classes at the top level of a file."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, kinds)}


def module_file(parts: list[str]) -> Path | None:
    path = ROOT.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.exists()), None)


def exists(dotted: str) -> bool:
    """True for a module, or a top-level function or class of one."""
    parts = dotted.split(".")
    if module_file(parts):
        return True
    parent = module_file(parts[:-1])
    return parent is not None and (parts[-1] in names_in(parent) or parts[-1].startswith("__"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_function_and_test_named_on_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    dotted = set(re.findall(rf"`((?:{SOURCES})(?:\.\w+)+)`", text))
    wrong = [name for name in dotted if not name.endswith(".py") and not exists(name)]
    for path, test in set(re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text)):
        file = ROOT / path
        if not file.exists() or (test and test not in names_in(file)):
            wrong.append(f"{path}::{test}" if test else path)
    assert not wrong, f"{page.name} names what does not exist: {sorted(wrong)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]
