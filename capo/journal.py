"""Files of a run: JSON lines that survive a kill, and whole files that are never seen half-written."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path


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
    """One JSON object a line, written whole."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, object]]:
    """Rows of a JSON-lines file. A last line without its newline is what a kill leaves behind, and is dropped.

    Raises:
        ValueError: any other line is not JSON; names file and line.
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
    """Metrics of a stage, one line a step, appended as they come.

    Lines at or after `resume_at` are dropped on opening: those steps are done again.
    """

    def __init__(self, path: Path, *, resume_at: int = 0) -> None:
        self.path = path
        write_lines(path, [row for row in read_lines(path) if row["step"] < resume_at])

    def append(self, row: Mapping[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
