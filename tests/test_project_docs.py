"""The documentation names what exists, its tables are those of the result files, and its examples run."""

import ast
import csv
import re
import runpy
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from radflow.models.start import ModelConfig
from radflow.pipeline.run_config import Config, plain

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PACKAGES = "rewards|models|data|train|evaluate|pipeline|dashboard|evaluation"  # each is imported as radflow.<package>
SECTIONS = plain(Config(model=ModelConfig(training="full")))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which may name what is gone
each_current_page = pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def names_in(path: Path) -> set[str]:
    """Functions and classes at the top level of a file."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, kinds)}


def module_file(parts: list[str]) -> Path | None:
    path = ROOT.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.exists()), None)


def exists(name: str) -> bool:
    """True for a module, or a top-level function or class of one."""
    parts = name.removeprefix("radflow.").split(".")
    if module_file(parts):
        return True
    parent = module_file(parts[:-1])
    return parent is not None and (parts[-1] in names_in(parent) or parts[-1].startswith("__"))


@each_current_page
def test_every_function_and_test_named_on_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    wrong = [name for name in set(re.findall(r"`((?:capo|radflow)(?:\.\w+)+)`", text)) if not exists(name)]
    for path, test in set(re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text)):
        file = ROOT / path
        if not file.exists() or (test and test not in names_in(file)):
            wrong.append(f"{path}::{test}" if test else path)
    wrong += [path for path in re.findall(r"\b((?:benchmarks|docs)/[\w/]+\.py)\b", text) if not (ROOT / path).exists()]
    assert not wrong, f"{page.name} names what does not exist: {sorted(wrong)}"


@each_page
def test_modules_are_named_as_they_are_imported(page):
    """`rewards.guard` is imported as `radflow.rewards.guard`."""
    named = set(re.findall(rf"`((?:{PACKAGES})(?:\.\w+)+)", page.read_text(encoding="utf-8")))
    modules = {name for name in named if not name.endswith(".py") and module_file(name.split(".")[:2])}
    assert not modules, f"{page.name}: expected the prefix `radflow.` before {sorted(modules)}"


def is_key(name: str) -> bool:
    """True for a key of the config; what an empty section or a free mapping may hold is not known."""
    node: object = SECTIONS
    for part in name.replace("-", "_").split("."):
        if not isinstance(node, Mapping) or not node:
            return True
        if part not in node:
            return False
        node = node[part]
    return True


@each_current_page
def test_every_key_of_the_config_named_on_a_page_exists(page):
    sections = "|".join(SECTIONS)
    found = re.findall(rf"(?:`|--)((?:{sections})\.[\w.-]*\w)", page.read_text(encoding="utf-8"))
    files = (".py", ".md", ".json", ".jsonl", ".yaml", ".html", ".csv")
    wrong = {key for key in found if not key.endswith(files) and not exists(key) and not is_key(key)}
    assert not wrong, f"{page.name} names keys that the config lacks: {sorted(wrong)}"


@each_page
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def anchors(page: Path) -> set[str]:
    """Fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_link_to_a_heading_leads_to_one(page):
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    targets = [(page.parent / link if link else page, anchor) for link, anchor in links]
    assert not [f"{path.name}#{anchor}" for path, anchor in targets if anchor not in anchors(path)]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "library").glob("*.md")), ids=lambda page: page.name)
def test_examples_of_the_library_pages_run(page):
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), {})  # their assertions are the test


def test_the_readme_examples_run_as_printed(capsys):
    block, scoring = python_blocks(ROOT / "README.md")
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
    (comparing,) = python_blocks(ROOT / "docs" / "evaluate.md")
    lists = {name: ["No effusion."] for name in ("predictions", "references", "others")}
    exec(compile(scoring + comparing, "README.md and evaluate.md", "exec"), lists)
    shown = capsys.readouterr().out.splitlines()
    # three texts with the values of systems, one of them with differences and values of critical and normal cases
    assert sum(line.startswith("corpus BLEU-2 ") for line in shown) == 5


def quoted_tables(page: Path) -> Iterator[tuple[Path, list[str]]]:
    """(file, lines) of each table on a page whose paragraph before it links a CSV file."""
    blocks = re.split(r"\n\s*\n", page.read_text(encoding="utf-8"))
    for before, block in pairwise(blocks):
        links = re.findall(r"\]\(([^)\s]+\.csv)\)", before)
        if links and block.startswith("|"):
            yield (page.parent / links[-1]).resolve(), block.splitlines()


def cells(line: str) -> list[str]:
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in line.strip().strip("|").split("|")]


@each_page
def test_every_quoted_table_is_some_columns_and_rows_of_its_file(page):
    for path, (header, _, *lines) in quoted_tables(page):
        with path.open(encoding="utf-8", newline="") as file:
            known = list(csv.DictReader(file))
        columns = cells(header)
        assert set(columns) <= set(known[0]), f"{path.name} has no columns {set(columns) - set(known[0])}"
        held = {tuple(row[column] for column in columns) for row in known}
        wrong = [line for line in lines if tuple(cells(line)) not in held]
        assert not wrong, f"{page.name}: not in {path.name}:\n" + "\n".join(wrong)


def test_every_result_file_is_linked_from_a_page_and_every_figure_is_shown():
    links = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in re.findall(r"\]\(([^)\s]+\.(?:csv|svg))\)", page.read_text(encoding="utf-8"))
    }
    files = [*RESULTS.glob("*.*"), *(ROOT / "docs" / "figures").glob("*.svg")]
    assert not [path.name for path in files if path.resolve() not in links]


def test_the_figure_of_the_method_is_what_its_program_draws(tmp_path):
    runpy.run_path(str(ROOT / "benchmarks" / "study" / "method.py"))["draw"](tmp_path / "method.svg")
    assert (tmp_path / "method.svg").read_bytes() == (ROOT / "docs" / "figures" / "method.svg").read_bytes()


def test_the_documentation_stays_short():
    words = {page: len(page.read_text(encoding="utf-8").split()) for page in PAGES}
    assert words[ROOT / "README.md"] <= 1200 and words[ROOT / "docs" / "results.md"] <= 4000
    assert sum(count for page, count in words.items() if page.is_relative_to(ROOT / "docs")) <= 20_000


def test_the_plain_loop_learns(capsys):
    path = ROOT / "docs" / "examples" / "plain_loop.py"
    names = {"__name__": "plain_loop"}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    # One token in twelve is right by chance; 25 of its 60 steps are enough to see it learn.
    assert names["main"](steps=25) > 0.6
