"""The native format: one study per line, as JSON (docs/data.md)."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from radflow.data.readers.keys import find_keys, known_values, unknown_keys
from radflow.data.readers.records import (
    SHARES,
    SPLITS,
    Record,
    Texts,
    images_inside,
    official_split,
    read_texts,
    split_of_patient,
)
from radflow.data.readers.tables import escape_control, id_of, is_missing, json_lines, names_of, need
from radflow.data.sections import SectionParser, parse_sections
from radflow.data.studies import Study

COLUMNS = ("id", "patient_id", "split", "images", "views", "prior_images", *Texts._fields, "labels")
ALWAYS = ("id", "patient_id", "split", "images", "findings", "impression")  # written even if empty


def read_manifest(path: Path, *, image_root: Path | None = None, parse: SectionParser = parse_sections) -> list[Study]:
    """Studies in file order, images from `image_root` or the manifest's folder. ValueErrors name file, line and key."""
    studies = [record.study for record in manifest_records(path, image_root=image_root, parse=parse)]
    if not studies:
        raise ValueError(f"{path}: expected one study per line, got an empty file")
    return studies


def manifest_records(
    path: Path, *, image_root: Path | None = None, parse: SectionParser = parse_sections
) -> Iterator[Record]:
    """The lines of a manifest, one at a time; raises as `read_manifest` does.

    Keys that are not read, and studies whose split is not given, are counted and warned of at the end. If no line has a
    split, patients are divided by a hash.
    """
    root, unknown, unsplit = image_root or path.parent, Counter[str](), 0
    divided = any(json_lines(path, lambda row: "split" in known_values(row)))

    def make(row: Mapping[str, Any]) -> Record:
        nonlocal unsplit
        values = known_values(row)
        unknown.update(find_keys(tuple(row)).get("", ()))
        unsplit += "split" not in values
        return _record(values, root, divided, parse)

    yield from json_lines(path, make)
    for said in (_tell_splits(unsplit, divided), _tell_keys(unknown)):
        if said:
            warnings.warn(escape_control(f"{path}: {said}"), stacklevel=2)


def _tell_splits(unsplit: int, divided: bool) -> str:
    if divided:
        return f"{unsplit:,} studies without a split are trained on" if unsplit else ""
    return f"no study has a split; patients are divided {SHARES} into {', '.join(SPLITS)} by a hash of their id"


def _tell_keys(counts: Mapping[str, int]) -> str:
    near = unknown_keys(counts)
    told = [f"{key} ({count:,} times{near[key] and f'; did you mean {near[key]}?'})" for key, count in counts.items()]
    return f"keys that are not read: {', '.join(told)}" if told else ""


def manifest_row(record: Record, root: Path) -> dict[str, Any]:
    """A study as a line of a manifest, image paths relative to the root; what is empty is left out."""
    row = {name: getattr(record.study, name) for name in COLUMNS} | {"date": record.date}
    start = os.path.join(root, "")
    for name in ("images", "prior_images"):
        # Path.relative_to takes several times as long, for each of some hundred thousand images.
        row[name] = [str(path).removeprefix(start) for path in row[name] if isinstance(path, Path)]
    return {key: value for key, value in row.items() if value or key in ALWAYS}


def _record(values: Mapping[str, Any], root: Path, divided: bool, parse: SectionParser) -> Record:
    study_id = id_of(need(values, "id"))
    patient = id_of(values.get("patient_id", study_id))
    texts, ambiguous = read_texts(values, parse)
    images, views = names_of(values, "images"), names_of(values, "views")
    if views and len(views) != len(images):
        raise ValueError(f"key 'views': expected one per image, got {len(views)} for {len(images)} images")
    split = official_split(str(values.get("split", "train"))) if divided else split_of_patient(patient, SHARES)
    paths, prior = images_inside(root, images), images_inside(root, names_of(values, "prior_images"))
    study = Study(study_id, patient, split, paths, *texts, prior, tuple(views), labels=_labels(values))
    return Record(study, id_of(values["date"]) if "date" in values else "", ambiguous)


def _labels(row: Mapping[str, Any]) -> dict[str, int]:
    """{"Edema": 1, "Fracture": -1}, or a list of what is present."""
    value = {} if is_missing(row.get("labels")) else row["labels"]
    if isinstance(value, list | str):
        return dict.fromkeys(names_of(row, "labels"), 1)
    if not isinstance(value, dict) or not all(type(mark) is int and -1 <= mark <= 1 for mark in value.values()):
        raise ValueError(f"key 'labels': expected 1, 0 or -1 (uncertain) by name, or a list of names, got {value!r}")
    return value
