"""What every reward and metric agrees on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Score:
    """Reward of one report, with the named parts it is made of."""

    total: float | None  # None: it could not be computed; the report leaves its group
    parts: Mapping[str, float | None]  # None: the part is skipped for this report


class Metric(Protocol):
    """A score of candidate reports against references, one a report."""

    name: str

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]: ...


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
