"""A result file of the proof as Markdown."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def read(path: Path) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The machine, and the line of each section."""
    facts, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return facts, lines


def write_facts(path: Path, facts: Mapping[str, object]) -> None:
    """The first line of a new result file."""
    path.write_text(json.dumps(facts) + "\n", encoding="utf-8")


def markdown(facts: Mapping[str, object], lines: Sequence[Mapping[str, object]]) -> str:
    """One row per figure, under its section."""
    rows = [f"{name}: {value}" for name, value in facts.items() if value is not None]
    rows = [", ".join(rows), "", "| section | result | seconds | figure | value | bar |", "| --- |" + " --- |" * 5]
    for line in lines:
        head = [str(line["section"]), str(line["status"]), f"{line.get('seconds', 0):.1f}"]
        figures = [_cells(figure) for figure in line.get("figures", [])]
        if "error" in line:
            figures.insert(0, [_escaped(str(line["error"])), "", ""])
        for cells in figures or [["", "", ""]]:
            rows.append(f"| {' | '.join([*head, *cells])} |")
            head = ["", "", ""]
    return "\n".join(rows)


def _cells(figure: Mapping[str, object]) -> list[str]:
    value = figure["value"]
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    bar = str(figure.get("bar", ""))
    verdict = "" if "bar" not in figure else ", met" if figure["holds"] else ", **missed**"
    return [_escaped(str(figure["name"])), f"{shown} {figure['unit']}".strip(), bar + verdict]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
