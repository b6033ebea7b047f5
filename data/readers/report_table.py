"""A table of reports and a folder of images, as a hospital exports them: columns are found by their names."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from radflow.data.readers.image_folder import ImageFolder
from radflow.data.readers.keys import find_keys
from radflow.data.readers.records import (
    SHARES,
    SPLITS,
    Record,
    Unread,
    images_inside,
    official_split,
    read_text,
    read_texts,
    split_of_patient,
)
from radflow.data.readers.tables import LONGEST_FIELD, delimiter_of, id_of, is_missing, storable, whole_ids
from radflow.data.sections import SectionParser, parse_sections
from radflow.data.studies import Study


@dataclass(frozen=True)
class ColumnConfig:
    """Columns of the table. Unset ones are found by their usual names, such as StudyID or report_text."""

    id_column: str | None = None
    """Of the study; rows with the same id are images of one study."""
    report_column: str | None = None
    """Of the whole report, divided at its headers."""
    findings_column: str | None = None
    """Of the Findings, in a table that has the sections apart."""
    impression_column: str | None = None
    """Of the Impression."""
    images_column: str | None = None
    """Of file names, separated by ; or |. Without it a study has the files and folders that are named after its id."""
    patient_id_column: str | None = None
    """Of the patient. Without it each study counts as a patient."""
    split_column: str | None = None
    """Of train, val or test. Without it patients are divided 70/10/20 by a hash of their id."""
    views_column: str | None = None
    """Of the view, such as PA; of tables with one image per row."""
    indication_column: str | None = None
    """Of the indication."""
    comparison_column: str | None = None
    """Of the comparison."""
    date_column: str | None = None
    """Of what orders the studies of a patient, as text: 2024-05-31."""

    def of(self, key: str) -> str | None:
        named: str | None = getattr(self, f"{key}_column")
        return named


COLUMNS = tuple(name.removesuffix("_column") for name in ColumnConfig.__dataclass_fields__)
JOINED = tuple(key for key in COLUMNS if key not in ("id", "images", "views"))  # the same in each row of a study


@dataclass
class _Rows:
    """What the rows of one study say."""

    line: int  # of the first
    values: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)  # name -> view


class ReportTable(NamedTuple):
    """Studies of a table, and lines that tell how it was understood."""

    records: list[Record | Unread]
    told: list[str]


def read_report_table(
    path: Path, images: Path, columns: ColumnConfig, *, parse: SectionParser = parse_sections
) -> ReportTable:
    """Studies in the order of their first row. The separator is a comma, semicolon, tab or bar.

    Raises ValueError with file and line if it is no such table, a column is missing or could be several, or rows of one
    study differ in their texts, patient, split or date.
    """
    folder = ImageFolder(images)
    text, utf8 = _read(path)
    found, studies = _join(path, text, columns)
    files = None if "images" in found else folder.by_study(studies)
    records: list[Record | Unread] = []
    for name, rows in studies.items():
        try:
            named = dict.fromkeys(files.get(name, []), "") if files is not None else _locate(rows, folder)
            records.append(_record(name, rows, folder.root, named, "split" in found, utf8, parse))
        except FileNotFoundError as error:
            records.append(Unread(name, "image not found", str(error)))
        except ValueError as error:
            raise ValueError(f"{path}:{rows.line}: study {name}: {error}") from error
    return ReportTable(records, list(_tell(found, studies, folder, records)))


def _read(path: Path) -> tuple[str, bool]:
    try:
        text, utf8 = read_text(path)
        if text.startswith("PK"):
            raise ValueError("expected a table as text, got a workbook or archive; save it as CSV in UTF-8")
        return storable(text), utf8
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _join(path: Path, text: str, columns: ColumnConfig) -> tuple[dict[str, str], dict[str, _Rows]]:
    """Key -> column of the table; id -> its rows."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        found = _find_columns(header, columns)
        lines = [(reader.line_num, _values(row, header, found)) for row in reader if any(map(str.strip, row))]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}") from error
    ids = {key: whole_ids(row[key] for _, row in lines if key in row) for key in ("id", "patient_id")}
    studies: dict[str, _Rows] = {}
    for line, row in lines:
        if "id" not in row:
            raise ValueError(f"{path}:{line}: expected an id in the column {found['id']!r}, got none")
        row |= {key: ids[key](row[key]) for key in ids if key in row}
        try:
            _add(studies.setdefault(row["id"], _Rows(line)), row)
        except ValueError as error:
            raise ValueError(f"{path}:{line}: study {row['id']}: {error}") from error
    if not studies:
        raise ValueError(f"{path}: expected a row per study below the header, got none")
    return found, studies


