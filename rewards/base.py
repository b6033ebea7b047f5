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


class Labeler(Protocol):
    """Text -> the set of labels it asserts."""

    labels: tuple[str, ...]

    def __call__(self, texts: Sequence[str]) -> list[set[str]]: ...
