"""Files of a run: JSON lines that survive a kill, and files that are written atomically."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: object) -> None:
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One JSON object per line, written atomically."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; drops a last line without a newline, which a kill leaves.

    ValueError names file and line of any other line that is not JSON.
    """
    if not path.exists():
        return []
    rows = []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: expected a JSON object, got {line[:60]!r}; remove the line") from error
    return rows


class Journal:
    """Metrics of a stage, one line per step; opening it drops the lines of steps from `resume_at` on."""

    def __init__(self, path: Path, *, resume_at: int = 0) -> None:
        self.path = path
        write_lines(path, [row for row in read_lines(path) if row["step"] < resume_at])

    def append(self, row: Mapping[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
