"""How varied reports are: a score means little when all reports are the same one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.negation import sentences
from rewards.statistics import distinct_share


@dataclass(frozen=True)
class Variety:
    """Figures over the reports of a system."""

    distinct: float  # share of different reports, in (0, 1]
    most_common: float  # share of the report that occurs most
    words: float  # mean number
    repeated: float  # share of sentences that stand in their report a second time

    @classmethod
    def of(cls, reports: Sequence[str]) -> "Variety":
        counts = Counter(reports)
        written = {report: [s.lower() for s in sentences(report)] for report in counts}
        total = sum(len(found) * counts[report] for report, found in written.items())
        again = sum((len(found) - len(set(found))) * counts[report] for report, found in written.items())
        return cls(
            distinct=distinct_share(reports),
            most_common=counts.most_common(1)[0][1] / len(reports),
            words=sum(len(report.split()) for report in reports) / len(reports),
            repeated=again / total if total else 0.0,
        )

    def line(self, name: str) -> str:
        return (
            f"{name}: {100 * self.distinct:.1f} % distinct reports, the most common one in "
            f"{100 * self.most_common:.1f} % of studies, {self.words:.1f} words on average, "
            f"{100 * self.repeated:.1f} % of sentences repeated"
        )
