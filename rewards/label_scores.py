"""F1 of labels over a corpus of reports: what papers call CheXbert F1. Not a reward: that is `rewards.expert`.

Say which: 14 labels or 5, micro or macro, and how uncertain labels count (`rewards.chexbert.positive_labels`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewards.chexpert_rules import LABELS

FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")


@dataclass(frozen=True)
class LabelScores:
    """Scores of binary labels over all reports, each in [0, 1]; an undefined one is 0, as in scikit-learn."""

    micro: float  # over all cells of reports x labels
    macro: float  # mean of the labels' F1
    weighted: float  # mean of the labels' F1, weighted by how many references have the label
    example: float  # mean of the reports' F1; two reports without labels count 0 here, 1 in rewards.expert
    micro_precision: float
    micro_recall: float
    exact: float  # share of reports all of whose labels agree
    per_label: dict[str, float]  # F1


def label_scores(
    candidates: Sequence[Sequence[int]], references: Sequence[Sequence[int]], *, only: Sequence[str] = LABELS
) -> LabelScores:
    """Scores of the labels named in `only`.

    Args:
        candidates: [N][14] of 0 and 1, in the order of LABELS.
        references: the same for the reference reports.

    Raises:
        ValueError: no report, or not two equal tables of 14 labels, 0 or 1.
    """
    hypothesis, target = (np.asarray(side, dtype=np.int64) for side in (candidates, references))
    if hypothesis.shape != target.shape or hypothesis.ndim != 2 or hypothesis.shape[1] != len(LABELS):
        raise ValueError(f"expected two tables of N x {len(LABELS)} labels, got {hypothesis.shape} and {target.shape}")
    if not hypothesis.size or not np.isin((hypothesis, target), (0, 1)).all():
        raise ValueError("expected at least one report, and labels of 0 and 1 only")
    columns = [LABELS.index(label) for label in only]
    hypothesis, target = hypothesis[:, columns], target[:, columns]
    both = hypothesis * target
    per_label = _f1(both.sum(0), hypothesis.sum(0), target.sum(0))
    return LabelScores(
        micro=float(_f1(both.sum(), hypothesis.sum(), target.sum())),
        macro=float(per_label.mean()),
        weighted=float(_ratio(per_label @ target.sum(0), target.sum())),
        example=float(_f1(both.sum(1), hypothesis.sum(1), target.sum(1)).mean()),
        micro_precision=float(_ratio(both.sum(), hypothesis.sum())),
        micro_recall=float(_ratio(both.sum(), target.sum())),
        exact=float((hypothesis == target).all(1).mean()),
        per_label=dict(zip(only, per_label.tolist(), strict=True)),
    )


def _f1(both: np.ndarray, hypothesis: np.ndarray, target: np.ndarray) -> np.ndarray:
    return _ratio(2 * both, hypothesis + target)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)
