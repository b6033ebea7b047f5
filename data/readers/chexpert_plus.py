"""CheXpert Plus: one table with a row per image and the report's sections in columns (docs/data.md)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from radflow.data.readers.records import Record, Texts, Unread, images_inside, official_split
from radflow.data.readers.tables import find_table, rows
from radflow.data.studies import Study

TABLE = "df_chexpert_plus_240401.csv"
IMAGE_COLUMNS = ("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa")
STUDY_COLUMNS = ("deid_patient_id", "patient_report_date_order", "split")
SECTIONS = ("findings", "impression", "clinical_history", "history", "comparison")
COLUMNS = (*IMAGE_COLUMNS, *STUDY_COLUMNS, *(f"section_{name}" for name in SECTIONS))
# (folder, ending) of the released images, relative to the folder of the table; the first that is there is taken.
LAYOUTS = (("PNG", ".png"), ("PNG/PNG", ".png"), ("", ".png"), ("", ".jpg"), ("DICOM/Uncompressed", ".dcm"))


def read_chexpert_plus(root: Path) -> Iterator[Record | Unread]:
    """Studies in the order of their first image in the table.

    All are held in memory, since the rows of a study need not be adjacent. Three of four reports have no Findings
    section; they come with empty Findings. Raises ValueError if the table is missing or lacks a column.
    """
    studies: dict[str, tuple[str, str, str, Texts]] = {}
    images: dict[str, list[tuple[str, str]]] = defaultdict(list)  # (path without ending, view)
    for path, _, side, position, patient, order, split, *texts in rows(find_table(root, TABLE), COLUMNS):
        stem = path.rpartition(".")[0] or path
        key = stem.rpartition("/")[0]
        if key not in studies:
            findings, impression, clinical, history, comparison = map(str.strip, texts)
            studies[key] = (patient, order, split, Texts(findings, impression, clinical or history, comparison))
        images[key].append((stem, position if side == "Frontal" and position else side))
    folder, ending = _layout(root, [stem for key in list(studies)[:20] for stem, _ in images[key]])
    for key, (patient, order, split, known) in studies.items():
        name = key.partition("/")[2].replace("/", "_")  # train/patient00001/study1 -> patient00001_study1
        paths = images_inside(root, (stem + ending for stem, _ in images[key]), start=folder)
        views = tuple(view for _, view in images[key])
        study = Study(name, patient, official_split(split), paths, *known, views=views)
        yield Record(study, f"{int(float(order)):06d}")  # 1, 2, ... or, from tables saved again, 1.0


def _layout(root: Path, stems: Sequence[str]) -> tuple[str, str]:
    """The first of `LAYOUTS` with one of these images."""
    for folder, ending in LAYOUTS:
        if any((root / folder / f"{stem}{ending}").is_file() for stem in stems):
            return folder, ending
    return LAYOUTS[0]
