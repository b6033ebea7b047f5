"""CarotidUS-MRG is private; whoever has it, or the like, writes one JSON line a study in this form (docs/data.md)."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.readers.manifest import lines_of, names_of, need, text_of
from data.readers.records import Record, Unread, inside, sections_status
from data.sections import parse_sections
from data.splits import split_of_patient
from data.studies import Study

NAME = "carotid_us.jsonl"
SHARES = (70, 15, 15)  # the paper's, by patient
MODES = ("b-mode", "color-doppler", "spectral-doppler", "power-doppler")


def read_carotid_us(root: Path) -> Iterator[Record | Unread]:
    """Studies of carotid_us.jsonl in the root. The split is decided by a hash of the patient.

    Raises:
        ValueError: names file, line and key of what is wrong.
    """
    path = root / NAME
    for number, line in lines_of(path):
        try:
            yield _record(root, json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number}: {error}") from error


def _record(root: Path, row: Any) -> Record:
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    images = [_image(item) for item in row.get("images") or []]
    patient = str(need(row, "patient_id"))
    findings, impression, other = text_of(row, "findings"), text_of(row, "impression"), {}
    status = sections_status(findings, impression)
    if "report" in row:
        if findings or impression:
            raise ValueError("expected either report or findings and impression, got both; remove one")
        sections = parse_sections(text_of(row, "report"))
        findings, impression, status, other = sections.findings, sections.impression, sections.status, sections.other
    study = Study(
        id=str(need(row, "id")),
        patient_id=patient,
        split=split_of_patient(patient, SHARES),
        images=tuple(inside(root, name) for name, _ in images),
        views=tuple(mode for _, mode in images),
        findings=findings,
        impression=impression,
        indication=text_of(row, "indication") or other.get("indication", ""),
        comparison=text_of(row, "comparison") or other.get("comparison", ""),
        labels=dict.fromkeys(names_of(row, "keywords"), 1),
    )
    return Record(study, status, date=text_of(row, "date"))


def _image(item: Mapping[str, Any]) -> tuple[str, str]:
    if not isinstance(item, dict) or not isinstance(item.get("path"), str) or item.get("mode") not in MODES:
        raise ValueError(
            f"key 'images': expected objects with a path and a mode among {', '.join(MODES)}, got {item!r}"
        )
    return item["path"], item["mode"]
