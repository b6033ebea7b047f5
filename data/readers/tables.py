"""CSV tables and JSON files: what they hold, and errors that name the file and the line."""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

Made = TypeVar("Made")
LONGEST_FIELD = 2**24  # characters; the library's own limit is 2**17, below some reports with quoting errors


def find_table(root: Path, name: str) -> Path:
    """`name` in the root, or the same file with .gz added or taken away. Raises ValueError if neither is there."""
    for candidate in (name, name.removesuffix(".gz"), f"{name}.gz"):
        if (root / candidate).is_file():
            return root / candidate
    raise ValueError(f"expected {name} in {root}, not there; see docs/data.md for the layout")


def rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The values of these columns, one tuple per row.

    Raises ValueError with file and line: a column is missing, a row of another length, or no CSV in UTF-8.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with _opened(path) as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if missing := [name for name in columns if name not in header]:
                raise ValueError(f"expected the columns {missing}, the file has {header}; fetch the published file")
            indices = [header.index(name) for name in columns]
            for row in reader:
                if row and len(row) != len(header):
                    raise ValueError(f"expected {len(header)} fields, got {len(row)}")
                if row:
                    yield tuple([row[index] for index in indices])
        except (ValueError, csv.Error, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}:{reader.line_num}: {error}") from error


def json_lines(path: Path, make: Callable[[dict[str, Any]], Made]) -> Iterator[Made]:
    """What `make` returns for the JSON object of each line that is not blank.

    Raises ValueError with file and line: no file, not in UTF-8, a line is no JSON object, or `make` raises.
    """
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                number += 1
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
                    yield make(row)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a JSONL manifest in UTF-8, got {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}:{number}: {error}") from error


def need(row: Mapping[str, Any], key: str) -> Any:
    """A value that must be there."""
    if row.get(key) in (None, ""):
        raise ValueError(f"key {key!r} is missing; the study has the keys {', '.join(map(str, row))}")
    return row[key]


def text_of(row: Mapping[str, Any], key: str) -> str:
    """A text; absent or null counts as empty."""
    value = row.get(key) or ""
    if not isinstance(value, str):
        raise ValueError(f"key {key!r}: expected text, got {type(value).__name__}")
    return value


def names_of(row: Mapping[str, Any], key: str) -> list[str]:
    """A list of names; absent or null counts as empty."""
    value = row.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"key {key!r}: expected a list of names, got {value!r}")
    return value


def load_object(path: Path, of: type[Made]) -> dict[str, Made]:
    """A JSON object of objects or of lists. Raises ValueError if the file is missing, cut short or something else."""
    with _opened(path) as file:
        try:
            content = json.load(file)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path}: expected a JSON file in UTF-8, got {error}; fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    wanted = "an object" if of is dict else "a list"
    for key, value in content.items():
        if not isinstance(value, of):
            raise ValueError(f"{path}: expected {wanted} for {key!r}, got {type(value).__name__}")
    return content


def _opened(path: Path) -> TextIO:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}); see docs/data.md for the layout") from error
