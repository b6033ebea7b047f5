"""Impression expert: agreement of the labels of two Impressions (paper eq. 6 and 7)."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

Labels = Callable[[Sequence[str]], list[set[str]]]


class LabelF1:
    """F1 of the positive labels of candidate and reference, per report, in [0, 1].

    The paper asks for the macro F1 of binarised labels. For a single report most labels are absent on both sides, where
    a per-label F1 is undefined; this is the example-based form, 2 |A and B| / (|A| + |B|). Two reports without any
    positive label agree completely and score 1.

    Which labels are positive is the labeler's rule: an uncertain one is, for the rule labelers always, for CheXbert
    unless `chexbert.uncertain` says otherwise.

    Args:
        labeler: texts -> the positive labels of each.
        name: of the metric; it says whose labels they are.
    """

    def __init__(self, labeler: Labels, name: str = "label_f1_rules") -> None:
        self.labeler, self.name = labeler, name

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = zip(self.labeler(candidates), self.labeler(references), strict=True)
        return [self.agreement(a, b) for a, b in pairs]

    @staticmethod
    def agreement(first: AbstractSet[str], second: AbstractSet[str]) -> float:
        """Dice overlap of two label sets."""
        return 2 * len(first & second) / (len(first) + len(second)) if first or second else 1.0
