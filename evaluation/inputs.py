"""The files that a command is given, read and matched; everything that is left out is said."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from radflow.data.protocols import Pairs, Protocol, pair, reference_text
from radflow.data.readers.manifest import read_manifest
from radflow.data.report_files import Report, read_report_file
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
) -> dict[str, Report]:
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
        found = {study_id: report for study_id, report in found.items() if report.split == split}
        if not found:
            raise ValueError(f"{path}: expected references of split {split}, got none; choose another split")
    return found


def read_pairs(
    predictions: Path, references: Mapping[str, Report], protocol: Protocol, parse: SectionParser = parse_sections
) -> Pairs:
    """Predictions matched with references; ValueError names the file of predictions if they do not fit."""
    written = read_report_file(predictions, "predictions")
    try:
        return pair(written, references, protocol, parse)
    except ValueError as error:
        raise ValueError(f"{predictions}: {error}") from error


def left_out(pairs: Pairs) -> dict[str, list[str]]:
    """Ids of studies that are not scored as they are, by reason."""
    said = {
        "references without a prediction, not scored": pairs.without_prediction,
        "predictions without a reference, not scored": pairs.without_reference,
        "references without the text that this protocol compares, not scored": pairs.undefined,
        "empty predictions, scored as empty texts": pairs.empty_predictions,
    }
    return {what: list(ids) for what, ids in said.items() if ids}


def notes_on(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """The same as lines of a table's foot."""
    named = {what: [*ids[:MOST_NAMED], *(["..."] if len(ids) > MOST_NAMED else [])] for what, ids in lists.items()}
    return [f"{len(lists[what])} {what}: {', '.join(shown)}" for what, shown in named.items()]


def training_texts(
    train: Path | None,
    manifest: Path | None,
    scored: Sequence[str],
    protocol: Protocol,
    parse: SectionParser = parse_sections,
) -> tuple[dict[str, str] | None, list[str]]:
    """Training references by id, and a note on those left out; None if no file is given.

    Of a file with splits only the training split is read. Studies that are scored are never among them; ValueError if
    there is no other.
    """
    path = train or manifest
    if path is None:
        return None, []
    reports = read_report_file(path, "references")
    if any(report.split for report in reports.values()):
        reports = {study_id: report for study_id, report in reports.items() if report.split == "train"}
    texts = {study_id: reference_text(report, protocol, parse) for study_id, report in reports.items()}
    own = set(scored)
    kept = {study_id: text for study_id, text in texts.items() if text is not None and study_id not in own}
    if not kept:
        raise ValueError(f"{path}: expected training references other than the studies that are scored, got none")
    same = sum(study_id in own for study_id in texts)
    return kept, [f"{same} studies of {path.name} are scored themselves, and no training report"] if same else []


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
