"""Does a reference report describe anything abnormal? This decides the clip range of its case (paper 4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from radflow.rewards.rules.acuity import find_serious
from radflow.rewards.rules.consistency import positions
from radflow.rewards.types import Labeler

Definition = Literal["paper", "acute"]


@dataclass(frozen=True)
class Criticality:
    """The label of one reference report."""

    critical: bool
    reason: str
    source: str  # who said so: rules, a model's name, or a person


class CriticalityRules:
    """A report is critical if it asserts something abnormal, hedged or not (the paper: all but normal ones).

    A device counts as abnormal: its position must be reported correctly.

    Args:
        definition: `acute` counts only what "no acute abnormality" could not be said next to: nothing minor, old or
            chronic (acuity.py), and a device only if its position is bad.
    """

    def __init__(self, labeler: Labeler, definition: Definition = "paper") -> None:
        self.labeler, self.definition = labeler, definition

    def __call__(self, reports: Sequence[str]) -> list[Criticality]:
        read = self.labeler.abnormalities if self.definition == "paper" else self._acute
        nothing = "no abnormal finding" if self.definition == "paper" else "no acute finding"
        found = [sorted(read(report)) for report in reports]
        return [Criticality(bool(labels), ", ".join(labels) or nothing, "rules") for labels in found]

    def _acute(self, report: str) -> set[str]:
        read = [one for one in self.labeler.findings(report) if one.name not in self.labeler.ignorable]
        return {one.name for one in find_serious(read)} | (
            {"position of a device"} if "bad" in positions(report) else set()
        )
