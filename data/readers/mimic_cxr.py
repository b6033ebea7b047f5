"""MIMIC-CXR and MIMIC-CXR-JPG: reports as text files, images as JPEG or DICOM, the official split (docs/data.md)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.readers.records import Record, Unread, read_text
from data.readers.tables import find_table, rows
from data.sections import parse_sections
from data.splits import official_split
from data.studies import Study

METADATA = "mimic-cxr-2.0.0-metadata.csv.gz"
SPLIT = "mimic-cxr-2.0.0-split.csv.gz"
CHEXPERT = "mimic-cxr-2.0.0-chexpert.csv.gz"
# Columns of the CheXpert labels: 1.0, 0.0, -1.0 (uncertain), or empty: not mentioned.
LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
VALUE = {"1.0": 1, "0.0": 0, "-1.0": -1, "1": 1, "0": 0, "-1": -1}


@dataclass
class _Entry:
    """What the tables say of one study."""

    subject: str
    images: list[tuple[str, str]] = field(default_factory=list)  # (DICOM id, view position)
    date: str = ""  # YYYYMMDD HHMMSS of its first image, shifted by the owners, in order within a patient


def read_mimic_cxr(root: Path) -> Iterator[Record | Unread]:
    """Studies in the order of the metadata table.

    `root` holds the tables of MIMIC-CXR-JPG and files/pXX/pXXXXXXXX/, with the reports of MIMIC-CXR unzipped into it
    (sXXXXXXXX.txt) and the images of either (sXXXXXXXX/*.jpg or *.dcm).

    Raises:
        ValueError: a table is missing or lacks a column.
    """
    index, splits, labels = _index(root), _splits(root), _labels(root)
    suffix = _image_suffix(root, index)
    for study, entry in index.items():
        name = f"s{study}"
        folder = root / "files" / f"p{entry.subject[:2]}" / f"p{entry.subject}"
        if study not in splits:
            yield Unread(name, "not in the official split")
            continue
        try:
            text, utf8 = read_text(folder / f"{name}.txt")
        except FileNotFoundError:
            yield Unread(name, "report file missing", f"{folder / name}.txt")
            continue
        except (OSError, UnicodeDecodeError) as error:
            yield Unread(name, "report file unreadable", str(error))
            continue
        sections = parse_sections(text)
        yield Record(
            Study(
                id=name,
                patient_id=f"p{entry.subject}",
                split=splits[study],
                images=tuple(folder / name / f"{dicom}{suffix}" for dicom, _ in entry.images),
                views=tuple(view for _, view in entry.images),
                findings=sections.findings,
                impression=sections.impression,
                indication=sections.other.get("indication", ""),
                comparison=sections.other.get("comparison", ""),
                labels=labels.get(study, {}),
            ),
            sections.status,
            date=entry.date,
            utf8=utf8,
        )


def _index(root: Path) -> dict[str, _Entry]:
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
    index: dict[str, _Entry] = {}
    for dicom, subject, study, view, day, time in rows(find_table(root, METADATA), columns):
        entry = index.setdefault(study, _Entry(subject))
        entry.images.append((dicom, view))
        # Times are numbers such as 83045.531: 08:30:45. Images of one study differ by minutes.
        moment = f"{day} {time.partition('.')[0]:0>6}"
        entry.date = min(entry.date or moment, moment)
    return index


def _splits(root: Path) -> dict[str, str]:
    table = rows(find_table(root, SPLIT), ("study_id", "split"))
    return {study: official_split(split) for study, split in table}


def _labels(root: Path) -> dict[str, Mapping[str, int]]:
    """CheXpert labels of each study; none where the table was not fetched."""
    try:
        path = find_table(root, CHEXPERT)
    except ValueError:
        return {}
    known: dict[tuple[str, ...], Mapping[str, int]] = {}  # few combinations: studies share them, which saves memory
    found = {}
    for study, *values in rows(path, ("study_id", *LABELS)):
        key = tuple(values)
        if key not in known:
            known[key] = {name: VALUE[value] for name, value in zip(LABELS, values, strict=True) if value}
        found[study] = known[key]
    return found


def _image_suffix(root: Path, index: Mapping[str, _Entry]) -> str:
    """.dcm where the first studies' images are DICOM files, else .jpg, there or yet to be fetched."""
    for study, entry in list(index.items())[:20]:
        folder = root / "files" / f"p{entry.subject[:2]}" / f"p{entry.subject}" / f"s{study}"
        if (folder / f"{entry.images[0][0]}.dcm").is_file():
            return ".dcm"
    return ".jpg"
