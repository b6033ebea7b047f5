"""CSV tables and JSON files: what they hold, and errors that name the file and the line."""

import csv
import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

    Raises ValueError with file and line: no file, not in UTF-8, a line is no JSON object or has a key twice, or `make`
    raises.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                number += 1
                if line.strip():
                    row = parse_json(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
                    yield make(row)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a JSONL manifest in UTF-8, got {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}:{number}: {error}") from error


def delimiter_of(text: str) -> str:
    """Comma, semicolon, tab or bar: what divides the first line into the most columns."""
    first = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
    return max(",;\t|", key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which must not name a key twice: the first value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"expected each key once, got {twice!r} several times")
    return found


def parse_json(text: str, make_object: Callable[[list[tuple[str, Any]]], Any] = _unique) -> Any:
    """A JSON value, its objects made of keys and values in their order. Raises ValueError for anything else."""
    try:
        return json.loads(text, object_pairs_hook=make_object)
    except RecursionError as error:
        raise ValueError("expected a JSON value, got one that is nested too deeply") from error


def storable(text: str) -> str:
    """The text itself; ValueError for what no file can hold: half of a surrogate pair, or the character NUL."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half of a surrogate pair ({error.object[error.start]!a})"
        raise ValueError(f"expected text, got {half}") from error
    if "\0" in text:
        raise ValueError("expected text, got the character NUL")
    return text


def escape_control(text: str) -> str:
    """The text as one line that cannot steer a terminal or break a table: control and format characters (escape codes,
    line ends, changes of the direction of writing) and halves of surrogate pairs as in JSON, such as \\u001b.

    For whatever others chose: ids, names of files, keys, reports. JSON files hold these as they are.
    """
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def escape_lines(text: str) -> str:
    """The same for a text of several lines, which stay."""
    return "\n".join(map(escape_control, text.split("\n")))


def is_missing(value: Any) -> bool:
    """null, NaN as JSON or pandas write it, and nothing but white space."""
    if isinstance(value, str):
        return value.strip() in ("", "nan", "NaN")
    return value is None or (isinstance(value, float) and math.isnan(value))


def id_of(value: Any) -> str:
    """An id as text: of a text, or of a number that is whole. Raises ValueError for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as pandas writes a column in which some are missing
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"expected an id as text or whole number, got {value!r:.100}")
    name = storable(str(value).strip())
    if not name:
        raise ValueError("expected an id, got an empty one")
    return name


def whole_ids(names: Iterable[str]) -> Callable[[str], str]:
    """What makes ids of these names: if all are numbers like 50414267.0, as a spreadsheet or a merge leaves them,
    without their end. Raises ValueError if a spreadsheet shortened them to 5.04E+07.
    """
    names = list(names)
    if short := next((name for name in names if re.fullmatch(r"\d\.\d+[eE]\+?\d+", name)), None):
        raise ValueError(f"expected ids, got {short}, which a spreadsheet shortened; format their column as text")
    floats = names and all(re.fullmatch(r"\d+\.0+", name, re.ASCII) for name in names)
    return (lambda name: name.partition(".")[0]) if floats else (lambda name: name)


def need(row: Mapping[str, Any], key: str) -> Any:
    """A value that must be there."""
    if is_missing(row.get(key)):
        raise ValueError(f"key {key!r} is missing; the study has the keys {', '.join(map(str, row)) or 'of none'}")
    return row[key]


def text_of(row: Mapping[str, Any], key: str) -> str:
    """A text; absent, null or NaN counts as empty."""
    value = row.get(key)
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise ValueError(f"key {key!r}: expected text, got {type(value).__name__}")
    return _named(key, value)


def names_of(row: Mapping[str, Any], key: str) -> list[str]:
    """A list of names, or one name; absent or null counts as empty."""
    value = row.get(key)
    if is_missing(value):
        return []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"key {key!r}: expected a list of names, got {value!r:.200}")
    return [_named(key, name) for name in names]


def _named(key: str, text: str) -> str:
    try:
        return storable(text)
    except ValueError as error:
        raise ValueError(f"key {key!r}: {error}") from error


def load_object(path: Path, of: type[Made]) -> dict[str, Made]:
    """A JSON object of objects or of lists. Raises ValueError if the file is missing, cut short or something else."""
    with _opened(path) as file:
        try:
            content = parse_json(file.read())
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
