"""MIMIC-CXR and MIMIC-CXR-JPG: reports as text files, images as JPEG or DICOM, the official split (docs/data.md)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from radflow.data.files import read_words
from radflow.data.readers.records import Record, Texts, Unread, official_split, read_text
from radflow.data.readers.tables import find_table, rows
from radflow.data.sections import SectionParser, parse_sections
from radflow.data.studies import Study

METADATA = "mimic-cxr-2.0.0-metadata.csv.gz"
SPLIT = "mimic-cxr-2.0.0-split.csv.gz"
CHEXPERT = "mimic-cxr-2.0.0-chexpert.csv.gz"
# Columns of the CheXpert labels: 1.0, 0.0, -1.0 (uncertain), or empty: not mentioned.
LABELS = tuple(sorted(read_words("labels")["chexpert"]))
VALUE = {"1.0": 1, "0.0": 0, "-1.0": -1, "1": 1, "0": 0, "-1": -1}


@dataclass
class _Entry:
    """What the tables say of one study."""

    subject: str
    images: list[tuple[str, str]] = field(default_factory=list)  # (DICOM id, view position)
    date: str = ""  # YYYYMMDD HHMMSS of its first image, shifted by the owners, in order within a patient


def read_mimic_cxr(root: Path, parse: SectionParser = parse_sections) -> Iterator[Record | Unread]:
    """Studies in the order of the metadata table.

    `root` holds the tables of MIMIC-CXR-JPG and files/pXX/pXXXXXXXX/, with the reports of MIMIC-CXR unzipped into it
    (sXXXXXXXX.txt) and the images of either (sXXXXXXXX/*.jpg or *.dcm). A table or column that is missing: ValueError.
    """
    index = _index(root)
    splits = {study: official_split(split) for study, split in rows(find_table(root, SPLIT), ("study_id", "split"))}
    labels = _labels(root)
    suffix = _image_suffix(root, index)
    for study, entry in index.items():
        name = f"s{study}"
        folder = _folder(root, entry.subject)
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
        sections = parse(text)
        of_study = folder / name
        images = tuple(of_study / f"{dicom}{suffix}" for dicom, _ in entry.images)
        views, marks = tuple(view for _, view in entry.images), labels.get(study, {})
        made = Study(name, folder.name, splits[study], images, *Texts.of(sections), views=views, labels=marks)
        yield Record(made, entry.date, sections.status == "ambiguous", utf8)


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


def _labels(root: Path) -> dict[str, Mapping[str, int]]:
    """CheXpert labels of each study; empty if the table was not fetched."""
    try:
        path = find_table(root, CHEXPERT)
    except ValueError:
        return {}

    @cache  # few combinations: studies share them, which saves memory
    def marks(*values: str) -> Mapping[str, int]:
        return {name: VALUE[value] for name, value in zip(LABELS, values, strict=True) if value}

    return {study: marks(*values) for study, *values in rows(path, ("study_id", *LABELS))}


def _image_suffix(root: Path, index: Mapping[str, _Entry]) -> str:
    """.dcm if the first studies' images are DICOM files, else .jpg, there or yet to be fetched."""
    first = list(index.items())[:20]
    names = (_folder(root, entry.subject) / f"s{study}" / f"{entry.images[0][0]}.dcm" for study, entry in first)
    return ".dcm" if any(name.is_file() for name in names) else ".jpg"


def _folder(root: Path, subject: str) -> Path:
    return root / "files" / f"p{subject[:2]}" / f"p{subject}"
