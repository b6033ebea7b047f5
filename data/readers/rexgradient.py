"""ReXGradient-160K: one table of reports and one JSON of image paths and views per split, 16-bit PNG (docs/data.md)."""

from collections.abc import Iterator
from pathlib import Path

from radflow.data.readers.records import Record, Texts, Unread, images_inside, official_split
from radflow.data.readers.tables import find_table, load_object, rows
from radflow.data.studies import Study

OFFICIAL = ("train", "valid", "test")
COLUMNS = ("id", "StudyDate", "Findings", "Impression", "Indication", "Comparison")  # the last four are Texts
ABSENT = ("none", "nan", "null", "n/a")


def read_rexgradient(root: Path) -> Iterator[Record | Unread]:
    """Studies of the splits whose tables are in metadata/, in file order.

    `root` holds metadata/{train,valid,test}_metadata.csv, metadata/*_metadata_view_position.json and deid_png/. Raises
    ValueError if no table is there, one lacks a column, or a table lacks its JSON.
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
            patient, names, views = images[study_id]
            # Paths are relative to metadata/: ../deid_png/...
            paths, known = images_inside(root, names, start="metadata"), Texts(*map(_present, texts))
            yield Record(Study(study_id, patient, official_split(split), paths, *known, views=views), date)


def _images(root: Path, split: str) -> dict[str, tuple[str, list[str], tuple[str, ...]]]:
    """Study -> patient, paths and views of its images."""
    path = find_table(root / "metadata", f"{split}_metadata_view_position.json")
    found = {}
    for study_id, entry in load_object(path, dict).items():
        if missing := [key for key in ("PatientID", "ImagePath", "ImageViewPosition") if key not in entry]:
            raise ValueError(f"{path}: study {study_id}: expected the keys {missing}, got {', '.join(entry)}")
        paths = list(entry["ImagePath"])
        views = (*(_present(str(view)) for view in entry["ImageViewPosition"] or []), *[""] * len(paths))
        found[study_id] = (str(entry["PatientID"]), paths, views[: len(paths)])
    return found


def _present(text: str) -> str:
    """A field of the files; the words they hold for an absent value are none ("None." is a radiologist's)."""
    text = text.strip()
    return "" if text.lower() in ABSENT else text
