"""The carriers of rewards, and what every parser, metric and labeler offers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Score:
    """Reward of one report, with the named parts it is made of.

    A part is None if a rule skips it (the report lacks the section it reads; it adds nothing to the total), and if it
    could not be computed; the latter are named in `missing`.
    """

    total: float | None  # None: it could not be computed; the report leaves its group
    parts: Mapping[str, float | None]
    missing: tuple[str, ...] = ()  # parts that could not be computed for this report
    left_out: tuple[str, ...] = ()  # parts that count in no total of its group, since a member lacks them
    terms: Mapping[str, float] = field(default_factory=dict)
    """Each known part, weighted, before truth scales it; those left out of the total too, unless no report has them."""
    truth: float = 1.0  # in [0, 1], scales the positive terms

    def scaled(self, name: str) -> float:
        """What a part adds to the total; NaN if it has no term."""
        term = self.terms.get(name, math.nan)
        return self.truth * term if term > 0 else term


@dataclass(frozen=True)
class Copy:
    """A report of a group in which one finding was made right against the reference."""

    report: str
    about: str  # what was made right, and how
    of: int  # index of the report that it was made of
    score: Score


@dataclass(frozen=True)
class Fault:
    """A value that a metric failed to give: it raised, answered something else than a number, hung or died."""

    part: str  # the metric
    report: int  # index among the reports that were scored together
    why: str


@dataclass(frozen=True)
class Scored:
    """Scores of a batch of reports, in their order, and where the time went."""

    scores: tuple[Score, ...]
    seconds: Mapping[str, float]  # part -> seconds it took for the whole batch
    copies: tuple[Copy, ...] = ()  # made if the run asks for them
    faults: tuple[Fault, ...] = ()  # of its reports, then of the copies


class Sections(Protocol):
    """What a section parser returns."""

    @property
    def findings(self) -> str: ...

    @property
    def impression(self) -> str: ...

    @property
    def status(self) -> str:
        """ok, or what is wrong."""

    @property
    def described(self) -> str:
        """All text that describes this examination, without headers; that of a text without headers is the text."""


Parser = Callable[[str], Sections]


# One value per pair of texts; None if it could not be computed. The pairs are candidates and references or, for a judge
# of consistency (1 yes, -1 no), Findings and Impressions.
Metric = Callable[[Sequence[str], Sequence[str]], Sequence[float | None]]


@dataclass(frozen=True)
class Finding:
    """One mention of a finding, and what is said of it."""

    name: str
    value: int
    """1 present, 0 denied, -1 uncertain."""
    sides: frozenset[str] = frozenset()
    """left, right; empty if none is stated."""
    grades: frozenset[int] = frozenset()
    """0 minimal, 1 mild, 2 moderate, 3 severe; empty if none is stated."""
    sizes: frozenset[float] = frozenset()
    """Millimetres."""
    courses: frozenset[str] = frozenset()
    """recent, old; empty if nothing is said."""
    mention: str = ""
    """The words that name it, in lower case."""
    piece: str = ""
    """The part of the sentence that its qualities are read from, in lower case."""
    sentence: str = ""
    regions: frozenset[str] = frozenset()
    """Parts of the organ; empty if none is stated, or if the labeler reads none."""


class Labeler(Protocol):
    """Report or section -> the labels it asserts; label F1, consistency rules and criticality are built on it."""

    labels: tuple[str, ...]
    normal: str  # the label of a normal examination
    ignorable: frozenset[str]  # labels that make no report abnormal
    covers: Mapping[str, set[str]]  # a label of an Impression -> those of the Findings it may stand for
    implies: Mapping[str, set[str]]  # a label of an Impression -> those of the Findings it may leave out

    def __call__(self, texts: Sequence[str]) -> list[set[str]]: ...

    def certain(self, text: str) -> set[str]:
        """Labels asserted without hedging."""

    def abnormalities(self, text: str) -> set[str]:
        """Everything abnormal, beyond the labels too."""

    def findings(self, text: str) -> list[Finding]:
        """Every mention of a finding, denied and uncertain ones too."""
