"""Does a reference report describe anything abnormal? This decides the clip range of its case (paper 4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from radflow.rewards.types import Labeler


@dataclass(frozen=True)
class Criticality:
    """The label of one reference report."""

    critical: bool
    reason: str
    source: str  # who said so: rules, a model's name, or a person


class CriticalityRules:
    """A report is critical if it asserts something abnormal, hedged or not (the paper: all but normal ones).

    A device counts as abnormal: its position must be reported correctly.
    """

    def __init__(self, labeler: Labeler) -> None:
        self.labeler = labeler

    def __call__(self, reports: Sequence[str]) -> list[Criticality]:
        found = [sorted(self.labeler.abnormalities(report)) for report in reports]
        return [Criticality(bool(labels), ", ".join(labels) or "no abnormal finding", "rules") for labels in found]
