"""The native format: one study per line, as JSON (docs/data.md)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from radflow.data.readers.records import SPLITS, Record, Texts, images_inside
from radflow.data.readers.tables import json_lines, names_of, need, text_of
from radflow.data.studies import Study

COLUMNS = ("id", "patient_id", "split", "images", "views", "prior_images", *Texts._fields, "labels")
ALWAYS = ("id", "patient_id", "split", "images", "findings", "impression")  # written even if empty


def read_manifest(path: Path, *, image_root: Path | None = None) -> list[Study]:
    """Studies in file order, images from `image_root` or the manifest's folder. ValueErrors name file, line and key."""
    studies = [record.study for record in manifest_records(path, image_root=image_root)]
    if not studies:
        raise ValueError(f"{path}: expected one study per line, got an empty file")
    return studies


def manifest_records(path: Path, *, image_root: Path | None = None) -> Iterator[Record]:
    """The lines of a manifest, one at a time; raises as `read_manifest` does."""
    return json_lines(path, lambda row: _record(row, image_root or path.parent))


def manifest_row(record: Record, root: Path) -> dict[str, Any]:
    """A study as a line of a manifest, image paths relative to the root; what is empty is left out."""
    row = {name: getattr(record.study, name) for name in COLUMNS} | {"date": record.date}
    for name in ("images", "prior_images"):
        row[name] = [str(path.relative_to(root)) for path in row[name] if isinstance(path, Path)]
    return {key: value for key, value in row.items() if value or key in ALWAYS}


def _record(row: Mapping[str, Any], root: Path) -> Record:
    study_id = str(need(row, "id"))
    texts = Texts(*(text_of(row, name) for name in Texts._fields))
    # null counts as absent, or every study without a patient would belong to the patient "None"
    known = [row[key] for key in ("patient_id", "uid") if row.get(key) not in (None, "")]
    images, views = names_of(row, "images"), names_of(row, "views")
    if views and len(views) != len(images):
        raise ValueError(f"key 'views': expected one per image, got {len(views)} for {len(images)} images")
    split = str(row.get("split") or "train")
    if split not in SPLITS:
        raise ValueError(f"key 'split': expected one of {', '.join(SPLITS)}, got {split!r}")
    patient = str(known[0] if known else study_id)
    paths, prior = images_inside(root, images), images_inside(root, names_of(row, "prior_images"))
    study = Study(study_id, patient, split, paths, *texts, prior, tuple(views), labels=_labels(row))
    return Record(study, text_of(row, "date"))


def _labels(row: Mapping[str, Any]) -> dict[str, int]:
    """{"Edema": 1, "Fracture": -1}, or a list of what is present."""
    value = row.get("labels") or {}
    if isinstance(value, list):
        return dict.fromkeys(names_of(row, "labels"), 1)
    if not isinstance(value, dict) or not all(type(mark) is int and -1 <= mark <= 1 for mark in value.values()):
        raise ValueError(f"key 'labels': expected 1, 0 or -1 (uncertain) by name, or a list of names, got {value!r}")
    return value
