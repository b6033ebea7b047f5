"""The native format: one study a line, as JSON (docs/data.md)."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.readers.records import Record, Unread, inside, sections_status
from data.splits import SPLITS
from data.studies import Study

TEXTS = ("findings", "impression", "indication", "comparison")
NAME = "manifest.jsonl"


def read_manifest(path: Path, *, image_root: Path | None = None) -> list[Study]:
    """Studies of a JSONL manifest, in file order.

    Args:
        image_root: folder that image paths start from; the manifest's own by default.

    Raises:
        ValueError: names file, line and key of what is wrong.
    """
    studies = [record.study for record in manifest_records(path, image_root=image_root)]
    if not studies:
        raise ValueError(f"{path}: expected one study a line, got an empty file")
    return studies


def read_native(root: Path) -> Iterator[Record | Unread]:
    """Studies of manifest.jsonl in the root, to be checked and written anew."""
    return manifest_records(root / NAME)


def manifest_records(path: Path, *, image_root: Path | None = None) -> Iterator[Record]:
    """The lines of a manifest, one at a time; raises as `read_manifest` does."""
    root = path.parent if image_root is None else image_root
    for number, line in lines_of(path):
        try:
            yield _record(json.loads(line), root)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number}: {error}") from error


def manifest_row(record: Record, root: Path) -> dict[str, object]:
    """A study as a line of a manifest, image paths seen from the root; what is empty is left out."""
    study = record.study
    row = {
        "id": study.id,
        "patient_id": study.patient_id,
        "split": study.split,
        "images": [str(path.relative_to(root)) for path in study.images],
        "views": list(study.views),
        "prior_images": [str(path.relative_to(root)) for path in study.prior_images],
        **{name: getattr(study, name) for name in TEXTS},
        "labels": dict(study.labels),
        "date": record.date,
    }
    always = ("id", "patient_id", "split", "images", "findings", "impression")
    return {key: value for key, value in row.items() if value or key in always}


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers and contents of the lines that are not blank.

    Raises:
        ValueError: no file, or not in UTF-8.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a JSONL manifest in UTF-8, got {error}") from error


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


def _record(row: Any, root: Path) -> Record:
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    study_id = str(need(row, "id"))
    texts = {name: text_of(row, name) for name in TEXTS}
    # null counts as absent, or every study without a patient would belong to the patient "None"
    known = [row[key] for key in ("patient_id", "uid") if row.get(key) not in (None, "")]
    images, views = names_of(row, "images"), names_of(row, "views")
    if views and len(views) != len(images):
        raise ValueError(f"key 'views': expected one an image, got {len(views)} for {len(images)} images")
    split = str(row.get("split") or "train")
    if split not in SPLITS:
        raise ValueError(f"key 'split': expected one of {', '.join(SPLITS)}, got {split!r}")
    study = Study(
        id=study_id,
        patient_id=str(known[0] if known else study_id),
        split=split,
        images=tuple(inside(root, name) for name in images),
        prior_images=tuple(inside(root, name) for name in names_of(row, "prior_images")),
        views=tuple(views),
        labels=_labels(row),
        **texts,
    )
    return Record(study, sections_status(study.findings, study.impression), date=text_of(row, "date"))


def _labels(row: Mapping[str, Any]) -> dict[str, int]:
    """{"Edema": 1, "Fracture": -1}, or a list of what is present."""
    value = row.get("labels") or {}
    if isinstance(value, list):
        return dict.fromkeys(names_of(row, "labels"), 1)
    if not isinstance(value, dict) or not all(type(mark) is int and -1 <= mark <= 1 for mark in value.values()):
        raise ValueError(f"key 'labels': expected 1, 0 or -1 (uncertain) by name, or a list of names, got {value!r}")
    return value
