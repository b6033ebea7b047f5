"""The documentation names what exists, and its examples run."""

import ast
import importlib
import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = (
    r"capo|rewards|models|data|train|evaluate|run_folder|reporting|held_out|evaluation|reports_by_policy|run_scores"
)


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_function_and_test_named_on_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    dotted = set(re.findall(rf"`((?:{SOURCES})(?:\.\w+)+)`", text))
    wrong = [name for name in dotted if not name.endswith(".py") and not exists(name)]
    for path, test in set(re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text)):
        file = ROOT / path
        if not file.exists() or (test and test not in names_in(file)):
            wrong.append(f"{path}::{test}" if test else path)
    assert not wrong, f"{page.name} names what does not exist: {sorted(wrong)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "library").glob("*.md")), ids=lambda page: page.name)
def test_examples_of_the_library_pages_run(page):
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), {})  # their assertions are the test


def test_the_readme_example_runs_as_printed():
    (block,) = python_blocks(ROOT / "README.md")
    trained = torch.zeros(4, 5, requires_grad=True)
    names = {
        "rewards": torch.tensor([1.0, 2.0, 0.5, 0.7]),
        "groups": torch.tensor([0, 0, 1, 1]),
        "critical": torch.tensor([True, True, False, False]),
        "micro_batches": [[0, 1], [2, 3]],
        "logps": lambda rows: trained[rows],
        "behaviour_logps": torch.zeros(4, 5),
        "reference_logps": torch.zeros(4, 5),
        "mask": torch.ones(4, 5, dtype=torch.bool),
    }
    exec(compile(block, "README.md", "exec"), names)
    assert trained.grad.abs().sum() > 0


@pytest.mark.parametrize("result", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_benchmark_tables_of_the_pages_are_those_of_the_result_files(result, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = importlib.import_module("harness").table(json.loads(result.read_text(encoding="utf-8")))
    assert any(table in page.read_text(encoding="utf-8") for page in PAGES), f"no page quotes {result.name}"


def test_the_plain_loop_learns(capsys):
    path = ROOT / "docs" / "examples" / "plain_loop.py"
    names = {"__name__": "plain_loop"}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    # One token in twelve is right by chance; 25 of its 60 steps are enough to see it learn.
    assert names["main"](steps=25) > 0.6
