"""Which text of a report is scored: all of it, as ReXrank does, or one section."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from radflow.data.report_files import Report
from radflow.data.sections import SectionParser, parse_sections, render_report

Protocol = Literal["rexrank", "findings", "impression"]
NOTHING = "None"  # the word that ReXrank's script writes for a missing section


@dataclass(frozen=True)
class Pairs:
    """Predictions and references of the studies that both sides have, and what was left out and why."""

    ids: tuple[str, ...]  # in the order of the references
    predictions: tuple[str, ...]
    references: tuple[str, ...]
    without_prediction: tuple[str, ...]  # ids of references that no prediction belongs to
    without_reference: tuple[str, ...]  # ids of predictions that no reference belongs to
    empty_predictions: tuple[str, ...]  # scored, as the empty text
    undefined: tuple[str, ...]  # ids whose reference lacks what the protocol compares


def pair(
    predictions: Mapping[str, Report],
    references: Mapping[str, Report],
    protocol: Protocol,
    parse: SectionParser = parse_sections,
) -> Pairs:
    """Match two files by study id. Raises ValueError if no study is left to score."""
    shared = [study_id for study_id in references if study_id in predictions]
    expected = {study_id: reference_text(references[study_id], protocol, parse) for study_id in shared}
    defined = {study_id: text for study_id, text in expected.items() if text is not None}
    if not defined and shared:
        got = f"got none among {len(shared)} studies"
        raise ValueError(f"expected references with what protocol {protocol} compares, {got}")
    if not defined:
        theirs, ours = (", ".join(list(reports)[:3]) for reports in (predictions, references))
        got = f"predictions have {theirs}, references {ours}"
        same = {_bare(name) for name in predictions} & {_bare(name) for name in references}
        changed = "those of one file are floats or lost their zeros, as in a spreadsheet or merge: keep them as text"
        advice = changed if same else "rename the ids of one file"
        raise ValueError(f"expected study ids that both files have, got none: {got}; {advice}")
    written = {study_id: prediction_text(predictions[study_id], protocol, parse) for study_id in defined}
    return Pairs(
        ids=tuple(defined),
        predictions=tuple(written.values()),
        references=tuple(defined.values()),
        without_prediction=tuple(study_id for study_id in references if study_id not in predictions),
        without_reference=tuple(study_id for study_id in predictions if study_id not in references),
        empty_predictions=tuple(study_id for study_id, text in written.items() if not text.strip()),
        undefined=tuple(study_id for study_id in shared if study_id not in defined),
    )


def _bare(name: str) -> str:
    """An id without what a spreadsheet adds and takes away: 0012 -> 12.0."""
    return name.removesuffix(".0").lstrip("0")


def reference_text(report: Report, protocol: Protocol, parse: SectionParser = parse_sections) -> str | None:
    """What a prediction is compared with; None if this reference has no such text.

    rexrank: "Findings: F Impression: I" of the sections, the word None for one that is missing; a reference that the
    file gives in one piece stays as it is, untouched. findings, impression: that section alone.
    """
    if protocol == "rexrank":
        return _joined(report) if report.divided else report.text
    return _section(report, protocol, parse)


def prediction_text(report: Report, protocol: Protocol, parse: SectionParser = parse_sections) -> str:
    """What is scored; the empty text if the system wrote nothing.

    A prediction without any section header is one section already, and counts as what the protocol asks for.
    """
    if protocol == "rexrank":
        return report.text if report.text is not None else _joined(report) if report.divided else ""
    if report.text is not None:
        sections = parse(report.text)
        if not (sections.findings or sections.impression or sections.other):
            return report.text
    return _section(report, protocol, parse) or ""


def _section(report: Report, name: Literal["findings", "impression"], parse: SectionParser) -> str | None:
    if report.divided or report.text is None:
        return report.findings if name == "findings" else report.impression
    sections = parse(report.text)
    text = sections.findings if name == "findings" else sections.impression
    return None if text in ("", NOTHING) else text


def _joined(report: Report) -> str:
    findings, impression = (NOTHING if text is None else text for text in (report.findings, report.impression))
    return render_report(findings, impression)
