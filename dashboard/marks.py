"""Reports as people compare them: each finding marked by what the rules make of it against the reference."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from radflow.data.sections import parse_sections
from radflow.rewards.registry import LABELERS
from radflow.rewards.rules import carotid
from radflow.rewards.rules.errors import FindingError, FindingErrors, Kind
from radflow.rewards.rules.findings import GRADES
from radflow.rewards.rules.negation import sentences
from radflow.rewards.rules.terms import TermFile, read_statements
from radflow.rewards.types import Finding

Mark = Literal["right", "inexact", "wrong", "denied", "stated", "plain"]
CHEST_TERMS: tuple[TermFile, ...] = ("chexpert", "other_findings")
# Errors that a mention can have, the worst first, and how each is marked and called.
MENTIONED: Mapping[Kind, tuple[Mark, str]] = {
    "denied": ("denied", "denied"),
    "side": ("wrong", "wrong side"),
    "grade": ("wrong", "wrong grade"),
    "made up": ("wrong", "made up"),
    "inexact": ("inexact", "inexact"),
}
LISTED: Mapping[Kind, str] = {"missed": "missed", "measurement": "other measurement", "advice": "other advice"}
CALLED: Mapping[Kind, str] = {**LISTED, **{kind: note for kind, (_, note) in MENTIONED.items()}}
# Columns of a summary -> the kinds of errors that they count.
SUMMED: Mapping[str, tuple[Kind, ...]] = {
    "inexact": ("inexact",),
    "wrong": ("made up", "side", "grade"),
    "denied": ("denied",),
    "missed": ("missed",),
    "other": ("measurement", "advice"),
}


@dataclass(frozen=True)
class Mention:
    """A finding, by its position in the report's text with single spaces."""

    finding: Finding
    start: int
    end: int
    sentence: str


@dataclass(frozen=True)
class Span:
    """A piece of a report as it is shown."""

    text: str
    mark: Mark
    title: str = ""
    """What was read, and what the reference says."""
    note: str = ""
    """The error in a word or two, shown at the piece, because colour alone is no signal."""


@dataclass(frozen=True)
class Column:
    """One report of a study."""

    name: str
    spans: Sequence[Span]
    counts: Mapping[str, int] | None = None
    """Kind of error -> number; None for the reference."""
    right: int = 0
    """Findings whose every mention is right."""
    listed: Sequence[str] = ()
    """Errors that no piece of the text shows: `missed: left pleural effusion`."""


@dataclass(frozen=True)
class Case:
    """One study as a page shows it."""

    id: str
    images: Sequence[str]
    """Data URIs."""
    columns: Sequence[Column]
    """The reference first."""
    remark: str = ""


class Marker:
    """Marks reports by the labeler that a run was rewarded with.

    Args:
        labeler: its name, or the expert of a reward; all but carotid_rules read chest radiographs.
    """

    def __init__(self, labeler: str) -> None:
        is_carotid = labeler == "carotid_rules"
        self.labeler = LABELERS["carotid_rules" if is_carotid else "chexpert_rules"](parse_sections)
        self.errors = FindingErrors(self.labeler)
        self._positions: Callable[[str], list[tuple[int, int]]] = _carotid_positions if is_carotid else _chest_positions

    def is_normal(self, text: str) -> bool:
        """Whether a report states nothing abnormal."""
        return not self.labeler.abnormalities(text) - self.labeler.ignorable

    def mark(self, reference: str, reports: Mapping[str, str]) -> list[Column]:
        """The reference, and what each system wrote."""
        marked = (self.mark_report(name, text, reference) for name, text in reports.items())
        return [self.mark_reference(reference), *marked]

    def mark_reference(self, text: str) -> Column:
        """The reference with what it asserts marked as stated."""
        shown, found = self.mentions(text)
        asserted = (mention for mention in found if mention.finding.value)
        return Column("Reference", _cut(shown, ((m, Span("", "stated", _describe([m.finding]))) for m in asserted)))

    def mark_report(self, name: str, text: str, reference: str) -> Column:
        """A report with each finding as the rules judge it against the reference."""
        shown, found = self.mentions(text)
        expected: dict[str, list[Finding]] = {}
        for finding in self.labeler.findings(reference):
            expected.setdefault(finding.name, []).append(finding)
        errors = self.errors(text, reference)
        judged = [(m, self._judge(m, text, reference, expected.get(m.finding.name, []))) for m in found]
        counts = Counter(CALLED[error.kind] for error in errors if error.kind in CALLED)
        marks: dict[str, set[Mark]] = {}
        for mention, span in judged:
            marks.setdefault(mention.finding.name, set()).add(span.mark)
        right = sum(own - {"plain"} == {"right"} for own in marks.values())
        return Column(name, _cut(shown, judged), counts, right, list(_list(errors, expected, found)))

    def mentions(self, text: str) -> tuple[str, list[Mention]]:
        """The text with single spaces, and its findings. Sections about something else than this examination are shown,
        and read for nothing."""
        shown, cursor, found = " ".join(text.split()), 0, []
        findings = iter(self.labeler.findings(text))
        for sentence in sentences(parse_sections(text).described):
            begin = shown.find(sentence, cursor)
            read = [(next(findings), start, end) for start, end in self._positions(sentence)]
            if begin < 0:  # cut at a line end in the middle of a word or sentence
                continue
            cursor = begin + len(sentence)
            found += [Mention(finding, begin + start, begin + end, sentence) for finding, start, end in read]
        assert next(findings, None) is None, "expected a position for every finding"
        return shown, found

    def _judge(self, mention: Mention, text: str, reference: str, expected: Sequence[Finding]) -> Span:
        """What is wrong with one mention: with its sentence, or with its finding if the sentence alone shows it too."""
        finding, true = mention.finding, [other for other in expected if other.value]
        errors = self.errors(text, reference)
        kinds = {error.kind for error in errors if error.about == finding.name}
        if true:
            alone = self.errors(mention.sentence, reference)
            kinds &= {error.kind for error in alone if error.about == finding.name}
        # such a sentence may begin with a header, which the findings are read without
        kinds |= {error.kind for error in errors if error.about.endswith(mention.sentence)}
        if finding.value and not kinds and not true:
            kinds = {"inexact"}  # it may stand for another finding of the reference
        said, given = _describe([finding]), f"; the reference: {_describe(true or expected)}" if expected else ""
        for kind, (mark, note) in MENTIONED.items():
            if kind in kinds and (kind == "denied") == (finding.value == 0):
                note = "wrong side" if kind == "made up" and true else note
                return Span("", mark, f"{said}: {note}{given}", note)
        if finding.value or any(other.value == 0 for other in expected):
            return Span("", "right", f"{said}: as in the reference")
        return Span("", "plain")


