"""Large CSV and JSON files, read a piece at a time."""

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

LONGEST_FIELD = 2**24  # characters; the library's own limit is 2**17, below some reports with quoting errors
CHUNK = 2**20


def find_table(root: Path, name: str) -> Path:
    """`name` in the root, or the same file with .gz added or taken away.

    Raises:
        ValueError: neither is there.
    """
    for candidate in (name, name.removesuffix(".gz"), f"{name}.gz"):
        if (root / candidate).is_file():
            return root / candidate
    raise ValueError(f"expected {name} in {root}, not there; see docs/data.md for the layout")


def rows(path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
    """The values of these columns, and of the optional ones ("" where the file has none), a tuple a row.

    Raises:
        ValueError: a column is missing, a row has too few or too many fields, or the file is no CSV in UTF-8; names
            file and line.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with _opened(path) as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if missing := [name for name in columns if name not in header]:
                raise ValueError(f"expected the columns {missing}, the file has {header}; fetch the published file")
            places = [header.index(name) if name in header else len(header) for name in (*columns, *optional)]
            pick = itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)
            for row in reader:
                if len(row) != len(header):
                    if not row:
                        continue
                    raise ValueError(f"expected {len(header)} fields, got {len(row)}")
                yield pick([*row, ""])
        except (ValueError, csv.Error, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}:{reader.line_num}: {error}") from error


def load_json(path: Path) -> Any:
    """A JSON file that fits in memory.

    Raises:
        ValueError: not there, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a JSON file in UTF-8, got {error}") from error


def members(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Keys and values of a JSON file that holds one large object, a member at a time.

    Raises:
        ValueError: the file is something else, or is cut short.
    """
    decode = json.JSONDecoder().raw_decode
    with _opened(path) as file:
        text, ended = _more(file, "")
        text = text.lstrip()
        if not text.startswith("{"):
            raise ValueError(f"{path}: expected a JSON object, got {text[:20]!r}")
        text = text[1:]
        while True:
            text = text.lstrip().removeprefix(",").lstrip()
            if text.startswith("}"):
                return
            try:
                key, colon = decode(text)
                colon = text.index(":", colon)
                value, end = decode(text[colon + 1 :].lstrip())
                text = text[colon + 1 :].lstrip()[end:]
            except ValueError as error:
                if ended:
                    raise ValueError(f"{path}: the file is cut short or no JSON ({error}); fetch it again") from error
                text, ended = _more(file, text)
                continue
            if not isinstance(value, dict):
                raise ValueError(f"{path}: expected an object for {key!r}, got {type(value).__name__}")
            yield key, value


def _more(file: TextIO, text: str) -> tuple[str, bool]:
    piece = file.read(CHUNK)
    return text + piece, not piece


def _opened(path: Path) -> TextIO:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}); see docs/data.md for the layout") from error
