"""CheXpert Plus: one table with a row an image and the report's sections in columns (docs/data.md)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data.readers.records import Record, Unread, inside, sections_status
from data.readers.tables import find_table, rows
from data.splits import official_split
from data.studies import Study

TABLE = "df_chexpert_plus_240401.csv"
COLUMNS = (
    "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order", "split",
    "section_findings", "section_impression", "section_clinical_history", "section_history", "section_comparison",
)  # fmt: skip
# (folder, ending) of the released images, seen from the folder of the table; the first that is there is taken.
LAYOUTS = (("PNG", ".png"), ("PNG/PNG", ".png"), ("", ".png"), ("", ".jpg"), ("DICOM/Uncompressed", ".dcm"))


@dataclass
class _Entry:
    """What the rows of one study say."""

    patient: str
    order: str
    split: str
    texts: tuple[str, ...]  # findings, impression, clinical history, history, comparison
    images: list[tuple[str, str]] = field(default_factory=list)  # (path without ending, view)


def read_chexpert_plus(root: Path) -> Iterator[Record | Unread]:
    """Studies in the order of their first image in the table. Rows of a study stand apart, so that all are held.

    Three of four reports have no Findings section; they come with empty Findings.

    Raises:
        ValueError: the table is missing or lacks a column.
    """
    studies: dict[str, _Entry] = {}
    for path, _, side, position, patient, order, split, *texts in rows(find_table(root, TABLE), COLUMNS):
        stem = path.rpartition(".")[0] or path
        key = stem.rpartition("/")[0]
        if key not in studies:
            studies[key] = _Entry(patient, order, split, tuple(text.strip() for text in texts))
        studies[key].images.append((stem, position if side == "Frontal" and position else side))
    folder, ending = _layout(root, studies)
    for key, entry in studies.items():
        findings, impression, clinical, history, comparison = entry.texts
        study = Study(
            id=key.partition("/")[2].replace("/", "_"),  # train/patient00001/study1 -> patient00001_study1
            patient_id=entry.patient,
            split=official_split(entry.split),
            images=tuple(inside(root, f"{stem}{ending}", start=folder) for stem, _ in entry.images),
            views=tuple(view for _, view in entry.images),
            findings=findings,
            impression=impression,
            indication=clinical or history,
            comparison=comparison,
        )
        yield Record(study, sections_status(findings, impression), date=f"{_number(entry.order):06d}")


def _number(order: str) -> int:
    """The place of a report among its patient's: 1, 2, ... or, from tables saved again, 1.0."""
    return int(float(order))


def _layout(root: Path, studies: dict[str, _Entry]) -> tuple[str, str]:
    stems = [stem for entry in list(studies.values())[:20] for stem, _ in entry.images]
    for folder, ending in LAYOUTS:
        if any((root / folder / f"{stem}{ending}").is_file() for stem in stems):
            return folder, ending
    return LAYOUTS[0]
