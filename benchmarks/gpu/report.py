"""What one section of the proof found: figures, each with its bar, written down the moment it is known."""

import json
import math
from dataclasses import dataclass
from pathlib import Path


class Skipped(Exception):
    """What a section needs is not on this machine (data that is not part of the repository)."""


@dataclass(frozen=True)
class Bar:
    """Where a figure must lie."""

    at_most: float | None = None
    at_least: float | None = None
    goal: bool = False  # one that is missed is shown and fails nothing

    def holds(self, value: float) -> bool:
        """Never for NaN."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most) and not math.isnan(value)

    def __str__(self) -> str:
        if self.at_least == self.at_most:
            return f"= {self.at_least:g}"
        parts = [] if self.at_least is None else [f">= {self.at_least:g}"]
        parts += [] if self.at_most is None else [f"<= {self.at_most:g}"]
        return " and ".join(parts) + (" (goal)" if self.goal else "")


def exactly(value: float) -> Bar:
    return Bar(at_most=value, at_least=value)


class Report:
    """Collects the figures of a section in a file, so that those of one that is killed are not lost."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ran(self, what: str) -> None:
        """Say in words what is measured."""
        self._write({"ran": what})

    def figure(self, name: str, value: float | str, bar: Bar | None = None, *, unit: str = "") -> None:
        """One number (or word) and where it must lie; without a bar it is only recorded."""
        line = {"name": name, "value": value, "unit": unit}
        if isinstance(value, float) and not math.isfinite(value):
            line["value"] = str(value)  # JSON has no NaN
        if bar is not None:
            line |= {"bar": str(bar), "holds": bar.holds(float(value)), "goal": bar.goal}
        self._write(line)

    def _write(self, line: dict[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read(self) -> dict[str, object]:
        """`ran` and `figures` so far."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        # A process that was killed may have left half a line.
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        ran = [line["ran"] for line in lines if "ran" in line]
        return {"ran": "; ".join(ran), "figures": [line for line in lines if "name" in line]}


def missed(figures: list[dict[str, object]]) -> list[str]:
    """Names of the figures outside their bars, goals aside."""
    return [str(f["name"]) for f in figures if not f.get("holds", True) and not f["goal"]]
