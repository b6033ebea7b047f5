"""Findings that a report makes up, and findings that it leaves out."""

from collections.abc import Sequence

from radflow.data.phantoms import state_labels
from radflow.data.studies import Study
from radflow.rewards.types import Labeler

MADE_UP, MISSED = "made_up_findings", "missed_findings"


def finding_errors(labeler: Labeler, reports: Sequence[str], studies: Sequence[Study]) -> dict[str, list[float | None]]:
    """MADE_UP and MISSED: for each study, the number of abnormal labels of the whole report that are not true, and of
    true ones that it does not assert.

    True is the state if it is known (phantoms), which also has what the radiologist left out; otherwise the reference.
    """
    errors: dict[str, list[float | None]] = {MADE_UP: [], MISSED: []}
    for labels, study in zip(labeler(reports), studies, strict=True):
        said, true = _abnormal(labeler, labels), _abnormal(labeler, _truth(labeler, study))
        errors[MADE_UP].append(float(len(said - true)))
        errors[MISSED].append(float(len(true - said)))
    return errors


def _truth(labeler: Labeler, study: Study) -> set[str]:
    if study.state is None:
        return labeler([study.report])[0]
    return {label for label, present in state_labels(study.state).items() if present}


def _abnormal(labeler: Labeler, labels: set[str]) -> set[str]:
    return labels - labeler.ignorable - {labeler.normal}
