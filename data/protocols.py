"""Which text of a report is scored: the whole of it as ReXrank has it, or one section."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from data.report_files import Report
from data.sections import parse_sections

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


def pair(predictions: Mapping[str, Report], references: Mapping[str, Report], protocol: Protocol) -> Pairs:
    """Match two files by study id.

    Raises:
        ValueError: not one study is left to score.
    """
    shared = [study_id for study_id in references if study_id in predictions]
    expected = {study_id: reference_text(references[study_id], protocol) for study_id in shared}
    ids = tuple(study_id for study_id in shared if expected[study_id] is not None)
    if not ids:
        raise ValueError(_nothing_in_common(predictions, references, shared, protocol))
    written = {study_id: prediction_text(predictions[study_id], protocol) for study_id in ids}
    return Pairs(
        ids=ids,
        predictions=tuple(written[study_id] for study_id in ids),
        references=tuple(str(expected[study_id]) for study_id in ids),
        without_prediction=tuple(study_id for study_id in references if study_id not in predictions),
        without_reference=tuple(study_id for study_id in predictions if study_id not in references),
        empty_predictions=tuple(study_id for study_id in ids if not written[study_id].strip()),
        undefined=tuple(study_id for study_id in shared if expected[study_id] is None),
    )


def reference_text(report: Report, protocol: Protocol) -> str | None:
    """What a prediction is compared with; None where this reference has no such text.

    rexrank: "Findings: F Impression: I" of the sections, the word None for one that is missing; a reference that the
    file gives in one piece stays as it is, untouched. findings, impression: that section alone.
    """
    if protocol == "rexrank":
        if report.findings is not None or report.impression is not None:
            return _joined(report)
        return report.text
    return _section(report, protocol)


def prediction_text(report: Report, protocol: Protocol) -> str:
    """What is scored; the empty text where the system wrote nothing.

    A prediction without any section header is one section already, and counts as what the protocol asks for.
    """
    if protocol == "rexrank":
        if report.text is not None:
            return report.text
        return "" if report.missing else _joined(report)
    if report.text is not None and not _has_header(report.text):
        return report.text
    return _section(report, protocol) or ""


def _section(report: Report, name: Literal["findings", "impression"]) -> str | None:
    if report.findings is not None or report.impression is not None or report.text is None:
        return report.findings if name == "findings" else report.impression
    sections = parse_sections(report.text)
    text = sections.findings if name == "findings" else sections.impression
    return None if text in ("", NOTHING) else text


def _has_header(text: str) -> bool:
    sections = parse_sections(text)
    return bool(sections.findings or sections.impression or sections.other)


def _joined(report: Report) -> str:
    findings = NOTHING if report.findings is None else report.findings
    impression = NOTHING if report.impression is None else report.impression
    return f"Findings: {findings} Impression: {impression}"


def _nothing_in_common(
    predictions: Mapping[str, Report], references: Mapping[str, Report], shared: list[str], protocol: Protocol
) -> str:
    if shared:
        return f"expected references with what protocol {protocol} compares, got none among {len(shared)} studies"
    return (
        f"expected study ids that both files have, got none: predictions have {', '.join(list(predictions)[:3])}, "
        f"references {', '.join(list(references)[:3])}; rename the ids of one file"
    )