def _find_columns(header: Sequence[str], columns: ColumnConfig) -> dict[str, str]:
    """Key -> its column: the one that is named, else the one that is called so or means it."""
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise ValueError(f"expected each column once, got {', '.join(twice)} several times")
    means, found = find_keys(tuple(header)), dict[str, str]()
    listed = f"the table has {', '.join(header) or 'none'}"
    for key in COLUMNS:
        named, guesses = columns.of(key), means.get(key, ())
        if named is not None and named not in header:
            raise ValueError(f"expected a column {named!r} of {key}, {listed}; correct {key}_column")
        if named is None and len(guesses) > 1 and guesses[0] != key:
            raise ValueError(f"expected one column of {key}, got {' and '.join(guesses)}; choose one as {key}_column")
        if named is not None or guesses:
            found[key] = named or guesses[0]
    if columns.report_column is None and "findings" in found:
        found.pop("report", None)  # a table that has the sections apart may have the whole next to them
    elif "report" in found:
        found = {key: name for key, name in found.items() if key not in ("findings", "impression")}
    for wanted in (("id",), ("report", "findings")):
        if not found.keys() & set(wanted):
            options = " or ".join(f"{key}_column" for key in wanted)
            raise ValueError(f"expected a column of {' or '.join(wanted)}, {listed}; name it as {options}")
    return found


def _values(row: Sequence[str], header: Sequence[str], found: Mapping[str, str]) -> dict[str, str]:
    if len(row) != len(header):
        raise ValueError(f"expected {len(header)} fields, as in the header, got {len(row)}")
    values = dict(zip(header, map(str.strip, row), strict=True))
    return {key: values[name] for key, name in found.items() if not is_missing(values[name])}


def _add(study: _Rows, row: Mapping[str, str]) -> None:
    for key in JOINED:
        if key in row and study.values.setdefault(key, row[key]) != row[key]:
            raise ValueError(f"expected one {key} per study, got another one in line {study.line}; keep one")
    for name in _names(row.get("images", "")):
        study.images.setdefault(name, row.get("views", ""))


def _names(cell: str) -> list[str]:
    """File names of a cell: a list as JSON or Python writes it, or separated by ; or |."""
    if cell.startswith("["):
        try:
            return [id_of(name) for name in json.loads(cell.replace("'", '"'))]
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"expected file names separated by ; or |, got {cell!r:.200}") from error
    return [name.strip() for name in re.split(r"[;|]", cell) if name.strip()]


def _locate(rows: _Rows, folder: ImageFolder) -> dict[str, str]:
    """Path in the folder -> view. Raises FileNotFoundError for names that no file has."""
    paths = {name: folder.find(name) for name in rows.images}
    if missing := [name for name, path in paths.items() if path is None]:
        raise FileNotFoundError(", ".join(missing))
    return {path: rows.images[name] for name, path in paths.items() if path is not None}


def _record(
    name: str,
    rows: _Rows,
    root: Path,
    images: Mapping[str, str],
    divided: bool,
    utf8: bool,
    parse: SectionParser,
) -> Record:
    values = rows.values
    patient = values.get("patient_id", name)
    split = official_split(values.get("split", "train")) if divided else split_of_patient(patient, SHARES)
    texts, ambiguous = read_texts(values, parse)
    views = tuple(images.values()) if any(images.values()) else ()
    study = Study(name, patient, split, images_inside(root, images), *texts, views=views)
    return Record(study, values.get("date", ""), ambiguous, utf8)


def _tell(
    found: Mapping[str, str], studies: Mapping[str, _Rows], folder: ImageFolder, records: Sequence[Record | Unread]
) -> Iterator[str]:
    yield "columns: " + ", ".join(f"{key} from {column!r}" for key, column in found.items())
    if "images" not in found:
        yield f"images: files and folders of {folder.root} that are named after an id"
    used = {path for record in records if isinstance(record, Record) for path in record.study.images}
    if unused := [name for name in folder.paths if folder.root / name not in used]:
        yield f"{len(unused):,} files of {folder.root} belong to no study, such as {unused[0]}"
    if "patient_id" not in found:
        yield "no column of patients: each study counts as a patient of its own"
    if "split" not in found:
        yield f"no column of splits: patients are divided {SHARES} into {', '.join(SPLITS)} by a hash of their id"
    elif unsplit := sum("split" not in rows.values for rows in studies.values()):
        yield f"{unsplit:,} studies without a split are trained on"
