"""Files of reports, as people and leaderboards write them: ReXrank JSON, CSV, JSON lines, a folder of text files.

One file holds predictions or references. Nothing in it is dropped silently: what cannot be a report is an error that
names the study or the line, and what is missing (null, NaN, an empty field) is kept as missing.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from radflow.data.readers.tables import (
    LONGEST_FIELD,
    delimiter_of,
    id_of,
    is_missing,
    parse_json,
    storable,
)

Role = Literal["predictions", "references"]

ID_KEYS = ("study_id", "id", "study", "uid", "case_id")
IMAGE_KEY = "path_to_image"  # CheXpert Plus names a study by the folder of its images only
FINDINGS_KEYS = ("section_findings", "findings")
IMPRESSION_KEYS = ("section_impression", "impression")
# A file of predictions may also hold the reference (ReXrank's does, under "report"): its own key comes first.
REPORT_KEYS: Mapping[Role, tuple[str, ...]] = {
    "predictions": ("model_prediction", "prediction", "report", "text"),
    "references": ("report", "reference", "text"),
}
SPLITS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True)
class Report:
    """One report as the file has it; None for what is missing."""

    text: str | None  # the whole report
    findings: str | None = None  # if the file gives the sections apart
    impression: str | None = None
    split: str | None = None

    @property
    def divided(self) -> bool:
        """Whether the file gives a section apart."""
        return self.findings is not None or self.impression is not None


def read_report_file(path: Path, role: Role) -> dict[str, Report]:
    """Reports of a file or folder, by study id, in its order.

    A `.json` is an object of id -> report (a text, or an object with the keys of ReXrank), or R2Gen's object of
    split -> list of studies; `.jsonl` has one object per line; `.csv` and `.tsv` have a header; a folder has one text
    file per study, named after it. Column and key names are those of ReXrank, MIMIC-CXR, IU X-ray, CheXpert Plus and
    ReXGradient, in any case. An id that comes again with the same text (one row for each image of a study) counts once.

    Raises ValueError, with file and line or study, if it is unreadable, not UTF-8, of another form, without any study,
    or has two different reports for one id.
    """
    reports: dict[str, Report] = {}
    for where, study_id, report in _rows(path, role):
        if reports.setdefault(study_id, report) != report:
            raise ValueError(f"{where}: study {study_id} has two different reports in this file; keep one")
    if not reports:
        raise ValueError(f"{path}: expected reports by study id, got none")
    return reports


def _rows(path: Path, role: Role) -> Iterator[tuple[str, str, Report]]:
    """(position in the file, id, report) of each entry."""
    if path.is_dir():
        for file in sorted(path.rglob("*.txt")):
            yield str(file), file.stem, Report(_known(_decoded(file), str(file)))
        return
    forms = {".json": _json_entries, ".jsonl": _json_lines, ".csv": _table, ".tsv": _table}
    if path.suffix not in forms:
        raise ValueError(f"{path}: expected a .json, .jsonl, .csv or .tsv file or a folder of .txt files, got neither")
    for where, study_id, entry in forms[path.suffix](_decoded(path), path):
        yield where, study_id, _report(entry, role, where)


def _decoded(path: Path) -> str:
    """Text of a file in UTF-8, with or without a byte order mark."""
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ValueError(f"{path}:{line}: expected UTF-8, got the byte {byte:#04x}; save the file as UTF-8") from error


def _json_entries(text: str, path: Path) -> Iterator[tuple[str, str, Any]]:
    loaded = _parsed(text, str(path))
    if not isinstance(loaded, _Pairs):
        raise ValueError(f"{path}: expected a JSON object of study id -> report, got {type(loaded).__name__}")
    for key, value in loaded:
        if key in SPLITS and isinstance(value, list):  # R2Gen's annotation file
            for number, entry in enumerate(value):
                where = f"{path}: {key}[{number}]"
                entry = _fields(entry, where)
                yield where, _id(entry, where), {"split": key, **entry}
        else:
            where = f"{path}: study {key}"
            yield where, _name(key, str(path)), _fields(value, where) if isinstance(value, _Pairs) else value


def _json_lines(text: str, path: Path) -> Iterator[tuple[str, str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            entry = _fields(_parsed(line, where), where)
            yield where, _id(entry, where), entry


def _table(text: str, path: Path) -> Iterator[tuple[str, str, Any]]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if len(set(header)) < len(header) or not any(key in header for key in (*ID_KEYS, IMAGE_KEY)):
            wanted = f"a header with a column of ids ({', '.join(ID_KEYS)}), each name once"
            raise ValueError(f"{path}:1: expected {wanted}, got {', '.join(header)[:200] or 'nothing'}")
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(f"{where}: expected {len(header)} fields, as in the header, got {len(cells)}")
            entry = dict(zip(header, cells, strict=True))
            yield where, _id(entry, where), entry
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: expected comma-separated values, got {error}") from error


class _Pairs(list):
    """Keys and values of a JSON object in their order, repeated keys included."""


def _parsed(text: str, where: str) -> Any:
    try:
        # A list of pairs, because a dict forgets a key that comes twice.
        return parse_json(text, _Pairs)
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from error


def _fields(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, _Pairs):
        raise ValueError(f"{where}: expected a JSON object with a study's id and report, got {type(value).__name__}")
    fields = {key.strip().lower(): content for key, content in value}
    if len(fields) < len(value):
        raise ValueError(f"{where}: expected each key once, got {', '.join(key for key, _ in value)[:200]}")
    return fields


def _id(entry: Mapping[str, Any], where: str) -> str:
    key = next((key for key in ID_KEYS if not is_missing(entry.get(key))), None)
    if key is not None:
        return _name(entry[key], where)
    if isinstance(entry.get(IMAGE_KEY), str) and "/" in entry[IMAGE_KEY]:  # train/patient1/study2/view1_frontal.jpg
        return _name("/".join(entry[IMAGE_KEY].split("/")[-3:-1]), where)
    got = ", ".join(entry)[:200]
    raise ValueError(f"{where}: expected an id under one of {', '.join(ID_KEYS)}, got the keys {got}")


def _name(value: Any, where: str) -> str:
    try:
        return id_of(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _report(entry: Any, role: Role, where: str) -> Report:
    if not isinstance(entry, dict):
        return Report(_known(entry, where))
    keys = (*REPORT_KEYS[role], *FINDINGS_KEYS, *IMPRESSION_KEYS)
    if not any(key in entry for key in keys):
        raise ValueError(f"{where}: expected one of the keys {', '.join(keys)}, got {', '.join(entry)[:200] or 'none'}")
    text = _first(entry, REPORT_KEYS[role], where)
    if role == "predictions" and any(key in entry for key in REPORT_KEYS[role][:2]):
        return Report(text)  # sections next to a prediction are the reference's
    findings, impression = _first(entry, FINDINGS_KEYS, where), _first(entry, IMPRESSION_KEYS, where)
    split = entry.get("split")
    return Report(text, findings, impression, split if isinstance(split, str) else None)


def _first(entry: Mapping[str, Any], keys: Iterable[str], where: str) -> str | None:
    return next((_known(entry[key], f"{where}, {key}") for key in keys if key in entry), None)


def _known(value: Any, where: str) -> str | None:
    if is_missing(value):
        return None
    try:
        if not isinstance(value, str):
            raise ValueError(f"expected the text of a report, got {type(value).__name__}")
        return storable(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
