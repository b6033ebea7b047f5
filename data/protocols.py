"""Which text of a report is scored: all of it, as ReXrank does, or one section."""

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from radflow.data.readers.tables import escape_control
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
    taken: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # how texts are taken -> ids
    notes: tuple[str, ...] = ()  # on how the files were read


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
        theirs, ours = (", ".join(map(escape_control, list(reports)[:3])) for reports in (predictions, references))
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
        taken=_taken(predictions, references, defined, protocol, parse),
    )


def _taken(
    predictions: Mapping[str, Report],
    references: Mapping[str, Report],
    ids: Iterable[str],
    protocol: Protocol,
    parse: SectionParser,
) -> dict[str, tuple[str, ...]]:
    """Ids of the texts without sections, by how they are taken."""
    if protocol == "rexrank":
        sides = {"references without sections, compared as a whole, without consistency": references}
    else:
        files = {"predictions": predictions, "references": references}
        sides = {f"{name} without sections, taken as the {protocol}": side for name, side in files.items()}
    found = {what: tuple(i for i in ids if is_whole(side[i], parse)) for what, side in sides.items()}
    return {what: names for what, names in found.items() if names}


def find_by_reference(
    predictions: Mapping[str, Report], references: Mapping[str, Report], parse: SectionParser = parse_sections
) -> tuple[dict[str, Report], dict[str, tuple[str, ...]]]:
    """Predictions under the ids of the references with the words that are next to them, and these ids by how sure.

    Studies with the same reference get its predictions in order: sums over studies do not depend on that. A prediction
    without a study keeps its name.
    """
    known = defaultdict[str, deque[str]](deque)
    for study_id, report in references.items():
        known[_words(report, parse)].append(study_id)
    repeated = {study_id for ids in known.values() if len(ids) > 1 for study_id in ids}
    named, found = {}, []
    for name, report in predictions.items():
        ids = known[_words(Report(report.reference), parse)] if report.reference else None
        if ids:
            found.append(ids[0])
        named[ids.popleft() if ids else name] = report
    sure = {
        "found by the reference in the predictions' file, as no id is in both": tuple(found),
        "of these with a reference that other studies have too, taken in order": tuple(
            i for i in found if i in repeated
        ),
    }
    return named, {what: ids for what, ids in sure.items() if ids}


def _words(report: Report, parse: SectionParser) -> str:
    """Those of both sections, or of all of the text if it has none; a missing section has no words."""
    parts = [_section(report, "findings", parse), _section(report, "impression", parse)]
    if is_whole(report, parse) or not any(parts):
        parts = [report.text]
    return " ".join(re.findall(r"\w+", " ".join(part for part in parts if part).lower()))


def _bare(name: str) -> str:
    """An id without what a spreadsheet adds and takes away: 0012 -> 12.0."""
    return name.removesuffix(".0").lstrip("0")


def reference_text(report: Report, protocol: Protocol, parse: SectionParser = parse_sections) -> str | None:
    """What a prediction is compared with; None if this reference has no such text.

    rexrank: "Findings: F Impression: I" of the sections, the word None for one that is missing; a reference that the
    file gives in one piece stays as it is, untouched. findings, impression: that section alone, or the whole text if it
    has neither.
    """
    if protocol == "rexrank":
        return _joined(report) if report.divided else report.text
    return _section(report, protocol, parse)


def prediction_text(report: Report, protocol: Protocol, parse: SectionParser = parse_sections) -> str:
    """What is scored; the empty text if the system wrote nothing.

    A prediction without Findings and Impression is one section already, and counts as what the protocol asks for.
    """
    if protocol == "rexrank":
        return report.text if report.text is not None else _joined(report) if report.divided else ""
    return _section(report, protocol, parse) or ""


def _section(report: Report, name: Literal["findings", "impression"], parse: SectionParser) -> str | None:
    if report.divided or report.text is None:
        return report.findings if name == "findings" else report.impression
    sections = parse(report.text)
    text = sections.findings if name == "findings" else sections.impression
    if sections.undivided:
        text = report.text
    return None if text in ("", NOTHING) else text


def is_whole(report: Report, parse: SectionParser) -> bool:
    """Whether the report comes in one piece, without sections."""
    return report.text is not None and not report.divided and parse(report.text).undivided


def _joined(report: Report) -> str:
    findings, impression = (NOTHING if text is None else text for text in (report.findings, report.impression))
    return render_report(findings, impression)
