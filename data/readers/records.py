"""What every reader yields, and how it assigns splits, names files and reads texts."""

import codecs
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from radflow.data.readers.tables import text_of
from radflow.data.sections import SectionParser, Sections
from radflow.data.studies import Study

SPLITS = ("train", "val", "test")
SHARES = (70, 10, 20)  # percent of the patients, if the owner of the data has no split
OFFICIAL = {"train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val", "test": "test"}


class Texts(NamedTuple):
    """The texts of a study, in the order in which `Study` takes them."""

    findings: str
    impression: str
    indication: str = ""
    comparison: str = ""

    @classmethod
    def of(cls, sections: Sections) -> "Texts":
        """From a parsed report."""
        other = (sections.other.get(name, "") for name in ("indication", "comparison"))
        return cls(sections.findings, sections.impression, *other)


@dataclass(frozen=True)
class Record:
    """One study as its owner distributes it; nothing has been left out yet."""

    study: Study
    date: str = ""  # sorts the studies of a patient; empty if unknown
    ambiguous: bool = False  # True: its report has sections twice, reversed, or under one header
    utf8: bool = True  # False: the report was not UTF-8 and was read as Windows-1252


@dataclass(frozen=True)
class Unread:
    """A study that could not be made."""

    id: str
    reason: str  # a kind, such as "report file missing"
    detail: str = ""


def read_texts(row: Mapping[str, Any], parse: SectionParser) -> tuple[Texts, bool]:
    """The texts under the keys of a manifest, those of `report` by its headers; and whether these are ambiguous.

    Raises ValueError for both a report and sections.
    """
    texts = Texts(*(text_of(row, name) for name in Texts._fields))
    if not (report := text_of(row, "report")):
        return texts, False
    if texts.findings or texts.impression:
        raise ValueError("expected either report or findings and impression, got both; remove one")
    sections = parse(report)
    found = Texts(*(given or parsed for given, parsed in zip(texts, Texts.of(sections), strict=True)))
    return found, sections.status == "ambiguous"


def images_inside(root: Path, names: Iterable[str], *, start: str = "") -> tuple[Path, ...]:
    """The files that these names mean, seen from the folder `start` of the root.

    Raises ValueError if one lies outside the root by its name; links are deliberate and are not followed.
    """
    base = os.path.abspath(root)
    paths = [(name, os.path.normpath(os.path.join(base, start, name))) for name in names]
    for name, path in paths:
        if not path.startswith(base.rstrip(os.sep) + os.sep):
            advice = "correct the name, or the image_root to a folder that holds it"
            raise ValueError(f"expected a file inside {root}, got {name!r}, which leads out of it; {advice}")
    return tuple(Path(path) for _, path in paths)


def split_of_patient(patient_id: str, shares: Sequence[int]) -> str:
    """train, val or test with these chances (percent), decided by a hash of the patient alone.

    It depends neither on the other patients nor on the machine: adding studies moves no patient.
    """
    assert len(shares) == 3 and sum(shares) == 100, shares
    percent = int.from_bytes(hashlib.sha256(patient_id.encode()).digest()[:8]) / 2**64 * 100
    return "train" if percent < shares[0] else "val" if percent < shares[0] + shares[1] else "test"


def official_split(name: str) -> str:
    """An owner's name of a split -> ours. Raises ValueError if there is no such split."""
    if name.lower() not in OFFICIAL:
        raise ValueError(f"expected a split among {', '.join(OFFICIAL)}, got {name!r}")
    return OFFICIAL[name.lower()]


def read_text(path: Path) -> tuple[str, bool]:
    """A text file, and whether it was UTF-8, or UTF-16 with its mark; what is not is read as Windows-1252.

    Raises OSError, and UnicodeDecodeError for what is none of these.
    """
    content = path.read_bytes()
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return content.decode("utf-16"), True
    try:
        return content.decode("utf-8-sig"), True
    except UnicodeDecodeError:
        return content.decode("cp1252"), False