def _cut(shown: str, judged: Iterable[tuple[Mention, Span]]) -> list[Span]:
    """The whole text in pieces. Of mentions that overlap the first counts, and of those that begin together the
    longest."""
    pieces, cursor = [], 0
    for mention, span in sorted(judged, key=lambda one: (one[0].start, -one[0].end)):
        if mention.start >= cursor:
            pieces.append(Span(shown[cursor : mention.start], "plain"))
            pieces.append(Span(shown[mention.start : mention.end], span.mark, span.title, span.note))
            cursor = mention.end
    return [piece for piece in (*pieces, Span(shown[cursor:], "plain")) if piece.text]


def _list(
    errors: Iterable[FindingError], expected: Mapping[str, Sequence[Finding]], found: Sequence[Mention]
) -> Iterator[str]:
    """The errors that no word of the report shows."""
    stated = {mention.finding.name for mention in found if mention.finding.value}
    for error in errors:
        if error.kind == "missed":
            yield f"missed: {_lost(expected[error.about], found)}"
        elif error.kind in LISTED:
            yield f"{LISTED[error.kind]}: {error.about}"
        elif error.kind == "inexact" and error.about in expected.keys() - stated:  # a possible or a narrower finding
            yield f"inexact: the reference has {_describe([f for f in expected[error.about] if f.value])}"


def summarize(columns: Iterable[Column]) -> dict[str, int]:
    """Right findings and errors of some reports, added up."""
    columns = list(columns)
    totals = {"right": sum(column.right for column in columns)}
    for title, kinds in SUMMED.items():
        totals[title] = sum((column.counts or {}).get(CALLED[kind], 0) for column in columns for kind in kinds)
    return totals


def _lost(expected: Sequence[Finding], found: Iterable[Mention]) -> str:
    """A finding of the reference that a report misses, on the sides that the report does not name."""
    name = expected[0].name
    named = _sides(mention.finding for mention in found if mention.finding.name == name and mention.finding.value)
    return _words(name, _sides(expected) - named)


def _describe(findings: Sequence[Finding]) -> str:
    """`possible mild left pleural effusion`, `no pneumothorax`."""
    values = {finding.value for finding in findings}
    hedge = "possible " if values == {-1} else "no " if values == {0} else ""
    grades = sorted({grade for finding in findings for grade in finding.grades})
    graded = "".join(f"{GRADES[grade]} " for grade in grades)
    return f"{hedge}{graded}{_words(findings[0].name, _sides(findings))}"


def _words(name: str, sides: Collection[str]) -> str:
    return " ".join(filter(None, [" and ".join(sorted(sides)), name.replace("_", " ").lower()]))


def _sides(findings: Iterable[Finding]) -> frozenset[str]:
    return frozenset(side for finding in findings if finding.value for side in finding.sides)


def _chest_positions(sentence: str) -> list[tuple[int, int]]:
    return [(one.start, one.end) for file in CHEST_TERMS for one in read_statements(file, sentence)]


def _carotid_positions(sentence: str) -> list[tuple[int, int]]:
    return [(one.start, one.end) for one in carotid.statements(sentence)]
