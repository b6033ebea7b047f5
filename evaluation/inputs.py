"""The files that a command is given, read and matched; everything that is left out is said."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from radflow.data.protocols import Pairs, Protocol, find_by_reference, is_whole, pair, reference_text
from radflow.data.readers.manifest import read_manifest
from radflow.data.report_files import Report, ReportFile, read_report_file
from radflow.data.sections import SectionParser, parse_sections
from radflow.data.studies import Study
from radflow.evaluation.measuring import MeasureConfig

MOST_NAMED = 5  # ids in a note; the JSON has all


@dataclass(frozen=True, kw_only=True)
class FilesConfig(MeasureConfig):
    """Which texts are compared, and with what."""

    references: Path | None = None
    """File or folder of references; else those of a manifest, or those in the file of the (first) predictions."""
    split: str = "all"
    """Only references of this split."""
    all: bool = False
    """List metrics that are not computed here too, with reasons and commands."""


def read_references(
    references: Path | None, predictions: Path, manifest: Path | None, *, split: str = "all"
) -> ReportFile:
    """References from their own file, else from the manifest, else from a file of predictions that holds both.

    Raises:
        ValueError: none of them has references, or none of the split.
    """
    given = references or manifest
    path = given or predictions
    found = read_report_file(path, "references")
    if given is None and found == read_report_file(predictions, "predictions"):
        wanted = "references in the file of the predictions, as in ReXrank's (report and model_prediction)"
        raise ValueError(f"{predictions}: expected {wanted}, got none; name a file of references")
    if split != "all":
        own = {study_id: report for study_id, report in found.items() if report.split == split}
        if not own:
            raise ValueError(f"{path}: expected references of split {split}, got none; choose another split")
        return replace(found, reports=own)
    return found


def read_pairs(
    predictions: Path, references: ReportFile, protocol: Protocol, parse: SectionParser = parse_sections
) -> Pairs:
    """Predictions matched with references; ValueError names the file of predictions if they do not fit."""
    written = read_report_file(predictions, "predictions")
    found: Mapping[str, tuple[str, ...]] = {}
    if any(report.reference for report in written.values()) and not written.keys() & references.keys():
        named, found = find_by_reference(written, references, parse)
    try:
        first, second = (replace(written, reports=named), references) if found else align(written, references)
        pairs = pair(first, second, protocol, parse)
    except ValueError as error:
        raise ValueError(f"{predictions}: {error}") from error
    notes = tuple(dict.fromkeys([*references.notes, *written.notes]))
    return replace(pairs, taken={**found, **pairs.taken}, notes=notes)


def align(written: ReportFile, expected: ReportFile) -> tuple[ReportFile, ReportFile]:
    """Predictions and references as they are or, if a file has no ids, paired row by row under the other's.

    Raises ValueError if they cannot be paired by row, since their numbers differ.
    """
    if not (written.numbered or expected.numbered):
        return written, expected
    if written.shuffled:
        raise ValueError("expected references with ids, as the rows of this file are shuffled, got rows without ids")
    if len(written) != len(expected):
        wanted = f"as many rows as references ({len(expected)}), since rows without ids are paired in order"
        raise ValueError(f"expected {wanted}, got {len(written)}; add ids, or choose the split of the references")
    ids = expected if written.numbered else written
    first, second = (replace(side, reports=dict(zip(ids, side.values(), strict=True))) for side in (written, expected))
    return first, second


def left_out(pairs: Pairs) -> dict[str, list[str]]:
    """Ids of studies that are not scored as they are, by reason."""
    said = {
        "references without a prediction, not scored": pairs.without_prediction,
        "predictions without a reference, not scored": pairs.without_reference,
        "references without the text that this protocol compares, not scored": pairs.undefined,
        "empty predictions, scored as empty texts": pairs.empty_predictions,
        **pairs.taken,
    }
    return {what: list(ids) for what, ids in said.items() if ids}


def notes_on(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """The same as lines of a table's foot."""
    named = {what: [*ids[:MOST_NAMED], *(["..."] if len(ids) > MOST_NAMED else [])] for what, ids in lists.items()}
    return [f"{len(lists[what])} {what}: {', '.join(shown)}" for what, shown in named.items()]


def training_texts(
    train: Path | None,
    manifest: Path | None,
    scored: Pairs,
    references: Path | None,
    protocol: Protocol,
    parse: SectionParser = parse_sections,
) -> tuple[dict[str, str] | None, list[str]]:
    """Training references by id, and notes on those left out; None if no file is given.

    Of a file with splits only the training split is read. Studies that are scored are never among them; ValueError if
    there is no other. Without ids all studies of the file of references count as scored.
    """
    path = train or manifest
    if path is None:
        return None, []
    read = read_report_file(path, "references")
    reports: Mapping[str, Report] = read
    if any(report.split for report in reports.values()):
        reports = {study_id: report for study_id, report in reports.items() if report.split == "train"}
    texts = {study_id: reference_text(report, protocol, parse) for study_id, report in reports.items()}
    same_file = references is not None and references.resolve() == path.resolve()
    own = {*(texts if same_file else ())} if read.numbered else texts.keys() & {*scored.ids}
    kept = {study_id: text for study_id, text in texts.items() if text is not None and study_id not in own}
    if not kept:
        raise ValueError(f"{path}: expected training references other than the studies that are scored, got none")
    whole = 0 if protocol == "rexrank" else sum(is_whole(reports[study_id], parse) for study_id in kept)
    counts = {
        "are scored themselves, and no training report": len(own),
        f"have no sections, and are taken as the {protocol}": whole,
        "have no ids, so that some may be scored themselves": len(kept) if read.numbered else 0,
    }
    notes = [f"{count} studies of {path.name} {what}" for what, count in counts.items() if count]
    return kept, [*(note for note in read.notes if note not in scored.notes and not read.numbered), *notes]


def studies_of(manifest: Path | None, image_root: Path | None = None) -> dict[str, Study]:
    """Studies of a manifest by id; none without one."""
    return {} if manifest is None else {study.id: study for study in read_manifest(manifest, image_root=image_root)}


def name_files(paths: Sequence[Path]) -> dict[str, Path]:
    """A name for each file of reports: its own, or its path if two files have one name; ValueError if they are one."""
    stems = Counter(path.stem for path in paths)
    names = [path.stem if stems[path.stem] == 1 else str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"expected different files of reports, got {', '.join(map(str, paths))}")
    return dict(zip(names, paths, strict=True))
