"""What is wrong with a set of studies, what to do about it (keep and report, drop, or stop), and a summary of it."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from radflow.data.readers.records import SPLITS, Record, Unread
from radflow.data.studies import Study, load_image

Action = Literal["keep", "drop", "fatal"]
# A study that is in two splits is reported in the one that is less precious.
PRECIOUS = {"test": 0, "val": 1, "train": 2}
SHOWN = 5  # ids of each kind that are printed
# Thai, Lao, Burmese, Khmer, Chinese, Japanese, Korean: each letter counts as a word, as in radflow.rewards.unspaced.
CHARACTER = (
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]"
)
_WORD = re.compile(rf"(?=\w){CHARACTER}|(?:(?!{CHARACTER})\S)+")


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
    """The same pixels are also in a more precious split. Needs `check_images`."""
    unreadable_image: Action = "drop"
    """An image that is missing or cannot be decoded. Needs `check_images`."""
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
    """Of a report; in Chinese and other scripts without blanks each letter counts as a word."""
    max_words: int = 800
    """Of a report."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_words < self.max_words:
            raise ValueError(f"expected min_words below max_words, got {self.min_words} and {self.max_words}")


RULES = tuple(field.name for field in fields(IntegrityConfig) if not field.name.endswith("_words"))


@dataclass(frozen=True)
class Entry:
    """What the rules need to know of a study; small, since all are held at once."""

    id: str
    patient_id: str
    split: str
    num_images: int
    report: bytes  # digest, empty for an empty report
    images: tuple[bytes, ...]  # digests of pixels, empty if images were not checked
    broken: tuple[tuple[str, str], ...]  # rules that the study breaks by itself, with details


@dataclass(frozen=True)
class Problem:
    """A rule that a study breaks."""

    rule: str
    id: str
    index: int  # of the study, in reading order
    detail: str = ""


def count_words(text: str) -> int:
    """What blanks separate, and single letters of scripts written without them."""
    return len(text.split() if text.isascii() else _WORD.findall(text))


def check_record(record: Record, config: IntegrityConfig, *, check_images: bool) -> Entry:
    """Look at one study by itself, and at its pixels if asked."""
    study = record.study
    digests, unreadable = _digest_images(study) if check_images else ([], "")
    words = count_words(study.findings) + count_words(study.impression)
    broken = {
        "no_image": not study.images,
        "no_findings": not study.findings.strip(),
        "no_impression": not study.impression.strip(),
        "ambiguous_sections": record.ambiguous,
        "short_report": 0 < words < config.min_words,
        "long_report": words > config.max_words,
        "not_utf8": not record.utf8,
        "unreadable_image": bool(unreadable),
    }
    details = {"short_report": f"{words} words", "long_report": f"{words} words", "unreadable_image": unreadable}
    found = tuple((rule, details.get(rule, "")) for rule, is_broken in broken.items() if is_broken)
    normal = re.sub(r"\s+", " ", study.report).strip().lower()
    report = hashlib.blake2b(normal.encode(), digest_size=12).digest() if words else b""
    return Entry(study.id, study.patient_id, study.split, len(study.images), report, tuple(digests), found)


def _find_problems(entries: Sequence[Entry], config: IntegrityConfig) -> list[Problem]:
    """Every rule that a study breaks, by itself or together with others that are left."""
    alone = [Problem(rule, entry.id, i, detail) for i, entry in enumerate(entries) for rule, detail in entry.broken]
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        if entry.id in seen:
            alone.append(Problem("duplicate_id", entry.id, index))
        seen.add(entry.id)
    dropped = _dropped_indices(alone, config)
    left = [(index, entry) for index, entry in enumerate(entries) if index not in dropped]
    return [
        *alone,
        *_shared(left, "patient_in_two_splits", lambda entry: (entry.patient_id,)),
        *_shared(left, "report_in_two_splits", lambda entry: (entry.report,) if entry.report else ()),
        *_shared(left, "image_in_two_splits", lambda entry: entry.images),
    ]


def _shared(
    entries: Sequence[tuple[int, Entry]], rule: str, keys_of: Callable[[Entry], Sequence[object]]
) -> Iterator[Problem]:
    """Studies that share a key with a study of a more precious split."""
    best: dict[object, Entry] = {}
    for _, entry in entries:
        for key in keys_of(entry):
            if PRECIOUS[entry.split] < PRECIOUS[best.setdefault(key, entry).split]:
                best[key] = entry
    for index, entry in entries:
        others = (best[key] for key in keys_of(entry))
        if other := next((other for other in others if other.split != entry.split), None):
            yield Problem(rule, entry.id, index, f"in {entry.split}, and in {other.split} with {other.id}")


