"""Several metrics of the same reports, each given the sections that it reads."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from radflow.rewards.faults import all_asked, ask
from radflow.rewards.types import Fault, Metric, Parser

# report: both whole texts; text: the same, never re-spaced; findings, impression: these sections of both;
# described: all that both say of the examination; sections: Findings and Impression of the candidate alone.
Reads = Literal["report", "text", "described", "findings", "impression", "sections"]
ABSENT = ("", "None")  # a section that is missing, and the word that ReXrank writes for it
_Pairs = tuple[Sequence[int], list[str], list[str]]  # indices of the reports that have both sides, and these


@dataclass(frozen=True)
class Measured:
    """Values of each metric, one per report, and where the time went."""

    values: Mapping[str, list[float | None]]  # None: skipped, or missing
    missing: Mapping[str, list[bool]]  # whether a value could not be computed
    seconds: Mapping[str, float]
    faults: tuple[Fault, ...] = ()  # why, of values that a metric failed to give


@dataclass(frozen=True)
class Table:
    """Columns of a table by name, one value per report; None if it has none."""

    columns: Mapping[str, list[float | None]]
    faults: tuple[Fault, ...]


class Metrics:
    """Metrics by name, over the same reports.

    Parser rule: if the headers of a candidate are missing or ambiguous, all that it says of the examination, or its
    whole text if that is nothing, is compared with the reference Findings; it is inconsistent (-1: no two sections to
    agree), and metrics of the Impression skip it. What the reference lacks is skipped for every candidate.

    Args:
        parse: section parser.
        metrics: name -> what it reads, and the metric.
        together: those whose value depends on all reports that are measured together.
    """

    def __init__(
        self, parse: Parser, metrics: Mapping[str, tuple[Reads, Metric]], *, together: Collection[str] = ()
    ) -> None:
        self.parse, self.metrics, self.together = parse, dict(metrics), together

    def only(self, names: Sequence[str]) -> "Metrics":
        """Some of these metrics, in this order."""
        return Metrics(self.parse, {name: self.metrics[name] for name in names}, together=self.together)

    def __call__(self, candidates: Sequence[str], references: Sequence[str], *, respaced: bool = False) -> Measured:
        """Every metric of every report; what one fails to give is missing, and said in `faults`.

        Args:
            respaced: give metrics of whole reports every run of white space as one space. Line breaks glue words
                together for BLEU (".\\nthe" is one word), so that it would pay to guess where a reference breaks lines.
        """
        read = self._read(candidates, references, respaced=respaced)
        values, missing, seconds, faults = {}, {}, {}, []
        for name, (reads, metric) in self.metrics.items():
            began = time.perf_counter()
            indices, first, second = read[reads]
            found, failed = ask(name, metric, first, second, together=name in self.together) if first else ([], {})
            faults += [Fault(name, indices[i], why) for i, why in failed.items()]
            seconds[name] = time.perf_counter() - began
            # A candidate without two sections is inconsistent, and no judge need be asked.
            column: list[float | None] = [-1.0 if reads == "sections" else None] * len(candidates)
            lacks = [False] * len(candidates)
            for i, value in zip(indices, found, strict=True):
                column[i], lacks[i] = value, value is None
            values[name], missing[name] = column, lacks
        all_asked()
        return Measured(values, missing, seconds, tuple(faults))

    def table(self, candidates: Sequence[str], references: Sequence[str]) -> Table:
        """Every metric as a column of a table, of the texts as written; None if a study has no value.

        Only the reference decides which studies have one, so that no candidate gains by what it leaves out: one without
        the Impression that its reference has agrees with it on nothing (0). A metric of a section needs that section of
        the reference, consistency needs both. With a reference that has neither, metrics of a section compare all that
        both sides describe.
        """
        measured = self(candidates, references)
        columns, faults = dict(measured.values), [*measured.faults]
        expected = [self.parse(reference) for reference in references]
        needed = {
            "findings": [e.findings not in ABSENT for e in expected],
            "impression": [e.impression not in ABSENT for e in expected],
        }
        needed["sections"] = [all(both) for both in zip(*needed.values(), strict=True)]
        for name, (reads, _) in self.metrics.items():
            if reads in needed:
                skipped = 0.0 if reads == "impression" else None
                values = ((skipped if value is None else value) for value in columns[name])
                cells = zip(values, needed[reads], strict=True)
                columns[name] = [value if defined else None for value, defined in cells]
        whole = [i for i, e in enumerate(expected) if e.described not in ABSENT and not (e.findings or e.impression)]
        described = self._described([candidates[i] for i in whole], [references[i] for i in whole])
        faults += [replace(fault, report=whole[fault.report]) for fault in described.faults]
        for name, column in described.values.items():
            for i, value in zip(whole, column, strict=True):
                columns[name][i] = value
        return Table(columns, tuple(faults))

    def _described(self, candidates: Sequence[str], references: Sequence[str]) -> Measured:
        """Metrics of one section, of all that both sides describe."""
        names = [name for name, (reads, _) in self.metrics.items() if reads in ("findings", "impression")]
        reads: Reads = "described"
        metrics = {name: (reads, self.metrics[name][1]) for name in names if references}
        return Metrics(self.parse, metrics, together=self.together)(candidates, references)

    def _read(self, candidates: Sequence[str], references: Sequence[str], *, respaced: bool) -> dict[Reads, _Pairs]:
        """What a metric is given, by what it reads."""
        written, expected = [self.parse(c) for c in candidates], [self.parse(r) for r in references]
        everything = range(len(candidates))
        sound = [i for i in everything if written[i].status == "ok"]
        described = [i for i in everything if expected[i].findings]
        concluded = [i for i in sound if expected[i].impression]
        said = [w.described or c for w, c in zip(written, candidates, strict=True)]
        findings = [w.findings if w.status == "ok" else text for w, text in zip(written, said, strict=True)]
        texts = spaced = list(candidates), list(references)
        if respaced:
            spaced = [" ".join(c.split()) for c in candidates], [" ".join(r.split()) for r in references]
        impressions = [written[i].impression for i in concluded], [expected[i].impression for i in concluded]
        return {
            "text": (everything, *texts),
            "report": (everything, *spaced),
            "described": (everything, said, [e.described for e in expected]),
            "findings": (described, [findings[i] for i in described], [expected[i].findings for i in described]),
            "impression": (concluded, *impressions),
            "sections": (sound, [written[i].findings for i in sound], [written[i].impression for i in sound]),
        }
