"""The native format: one study a line, as JSON (docs/data.md)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.studies import Study

TEXTS = ("findings", "impression", "indication", "comparison")


def read_manifest(path: Path, *, image_root: Path | None = None) -> list[Study]:
    """Studies of a JSONL manifest, in file order.

    Args:
        image_root: folder that image paths start from; the manifest's own by default.

    Raises:
        ValueError: names file, line and key of what is wrong.
    """
    root = path.parent if image_root is None else image_root
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a JSONL manifest in UTF-8, got {error}") from error
    studies = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                studies.append(_study(json.loads(line), root))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    if not studies:
        raise ValueError(f"{path}: expected one study a line, got an empty file")
    return studies


def _study(row: Any, root: Path) -> Study:
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    study_id = str(_need(row, "id"))
    texts = {name: _text(row, name) for name in TEXTS}
    # null counts as absent, or every study without a patient would belong to the patient "None"
    known = [row[key] for key in ("patient_id", "uid") if row.get(key) not in (None, "")]
    patient = known[0] if known else study_id
    return Study(
        id=study_id,
        patient_id=str(patient),
        split=str(row.get("split") or "train"),
        images=tuple(root / name for name in _names(row, "images")),
        prior_images=tuple(root / name for name in _names(row, "prior_images")),
        views=tuple(_names(row, "views")),
        **texts,
    )


def _need(row: Mapping[str, Any], key: str) -> Any:
    if row.get(key) in (None, ""):
        raise ValueError(f"key {key!r} is missing; the study has the keys {', '.join(map(str, row))}")
    return row[key]


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key) or ""
    if not isinstance(value, str):
        raise ValueError(f"key {key!r}: expected text, got {type(value).__name__}")
    return value


def _names(row: Mapping[str, Any], key: str) -> list[str]:
    value = row.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"key {key!r}: expected a list of names, got {value!r}")
    return value