def _dropped_indices(problems: Iterable[Problem], config: IntegrityConfig) -> dict[int, str]:
    """Index of each study to be dropped -> the first rule that says so."""
    dropped: dict[int, str] = {}
    for problem in problems:
        if getattr(config, problem.rule) == "drop":
            dropped.setdefault(problem.index, problem.rule)
    return dropped


def _digest_images(study: Study) -> tuple[list[bytes], str]:
    """Digests of the pixels of each image, the same for two files of the same pixels; and what is wrong, or ""."""
    digests = []
    try:
        for source in study.images:
            image = load_image(source, study_id=study.id)
            person = f"{image.width}x{image.height}".encode()[:16]
            digests.append(hashlib.blake2b(image.tobytes(), digest_size=12, person=person).digest())
    except ValueError as error:
        return [], str(error)
    return digests, ""


@dataclass(frozen=True)
class Summary:
    """Counts of what was written, and the studies of every rule."""

    read: int  # studies seen, those that could not be read included
    splits: Mapping[str, int]  # studies written
    patients: int  # of the studies written
    images: int  # of the studies written
    missing: Mapping[str, int]  # sections that written studies lack
    dropped: Mapping[str, list[str]]  # reason -> "id: detail"
    reported: Mapping[str, list[str]]  # rule -> "id: detail", of studies that were kept nevertheless
    fatal: Mapping[str, list[str]]
    gone: Mapping[int, str]  # index of each study that was dropped -> the rule

    @property
    def studies(self) -> int:
        return sum(self.splits.values())

    @classmethod
    def of(cls, entries: Sequence[Entry], unread: Sequence[Unread], config: IntegrityConfig) -> "Summary":
        problems = _find_problems(entries, config)
        gone = _dropped_indices(problems, config)
        kept = [entry for index, entry in enumerate(entries) if index not in gone]
        found: dict[str, dict[str, list[str]]] = {"dropped": {}, "reported": {}, "fatal": {}}
        for item in unread:
            found["dropped"].setdefault(item.reason, []).append(_line(item))
        for problem in problems:
            if getattr(config, problem.rule) == "fatal":
                found["fatal"].setdefault(problem.rule, []).append(_line(problem))
            elif gone.get(problem.index) == problem.rule:
                found["dropped"].setdefault(problem.rule, []).append(_line(problem))
            elif problem.index not in gone:
                found["reported"].setdefault(problem.rule, []).append(_line(problem))
        counts = Counter(entry.split for entry in kept)
        return cls(
            read=len(entries) + len(unread),
            splits={split: counts[split] for split in SPLITS},
            patients=len({entry.patient_id for entry in kept}),
            images=sum(entry.num_images for entry in kept),
            missing={rule: len(found["reported"].get(rule, [])) for rule in ("no_findings", "no_impression")},
            gone=gone,
            **found,
        )

    def refuse_unusable(self) -> None:
        """Raise ValueError if a fatal rule is broken, or if nothing is left."""
        if self.fatal:
            listed = "\n".join(_listed(self.fatal))
            advice = "correct the files, or set these rules to keep or drop"
            raise ValueError(f"nothing was written, since these rules are fatal:\n{listed}\n{advice}")
        if not self.studies:
            raise ValueError(f"nothing was written, since no study is left:\n{self.text()}")

    def text(self) -> str:
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        dropped = sum(map(len, self.dropped.values()))
        lines = [
            f"studies {self.studies:,} of {self.read:,} ({splits})",
            f"patients {self.patients:,}",
            f"images {self.images:,}",
            f"sections missing: Findings {self.missing['no_findings']:,}, Impression {self.missing['no_impression']:,}",
            f"dropped {dropped:,}",
            *_listed(self.dropped),
        ]
        if self.reported:
            lines += ["kept, but look at", *_listed(self.reported)]
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """For JSON, with every id."""
        kept = {name: value for name, value in vars(self).items() if name not in ("read", "fatal", "gone")}
        return {"read": self.read, "studies": self.studies, **kept}


def _line(item: Problem | Unread) -> str:
    return f"{item.id}: {item.detail}" if item.detail else item.id


def _listed(groups: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for name, found in sorted(groups.items(), key=lambda group: -len(group[1])):
        more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        lines.append(f"  {name.replace('_', ' ')}: {len(found):,} ({'; '.join(found[:SHOWN])}{more})")
    return lines
