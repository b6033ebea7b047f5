"""What every reward and metric agrees on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Score:
    """Reward of one report, with the named parts it is made of.

    A part is None where a rule skips it (the report lacks the section it reads; it adds nothing to the total), and
    where it could not be computed; the latter are named in `missing`.
    """

    total: float | None  # None: it could not be computed; the report leaves its group
    parts: Mapping[str, float | None]
    missing: tuple[str, ...] = ()  # parts that could not be computed for this report
    left_out: tuple[str, ...] = ()  # parts that count in no total of its group, since a member lacks them


@dataclass(frozen=True)
class Scored:
    """Scores of a batch of reports, in their order, and where the time went."""

    scores: tuple[Score, ...]
    seconds: Mapping[str, float]  # part -> seconds it took for the whole batch


class Sections(Protocol):
    """What a section parser returns."""

    findings: str
    impression: str
    status: str  # "ok", or what is wrong


class Metric(Protocol):
    """A score of candidate reports against references, one a report; None where it could not be computed."""

    name: str

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float | None]: ...


class ConsistencyJudge(Protocol):
    """Does an Impression follow from its Findings? +1 yes, -1 no, None where the judge could not be asked."""

    name: str

    def __call__(self, findings: Sequence[str], impressions: Sequence[str]) -> list[float | None]: ...


class Labeler(Protocol):
    """Text -> the labels it asserts; the one thing that Impression expert, judge and criticality stand on."""

    labels: tuple[str, ...]
    normal: str  # the label of a normal examination
    ignorable: frozenset[str]  # labels that make no report abnormal
    covers: Mapping[str, set[str]]  # a label of an Impression -> those of the Findings it may stand for

    def __call__(self, texts: Sequence[str]) -> list[set[str]]: ...

    def certain(self, text: str) -> set[str]:
        """Labels asserted without hedging."""

    def abnormalities(self, text: str) -> set[str]:
        """Everything abnormal, beyond the labels too."""
