"""What is wrong with a set of studies, and what to do about each kind: keep and report, drop, or stop."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from data.readers.records import Record

Action = Literal["keep", "drop", "fatal"]
# A study that stands in two splits is named in the one that is less precious.
PRECIOUS = {"test": 0, "val": 1, "train": 2}


@dataclass(frozen=True)
class IntegrityConfig:
    """What is done with studies that break a rule: keep (report only), drop, or fatal (write nothing)."""

    duplicate_id: Action = "fatal"
    """An id that an earlier study has."""
    patient_in_two_splits: Action = "fatal"
    """The patient is also in a more precious split (test before val before train)."""
    report_in_two_splits: Action = "keep"
    """The same report, white space and case aside, is also in a more precious split. Short normal reports repeat."""
    image_in_two_splits: Action = "drop"
    """The same pixels are also in a more precious split. Looked for with --check-images only."""
    unreadable_image: Action = "drop"
    """An image that is missing or cannot be decoded. Looked for with --check-images only."""
    no_image: Action = "drop"
    """No image is listed, or none of the wanted view."""
    no_findings: Action = "drop"
    """There is nothing to train on."""
    no_impression: Action = "keep"
    """No reward reads the Impression of this study."""
    ambiguous_sections: Action = "keep"
    """Sections twice, reversed, or under one header; the first of each is taken."""
    short_report: Action = "keep"
    """Fewer words than `min_words` in Findings and Impression together."""
    long_report: Action = "keep"
    """More words than `max_words`: two reports in one file, as a rule."""
    not_utf8: Action = "keep"
    """The report file was not UTF-8 and was read as Windows-1252."""
    min_words: int = 3
    """Of a report."""
    max_words: int = 800
    """Of a report."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_words < self.max_words:
            raise ValueError(f"expected min_words below max_words, got {self.min_words} and {self.max_words}")

    def action(self, rule: str) -> Action:
        return getattr(self, rule)


RULES = tuple(field.name for field in fields(IntegrityConfig) if not field.name.endswith("_words"))


@dataclass(frozen=True)
class Entry:
    """What the rules need to know of a study; small, since all are held at once."""

    id: str
    patient_id: str
    split: str
    num_images: int
    report: bytes  # digest, empty for an empty report
    images: tuple[bytes, ...]  # digests of pixels, empty where images were not checked
    broken: tuple[tuple[str, str], ...]  # rules that the study breaks by itself, with details


@dataclass(frozen=True)
class Problem:
    """A rule that a study breaks."""

    rule: str
    id: str
    place: int  # of the study, in reading order
    detail: str = ""


def entry_of(record: Record, config: IntegrityConfig, *, digests: Sequence[bytes], unreadable: str) -> Entry:
    """Look at one study by itself.

    Args:
        digests: of its images' pixels, where they were checked.
        unreadable: what is wrong with its images, or empty.
    """
    study = record.study
    words = len(study.findings.split()) + len(study.impression.split())
    empty = not words
    broken = {
        "no_image": not study.images,
        "no_findings": not study.findings.strip(),
        "no_impression": not study.impression.strip(),
        "ambiguous_sections": record.sections == "ambiguous",
        "short_report": not empty and words < config.min_words,
        "long_report": words > config.max_words,
        "not_utf8": not record.utf8,
        "unreadable_image": bool(unreadable),
    }
    details = {"short_report": f"{words} words", "long_report": f"{words} words", "unreadable_image": unreadable}
    return Entry(
        id=study.id,
        patient_id=study.patient_id,
        split=study.split,
        num_images=len(study.images),
        report=b"" if empty else _digest(study.report),
        images=tuple(digests),
        broken=tuple((rule, details.get(rule, "")) for rule, is_broken in broken.items() if is_broken),
    )


def find_problems(entries: Sequence[Entry], config: IntegrityConfig) -> list[Problem]:
    """Every rule that a study breaks, by itself or beside the others that are left."""
    alone = [
        Problem(rule, entry.id, place, detail) for place, entry in enumerate(entries) for rule, detail in entry.broken
    ]
    alone += _duplicate_ids(entries)
    dropped = dropped_places(alone, config)
    left = [(place, entry) for place, entry in enumerate(entries) if place not in dropped]
    return [
        *alone,
        *_shared(left, "patient_in_two_splits", lambda entry: (entry.patient_id,)),
        *_shared(left, "report_in_two_splits", lambda entry: (entry.report,) if entry.report else ()),
        *_shared(left, "image_in_two_splits", lambda entry: entry.images),
    ]


def _duplicate_ids(entries: Sequence[Entry]) -> Iterator[Problem]:
    seen: set[str] = set()
    for place, entry in enumerate(entries):
        if entry.id in seen:
            yield Problem("duplicate_id", entry.id, place)
        seen.add(entry.id)


def _shared(
    entries: Sequence[tuple[int, Entry]], rule: str, keys_of: Callable[[Entry], Sequence[object]]
) -> Iterator[Problem]:
    """Studies that share a key with a study of a more precious split."""
    best: dict[object, Entry] = {}
    for _, entry in entries:
        for key in keys_of(entry):
            if PRECIOUS[entry.split] < PRECIOUS[best.setdefault(key, entry).split]:
                best[key] = entry
    for place, entry in entries:
        others = (best[key] for key in keys_of(entry))
        if other := next((other for other in others if other.split != entry.split), None):
            yield Problem(rule, entry.id, place, f"in {entry.split}, and in {other.split} with {other.id}")


def dropped_places(problems: Iterable[Problem], config: IntegrityConfig) -> dict[int, str]:
    """Place of each study to be dropped -> the first rule that says so."""
    dropped: dict[int, str] = {}
    for problem in problems:
        if config.action(problem.rule) == "drop":
            dropped.setdefault(problem.place, problem.rule)
    return dropped


def pixel_digest(pixels: bytes, size: tuple[int, int]) -> bytes:
    """Of a decoded image: the same for two files of the same pixels."""
    return hashlib.blake2b(pixels, digest_size=12, person=f"{size[0]}x{size[1]}".encode()[:16]).digest()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(re.sub(r"\s+", " ", text).strip().lower().encode(), digest_size=12).digest()
