"""Findings that a report makes up, and findings that it leaves out."""

from collections.abc import Sequence

from radflow.data.phantoms import state_labels
from radflow.data.studies import Study
from radflow.rewards.types import Labeler


def finding_errors(labeler: Labeler, reports: Sequence[str], studies: Sequence[Study]) -> list[dict[str, int]]:
    """`hallucinated`, `dropped`, and their sum `wrong`: numbers of abnormal labels of each whole report.

    Against the true state where it is known (phantoms), which also has what the radiologist left out; otherwise
    against the reference report.
    """
    rows = []
    for report, study in zip(reports, studies, strict=True):
        said, true = _abnormal(labeler, labeler([report])[0]), _abnormal(labeler, _truth(labeler, study))
        rows.append({"hallucinated": len(said - true), "dropped": len(true - said), "wrong": len(said ^ true)})
    return rows


def _truth(labeler: Labeler, study: Study) -> set[str]:
    if study.state is None:
        return labeler([study.report])[0]
    return {label for label, present in state_labels(study.state).items() if present}


def _abnormal(labeler: Labeler, labels: set[str]) -> set[str]:
    return labels - labeler.ignorable - {labeler.normal}
