"""ReXGradient-160K: reports in a table a split, image paths and views in a JSON a split, 16-bit PNG (docs/data.md)."""

from collections.abc import Iterator
from pathlib import Path

from data.readers.records import Record, Unread, inside, sections_status
from data.readers.tables import find_table, members, rows
from data.splits import official_split
from data.studies import Study

OFFICIAL = ("train", "valid", "test")
COLUMNS = ("id", "StudyDate", "Indication", "Comparison", "Findings", "Impression")
ABSENT = ("none", "nan", "null", "n/a")


def read_rexgradient(root: Path) -> Iterator[Record | Unread]:
    """Studies of the splits whose tables are in metadata/, in file order.

    `root` holds metadata/{train,valid,test}_metadata.csv, metadata/*_metadata_view_position.json and deid_png/.

    Raises:
        ValueError: no table is there, one lacks a column, or a table lacks its JSON.
    """
    found = [split for split in OFFICIAL if (root / "metadata" / f"{split}_metadata.csv").is_file()]
    if not found:
        raise ValueError(f"expected metadata/train_metadata.csv in {root}, not there; see docs/data.md for the layout")
    for split in found:
        images = _images(root, split)
        table = root / "metadata" / f"{split}_metadata.csv"
        for study_id, date, *texts in rows(table, COLUMNS):
            if study_id not in images:
                yield Unread(study_id, "no entry in the JSON of views")
                continue
            patient, paths, views = images[study_id]
            indication, comparison, findings, impression = map(_present, texts)
            study = Study(
                id=study_id,
                patient_id=patient,
                split=official_split(split),
                # Paths are written as seen from metadata/: ../deid_png/...
                images=tuple(inside(root, path, start="metadata") for path in paths),
                views=views,
                findings=findings,
                impression=impression,
                indication=indication,
                comparison=comparison,
            )
            yield Record(study, sections_status(findings, impression), date=date)


def _images(root: Path, split: str) -> dict[str, tuple[str, list[str], tuple[str, ...]]]:
    """Study -> patient, paths and views of its images."""
    path = find_table(root / "metadata", f"{split}_metadata_view_position.json")
    found = {}
    for study_id, entry in members(path):
        if missing := [key for key in ("PatientID", "ImagePath", "ImageViewPosition") if key not in entry]:
            raise ValueError(f"{path}: study {study_id}: expected the keys {missing}, got {', '.join(entry)}")
        paths = list(entry["ImagePath"])
        views = [_present(str(view)) for view in entry["ImageViewPosition"] or []]
        views += [""] * (len(paths) - len(views))
        found[study_id] = (str(entry["PatientID"]), paths, tuple(views[: len(paths)]))
    return found


def _present(text: str) -> str:
    """A field of the files; the words they hold for an absent value are none ("None." is a radiologist's)."""
    text = text.strip()
    return "" if text.lower() in ABSENT else text
