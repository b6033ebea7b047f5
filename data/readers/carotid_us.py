"""CarotidUS-MRG is private; whoever has it, or the like, writes one JSON line per study in this form (docs/data.md)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from radflow.data.readers.records import Record, Unread, images_inside, read_texts, split_of_patient
from radflow.data.readers.tables import id_of, json_lines, names_of, need, text_of
from radflow.data.sections import SectionParser, parse_sections
from radflow.data.studies import Study

NAME = "carotid_us.jsonl"
SHARES = (70, 15, 15)  # the paper's, by patient
MODES = ("b-mode", "color-doppler", "spectral-doppler", "power-doppler")


def read_carotid_us(root: Path, parse: SectionParser = parse_sections) -> Iterator[Record | Unread]:
    """Studies of carotid_us.jsonl in the root, split by a hash of the patient. ValueErrors name file, line and key."""
    return json_lines(root / NAME, lambda row: _record(root, row, parse))


def _record(root: Path, row: Mapping[str, Any], parse: SectionParser) -> Record:
    images = [_image(item) for item in row.get("images") or []]
    name, patient = id_of(need(row, "id")), id_of(need(row, "patient_id"))
    texts, ambiguous = read_texts(row, parse)
    split = split_of_patient(patient, SHARES)
    paths, views = images_inside(root, (path for path, _ in images)), tuple(mode for _, mode in images)
    labels = dict.fromkeys(names_of(row, "keywords"), 1)
    study = Study(name, patient, split, paths, *texts, views=views, labels=labels)
    return Record(study, text_of(row, "date"), ambiguous)


def _image(item: Any) -> tuple[str, str]:
    if not isinstance(item, dict) or not isinstance(item.get("path"), str) or item.get("mode") not in MODES:
        wanted = f"objects with a path and a mode among {', '.join(MODES)}"
        raise ValueError(f"key 'images': expected {wanted}, got {item!r}")
    return item["path"], item["mode"]
