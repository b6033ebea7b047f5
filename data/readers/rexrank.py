"""The JSON of the ReXrank benchmark: IU X-ray, MIMIC-CXR, CheXpert Plus and ReXGradient share it (docs/data.md)."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from radflow.data.readers.records import Record, Texts, Unread, images_inside, official_split
from radflow.data.readers.tables import load_object
from radflow.data.sections import parse_sections
from radflow.data.studies import Study

# The published context has no blank between its fields: "Age:60-70.Gender:F.Indication:CoughComparison: None."
_FIELD = re.compile(r"(?:Age|Gender|Sex|Indication|Comparison|History|Technique|Reason|Race|Ethnicity) ?:")
ABSENT = ("nan", "null", "n/a")
NEEDED = ("image_path", "section_findings", "section_impression")


def read_rexrank(root: Path) -> Iterator[Record | Unread]:
    """Studies of every *.json in the root, image paths from images/ or the root. ValueErrors name file and study."""
    paths = sorted(root.glob("*.json"))
    if not paths:
        raise ValueError(f"expected a ReXrank JSON file in {root}, found none")
    for path in paths:
        for study_id, case in load_object(path, dict).items():
            try:
                yield _record(root, study_id, case, _split_of(path, case))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}: study {study_id}: {error}") from error


def _record(root: Path, study_id: str, case: Mapping[str, Any], split: str) -> Record:
    if missing := [key for key in NEEDED if key not in case]:
        raise ValueError(f"expected the keys {missing}, got {', '.join(case)}")
    context = Texts.of(parse_sections(_FIELD.sub(r"\n\g<0>", _text(case, "context"))))
    context = Texts(*("" if text.lower().strip(". ") in ABSENT else text for text in context))
    texts = context._replace(findings=_text(case, "section_findings"), impression=_text(case, "section_impression"))
    start = "images" if (root / "images").is_dir() else ""
    views = tuple(str(view or "") for view in case.get("frontal_lateral") or ())
    if len(views) != len(case["image_path"]):
        views = ()  # the published files name three views with two images here and there: which is which is unknown
    patient = next((str(case[key]) for key in ("patient_id", "subject_id") if case.get(key)), study_id)
    images = images_inside(root, case["image_path"], start=start)
    return Record(Study(study_id, patient, split, images, *texts, views=views))


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
