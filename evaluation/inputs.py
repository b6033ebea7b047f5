"""The files that a command is given, read and matched; everything that is left out is said."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.protocols import Pairs, Protocol, pair, reference_text
from data.readers.manifest import read_manifest
from data.report_files import Report, read_report_file
from data.studies import Study

MOST_NAMED = 5  # ids in a note; the JSON has all


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
        raise ValueError(
            f"{predictions}: expected references beside the predictions, as in ReXrank's files (report beside "
            "model_prediction), got none; give --references FILE"
        )
    if split != "all":
        found = {study_id: report for study_id, report in found.items() if report.split == split}
        if not found:
            raise ValueError(f"{path}: expected references of split {split}, got none; correct --split")
    return found


def read_pairs(predictions: Path, references: Mapping[str, Report], protocol: Protocol) -> Pairs:
    """Predictions matched with references.

    Raises:
        ValueError: the files do not fit; names the file of predictions.
    """
    try:
        return pair(read_report_file(predictions, "predictions"), references, protocol)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(predictions) in message else f"{predictions}: {message}") from error


def left_out(pairs: Pairs) -> dict[str, list[str]]:
    """Ids of studies that are not scored as they stand, by what is wrong with them."""
    said = {
        "references without a prediction, not scored": pairs.without_prediction,
        "predictions without a reference, not scored": pairs.without_reference,
        "references without the text that this protocol compares, not scored": pairs.undefined,
        "empty predictions, scored as empty texts": pairs.empty_predictions,
    }
    return {what: list(ids) for what, ids in said.items() if ids}


def notes_on(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """The same as lines of a table's foot."""
    lines = []
    for what, ids in lists.items():
        more = ", ..." if len(ids) > MOST_NAMED else ""
        lines.append(f"{len(ids)} {what}: {', '.join(ids[:MOST_NAMED])}{more}")
    return lines


def training_texts(train: Path | None, manifest: Path | None, scored: Sequence[str], protocol: Protocol):
    """Training references by id, and a note on those left out; None where no file is given.

    Of a file with splits only the training split is read. Studies that are scored are never among them.

    Raises:
        ValueError: the file has no training reference.
    """
    path = train or manifest
    if path is None:
        return None, []
    reports = read_report_file(path, "references")
    if any(report.split for report in reports.values()):
        reports = {study_id: report for study_id, report in reports.items() if report.split == "train"}
    texts = {study_id: reference_text(report, protocol) for study_id, report in reports.items()}
    own = set(scored)
    kept = {study_id: text for study_id, text in texts.items() if text is not None and study_id not in own}
    if not kept:
        raise ValueError(f"{path}: expected training references other than the studies that are scored, got none")
    same = sum(study_id in own for study_id in texts)
    return kept, [f"{same} studies of {path.name} are scored themselves, and no training report"] if same else []


def studies_of(manifest: Path | None, image_root: Path | None = None) -> dict[str, Study]:
    """Studies of a manifest by id; none without one."""
    return {} if manifest is None else {study.id: study for study in read_manifest(manifest, image_root=image_root)}
