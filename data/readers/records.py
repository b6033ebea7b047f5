"""What every reader yields, and how it reads texts and names files."""

import os
from dataclasses import dataclass
from pathlib import Path

from data.sections import Status
from data.studies import Study


@dataclass(frozen=True)
class Record:
    """One study as its owner distributes it; nothing has been left out yet."""

    study: Study
    sections: Status  # how its report divides
    date: str = ""  # sorts the studies of a patient; empty where unknown
    utf8: bool = True  # False: the report was not UTF-8 and was read as Windows-1252


@dataclass(frozen=True)
class Unread:
    """A study that could not be made."""

    id: str
    reason: str  # a kind, such as "report file missing"
    detail: str = ""


def inside(root: Path, name: str, *, start: str = "") -> Path:
    """The file that `name` means, seen from the folder `start` of the root.

    Raises:
        ValueError: it lies outside the root. Names are compared, links are not followed: whoever made a link meant it.
    """
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, start, name))
    if not path.startswith(base.rstrip(os.sep) + os.sep):
        raise ValueError(f"expected a file inside {root}, got {name!r}, which leads out of it; correct the name")
    return Path(path)


def sections_status(findings: str, impression: str) -> Status:
    """The status of a report whose owner gives its sections apart."""
    return "missing_findings" if not findings else "ok" if impression else "missing_impression"


def read_text(path: Path) -> tuple[str, bool]:
    """A report file, and whether it was UTF-8; what is not is read as Windows-1252.

    Raises:
        OSError: not there, or not readable.
        UnicodeDecodeError: it is neither.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig"), True
    except UnicodeDecodeError:
        return content.decode("cp1252"), False
