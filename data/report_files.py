"""Files of reports, as people and leaderboards write them: JSON, JSON lines, tables, lines or folders of text.

One file holds predictions or references. Nothing in it is dropped silently: what cannot be a report is an error that
names the study or the line, what is missing (null, NaN, an empty field) is kept as missing, and what was guessed or
left out is a note.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from radflow.data.readers.keys import find_keys
from radflow.data.readers.system_outputs import RADFM_COLUMNS, radfm_entries
from radflow.data.readers.tables import (
    LONGEST_FIELD,
    delimiter_of,
    escape_control,
    id_of,
    is_missing,
    parse_json,
    storable,
)

Role = Literal["predictions", "references"]

ID_KEYS = ("study_id", "id", "study", "uid", "case_id")  # and other spellings of these, then those of COCO and DICOM
IMAGE_IDS = ("image_id", "dicom_id")
IMAGE_KEY = "path_to_image"  # CheXpert Plus names a study by the folder of its images only
FINDINGS_KEYS = ("section_findings", "findings")
IMPRESSION_KEYS = ("section_impression", "impression")
# A file of predictions may also hold the reference (ReXrank's does, under "report"): its own key comes first.
REPORT_KEYS: Mapping[Role, tuple[str, ...]] = {
    "predictions": ("model_prediction", "prediction", "report", "text", "caption"),
    "references": ("report", "reference", "text", "caption"),
}
TEXT_KEYS = {*REPORT_KEYS["predictions"], *REPORT_KEYS["references"], *FINDINGS_KEYS, *IMPRESSION_KEYS}
SPLITS = ("train", "val", "valid", "validation", "test")
REPEATED = "rows repeat the report of their study and count once"
OTHER_REPORT = "rows have another report than the first row of their study, and are left out"
COCO_KEYS = {"annotations", "images", "info", "licenses", "type"}
_CHEXPERT = re.compile(r"(?:.*/)?(patient\d+)/(study\d+)")
BLANK_ROWS = "empty rows are left out"


@dataclass(frozen=True)
class Report:
    """One report as the file has it; None for what is missing."""

    text: str | None  # the whole report
    findings: str | None = None  # if the file gives the sections apart
    impression: str | None = None
    split: str | None = None
    reference: str | None = field(default=None, compare=False)  # of a prediction, if its file holds that too

    @property
    def divided(self) -> bool:
        """Whether the file gives a section apart."""
        return self.findings is not None or self.impression is not None


@dataclass(frozen=True, eq=False)
class ReportFile(Mapping[str, Report]):
    """Reports by study id, in the order of their file, and how it was read."""

    reports: Mapping[str, Report]
    notes: tuple[str, ...] = ()  # what was guessed or left out
    numbered: bool = False  # the file has no ids: these are the numbers of its rows, from 1
    shuffled: bool = False  # the order of its rows means nothing

    def __getitem__(self, study_id: str) -> Report:
        return self.reports[study_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.reports)

    def __len__(self) -> int:
        return len(self.reports)


class _Row(NamedTuple):
    where: str  # file and line or study
    name: str | None  # id; None if the row has none, "" if the row is blank
    entry: Any


def read_report_file(path: Path, role: Role) -> ReportFile:
    """Reports of a file or folder, by study id, in its order.

    A `.json` is an object of id -> report (a text, a list of one text, or an object with the keys of ReXrank), a list
    of reports, R2Gen's object of split -> list of studies, or COCO's annotations. `.jsonl` and `.txt` have one report
    per line, `.csv` and `.tsv` a header, a folder one text file per study, named after it. Names of columns and keys
    are those of ReXrank, MIMIC-CXR, IU X-ray, CheXpert Plus, ReXGradient, COCO and RadFM, in any case.

    An id that comes again with the same text (one row for each image of a study) counts once. Of a study of CheXpert
    Plus whose rows have different reports the first one counts, as in `readers.chexpert_plus`. Without any id the rows
    are numbered, and a blank row is an empty report.

    Raises ValueError, with file and line or study, if it is unreadable, not UTF-8, of another form, without any study,
    has ids in some rows only, or two different reports for one id.
    """
    rows = list(_rows(path))
    if not any(row.name != "" for row in rows):
        raise ValueError(escape_control(f"{path}: expected reports by study id, got none"))
    numbered = all(not row.name for row in rows)
    reports: dict[str, Report] = {}
    counts: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        name = str(number) if numbered else row.name
        if name == "":
            counts[BLANK_ROWS] += 1
            continue
        if name is None:
            got = ", ".join(row.entry)[:200] if isinstance(row.entry, dict) else type(row.entry).__name__
            raise _fault(row.where, f"expected an id under one of {', '.join(ID_KEYS)}, as other rows have, got {got}")
        report = _report(row.entry, role, row.where)
        if name not in reports:
            reports[name] = report
        elif reports[name] == report:
            counts[REPEATED] += 1
        elif isinstance(row.entry, dict) and IMAGE_KEY in row.entry:
            counts[OTHER_REPORT] += 1
        else:
            raise _fault(row.where, f"study {name} has two different reports in this file; keep one")
    notes = [f"{path.name}: {count} {what}" for what, count in counts.items()]
    shuffled = any(isinstance(row.entry, dict) and row.entry.keys() >= RADFM_COLUMNS for row in rows)
    return ReportFile(reports, (*_numbering(path, rows, numbered), *notes), numbered, shuffled)


def _numbering(path: Path, rows: list[_Row], numbered: bool) -> list[str]:
    """The note on a file without ids."""
    keys = next((", ".join(row.entry)[:200] for row in rows if isinstance(row.entry, dict)), "")
    among = f" among {keys}" if keys else ""
    return [f"{path.name}: no id{among}; its {len(rows)} rows are numbered and paired in order"] if numbered else []


def _rows(path: Path) -> Iterator[_Row]:
    """Each entry of the file, blank rows included."""
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() not in _FORMS:
        wanted = "a .json, .jsonl, .csv, .tsv or .txt file or a folder of .txt files"
        raise _fault(str(path), f"expected {wanted}, got {path.suffix or 'a name without ending'}")
    return _FORMS[path.suffix.lower()](_decoded(path), path)


def _decoded(path: Path) -> str:
    """Text of a file in UTF-8, with or without a byte order mark."""
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise _fault(str(path), f"cannot be read ({error.strerror}); correct the path") from error
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise _fault(f"{path}:{line}", f"expected UTF-8, got the byte {byte:#04x}; save the file as UTF-8") from error


def _folder(path: Path) -> Iterator[_Row]:
    for file in sorted(path.rglob("*.txt")):
        yield _Row(str(file), file.stem, _decoded(file))


def _lines(text: str, path: Path) -> Iterator[_Row]:
    lines = re.split(r"\r\n|\r|\n", text)
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        yield _Row(f"{path}:{number}", None if line.strip() else "", line)


def _json(text: str, path: Path) -> Iterator[_Row]:
    loaded = _parsed(text, str(path))
    if isinstance(loaded, _Pairs):
        keys = [key for key, _ in loaded]
        if "annotations" not in keys or len({*keys}) < len(keys) or not COCO_KEYS.issuperset(keys):
            return _json_object(loaded, path)
        loaded = dict(loaded)["annotations"]
    if isinstance(loaded, list) and not isinstance(loaded, _Pairs):
        return (_row(entry, f"{path}: [{number}]") for number, entry in enumerate(loaded))
    raise _fault(str(path), f"expected a JSON object of study id -> report or a list, got {type(loaded).__name__}")


def _json_object(pairs: "_Pairs", path: Path) -> Iterator[_Row]:
    for key, value in pairs:
        studies = isinstance(value, list) and all(isinstance(entry, _Pairs) for entry in value)
        if studies and not isinstance(value, _Pairs) and key in SPLITS:  # R2Gen's annotation file
            for number, entry in enumerate(value):
                where = f"{path}: {key}[{number}]"
                row = _row(entry, where)
                yield row._replace(entry={"split": key, **row.entry})
        else:
            where = f"{path}: study {key:.100}"
            yield _Row(where, _name(key, str(path)), value)


def _json_lines(text: str, path: Path) -> Iterator[_Row]:
    for number, line in enumerate(text.rstrip("\r\n").split("\n"), 1):
        where = f"{path}:{number}"
        yield _row(_parsed(line, where), where) if line.strip() else _Row(where, "", None)


def _row(entry: Any, where: str) -> _Row:
    """An entry of a list: an object with a report and perhaps an id, or a text."""
    if not isinstance(entry, _Pairs):
        return _Row(where, None, entry)
    fields = _fields(entry, where)
    return _Row(where, _id(fields, where), fields)


def _table(text: str, path: Path) -> Iterator[_Row]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text.rstrip("\r\n"), newline=""), delimiter=delimiter_of(text), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        radfm = RADFM_COLUMNS.issubset(header)
        if len(set(header)) < len(header) or not (radfm or TEXT_KEYS.intersection(header)):
            wanted = "a header with a column of reports (report, or findings and impression), each name once"
            raise _fault(f"{path}:1", f"expected {wanted}, got {', '.join(header)[:200] or 'nothing'}")
        for row, cells in enumerate(reader, 1):
            where = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                yield _Row(where, "", None)
                continue
            if len(cells) != len(header):
                raise _fault(where, f"expected {len(header)} fields, as in the header, got {len(cells)}")
            entry = dict(zip(header, cells, strict=True))
            if radfm:
                yield from _radfm(entry, row, where)
            else:
                yield _Row(where, _id(entry, where), entry)
    except csv.Error as error:
        raise _fault(f"{path}:{reader.line_num}", f"expected comma-separated values, got {error}") from error


def _radfm(entry: Mapping[str, str], row: int, where: str) -> list[_Row]:
    try:
        return [_Row(where, id_of(name), {**entry, **found}) for name, found in radfm_entries(entry, row)]
    except ValueError as error:
        raise _fault(where, str(error)) from error


_Form = Callable[[str, Path], Iterator[_Row]]
_FORMS: Mapping[str, _Form] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _table,
    ".tsv": _table,
    ".txt": _lines,
}


class _Pairs(list):
    """Keys and values of a JSON object in their order, repeated keys included."""


def _parsed(text: str, where: str) -> Any:
    try:
        # A list of pairs, because a dict forgets a key that comes twice.
        return parse_json(text, _Pairs)
    except ValueError as error:
        raise _fault(where, f"expected JSON, got {error}") from error


def _fields(pairs: "_Pairs", where: str) -> dict[str, Any]:
    fields = {key.strip().lower(): content for key, content in pairs}
    if len(fields) < len(pairs):
        raise _fault(where, f"expected each key once, got {', '.join(key for key, _ in pairs)[:200]}")
    return fields


def _id(entry: Mapping[str, Any], where: str) -> str | None:
    """The id of a row; None if it has no key of ids."""
    keys = [key for key in (*ID_KEYS, *find_keys(tuple(entry)).get("id", ()), *IMAGE_IDS) if key in entry]
    for key in keys:
        if not is_missing(entry[key]):
            return _name(entry[key], where)
    if not is_missing(entry.get(IMAGE_KEY)):
        path = _name(entry[IMAGE_KEY], where)
        return _name(path.rpartition("/")[0] or path, where)
    if keys or IMAGE_KEY in entry:
        raise _fault(where, f"expected an id, got an empty one under {', '.join(keys or [IMAGE_KEY])}")
    return None


def _name(value: Any, where: str) -> str:
    """An id; a study of CheXpert is patient1_study2, as in manifests, if it comes as train/patient1/study2."""
    try:
        name = id_of(value)
    except ValueError as error:
        raise _fault(where, str(error)) from error
    folders = _CHEXPERT.fullmatch(name)
    return "_".join(folders.groups()) if folders else name


def _report(entry: Any, role: Role, where: str) -> Report:
    entry = _only(entry, where)
    if isinstance(entry, _Pairs):
        entry = _fields(entry, where)
    if not isinstance(entry, dict):
        return Report(_known(entry, where))
    keys = (*REPORT_KEYS[role], *FINDINGS_KEYS, *IMPRESSION_KEYS)
    if not any(key in entry for key in keys):
        raise _fault(where, f"expected one of the keys {', '.join(keys)}, got {', '.join(entry)[:200] or 'none'}")
    text = _first(entry, REPORT_KEYS[role], where)
    if role == "predictions" and any(key in entry for key in REPORT_KEYS[role][:2]):
        # Sections next to a prediction are the reference's.
        return Report(text, reference=_first(entry, REPORT_KEYS["references"][:2], where))
    findings, impression = _first(entry, FINDINGS_KEYS, where), _first(entry, IMPRESSION_KEYS, where)
    split = entry.get("split")
    return Report(text, findings, impression, split if isinstance(split, str) else None)


def _first(entry: Mapping[str, Any], keys: Iterable[str], where: str) -> str | None:
    return next((_known(_only(entry[key], where), f"{where}, {key}") for key in keys if key in entry), None)


def _only(value: Any, where: str) -> Any:
    """What a list of one holds, as COCO writes a text; the value itself if it is no list, None of an empty list."""
    if not isinstance(value, list) or isinstance(value, _Pairs):
        return value
    if len(value) > 1:
        only = "only BLEU, METEOR and CIDEr are defined over several references, and none here uses more than one"
        raise _fault(where, f"expected one text, got a list of {len(value)}; {only}: keep one")
    return value[0] if value else None


def _known(value: Any, where: str) -> str | None:
    if is_missing(value):
        return None
    try:
        if not isinstance(value, str):
            kind = "object" if isinstance(value, _Pairs) else type(value).__name__
            raise ValueError(f"expected the text of a report, got {kind}")
        return storable(value)
    except ValueError as error:
        raise _fault(where, str(error)) from error


def _fault(where: str, said: str) -> ValueError:
    """An error of one line, whatever the file holds."""
    return ValueError(escape_control(f"{where}: {said}"))
