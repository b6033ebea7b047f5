"""The JSON of the ReXrank benchmark: IU X-ray, MIMIC-CXR, CheXpert Plus and ReXGradient share it (docs/data.md)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.readers.records import Record, Unread, inside, sections_status
from data.readers.tables import load_json
from data.sections import parse_sections
from data.splits import official_split
from data.studies import Study

NEEDED = ("image_path", "section_findings", "section_impression")


def read_rexrank(root: Path) -> Iterator[Record | Unread]:
    """Studies of every *.json in the root, in file order. Image paths start from images/, or from the root.

    Raises:
        ValueError: a file is no ReXrank JSON; names file and study.
    """
    paths = sorted(root.glob("*.json"))
    if not paths:
        raise ValueError(f"expected a ReXrank JSON file in {root}, found none")
    for path in paths:
        content = load_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected an object of studies by id, got {type(content).__name__}")
        for study_id, case in content.items():
            try:
                yield _record(root, study_id, case, _split_of(path, case))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}: study {study_id}: {error}") from error


def _record(root: Path, study_id: str, case: Mapping[str, Any], split: str) -> Record:
    if missing := [key for key in NEEDED if key not in case]:
        raise ValueError(f"expected the keys {missing}, got {', '.join(case)}")
    context = parse_sections(_text(case, "context")).other
    findings, impression = _text(case, "section_findings"), _text(case, "section_impression")
    start = "images" if (root / "images").is_dir() else ""
    views = tuple(str(view or "") for view in case.get("frontal_lateral") or ())
    if len(views) != len(case["image_path"]):
        views = ()  # the published files name three views beside two images here and there: which is which is unknown
    patient = next((str(case[key]) for key in ("patient_id", "subject_id") if case.get(key)), study_id)
    study = Study(
        id=study_id,
        patient_id=patient,
        split=split,
        images=tuple(inside(root, name, start=start) for name in case["image_path"]),
        views=views,
        findings=findings,
        impression=impression,
        indication=context.get("indication", ""),
        comparison=context.get("comparison", ""),
    )
    return Record(study, sections_status(findings, impression))


def _text(case: Mapping[str, Any], key: str) -> str:
    """A text of the file; null, NaN and the "None" that the benchmark writes for a missing section are none."""
    value = case.get(key)
    if value is None or value == "None" or isinstance(value, float):
        return ""
    if not isinstance(value, str):
        raise ValueError(f"key {key!r}: expected text, got {type(value).__name__}")
    return value.strip()


def _split_of(path: Path, case: Mapping[str, Any]) -> str:
    """The split that a study names; without one, that of the file's name, and test where that says none."""
    if case.get("split"):
        return official_split(str(case["split"]))
    words = path.stem.lower().replace("-", "_").split("_")
    return next((official_split(word) for word in words if word in ("train", "val", "valid", "test")), "test")
