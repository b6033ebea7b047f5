"""The metrics of a table: which cells of a study each is made of, and the statistic over studies.

Every statistic is a function of sums over studies, so that a bootstrap resample costs one product. What a metric means:
docs/evaluate.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rewards.chexpert_rules import LABELS
from rewards.label_scores import FIVE
from rewards.statistics import Interval, Statistic, bootstrap, mean_of, with_ones

# name -> one row a study: [N] float64 with NaN where the reference does not define the value, or, for labels, [N, 42]
# of 0 and 1: of each label whether both sides have it, the prediction, the reference.
Cells = dict[str, np.ndarray]


@dataclass(frozen=True)
class TableMetric:
    """One row of a table."""

    name: str
    label: str
    cells: str  # what it is computed from, a key of Cells
    better: Literal["higher", "lower"] = "higher"
    statistic: Statistic = mean_of
    labels: tuple[str, ...] = ()  # where cells are labels: those that count

    def columns(self, cells: Mapping[str, np.ndarray], places: np.ndarray | None = None) -> np.ndarray:
        """[n, K], what each study that defines the metric adds to the sums.

        Args:
            places: only these studies.
        """
        values = cells[self.cells]
        values = values if places is None else values[places]
        if self.labels:
            chosen = [3 * LABELS.index(label) + kind for label in self.labels for kind in range(3)]
            return values[:, chosen].astype(np.float64)
        return with_ones(values[~np.isnan(values)]) if (~np.isnan(values)).any() else np.empty((0, 2))

    def defined(self, cells: Mapping[str, np.ndarray]) -> np.ndarray:
        """[N] bool, the studies that the metric is over."""
        values = cells[self.cells]
        return np.ones(len(values), dtype=bool) if self.labels else ~np.isnan(values)

    def value(self, cells: Mapping[str, np.ndarray], places: np.ndarray | None = None) -> float | None:
        """The statistic; None where no study defines it."""
        columns = self.columns(cells, places)
        return float(self.statistic(columns.sum(0))) if len(columns) else None

    def interval(self, cells: Mapping[str, np.ndarray], *, num_resamples: int, seed: int) -> Interval | None:
        """The statistic with its bootstrap interval; None where no study defines it."""
        columns = self.columns(cells)
        if not len(columns):
            return None
        if self.statistic is inverse_of_mean:
            return inverted(bootstrap(columns, mean_of, num_resamples=num_resamples, seed=seed))
        return bootstrap(columns, self.statistic, num_resamples=num_resamples, seed=seed)


def inverse_of_mean(sums: np.ndarray) -> np.ndarray:
    """1 / mean of columns (value, 1); never the mean of inverses."""
    return sums[..., 1] / sums[..., 0]


def inverted(interval: Interval) -> Interval:
    """Interval of 1 / statistic; without bounds (NaN) where that of the statistic holds 0: 1/x jumps there."""
    if interval.low <= 0 <= interval.high:
        return Interval(1 / interval.mean if interval.mean else np.nan, np.nan, np.nan)
    return Interval(1 / interval.mean, 1 / interval.high, 1 / interval.low)


def micro_f1(sums: np.ndarray) -> np.ndarray:
    """F1 over all cells of reports and labels; columns as in `TableMetric.columns`."""
    return _f1(sums[..., 0::3].sum(-1), sums[..., 1::3].sum(-1), sums[..., 2::3].sum(-1))


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """Mean of the labels' F1; a label that neither side has counts 0, as in scikit-learn."""
    return _f1(sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]).mean(-1)


def _f1(both: np.ndarray, predicted: np.ndarray, expected: np.ndarray) -> np.ndarray:
    total = predicted + expected
    return np.where(total > 0, 2 * both / np.maximum(total, 1), 0.0)


def label_cells(predicted: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> np.ndarray:
    """[N, 42] int8 of two [N][14] tables of 0 and 1."""
    first, second = (np.asarray(side, dtype=np.int8).reshape(-1, len(LABELS)) for side in (predicted, expected))
    return np.stack([first * second, first, second], -1).reshape(len(first), -1)


def per_label_f1(cells: np.ndarray) -> dict[str, tuple[float, int]]:
    """label -> (F1, number of references that have it) of label cells."""
    sums = cells.sum(0, dtype=np.int64)
    scores = _f1(sums[0::3], sums[1::3], sums[2::3])
    return {label: (float(scores[i]), int(sums[3 * i + 2])) for i, label in enumerate(LABELS)}


def _label_metrics(prefix: str, title: str, cells: str) -> list[TableMetric]:
    kinds: dict[str, Callable] = {"micro": micro_f1, "macro": macro_f1}
    return [
        TableMetric(
            f"{prefix}_{kind}_f1_{len(labels)}", f"{title} {kind} F1 ({len(labels)})", cells, "higher", f, labels
        )
        for labels in (LABELS, FIVE)
        for kind, f in kinds.items()
    ]  # fmt: skip


METRICS: tuple[TableMetric, ...] = (
    TableMetric("bleu2", "BLEU-2", "bleu2"),
    TableMetric("bertscore", "BERTScore", "bertscore"),
    TableMetric("sembscore", "SembScore", "sembscore"),
    TableMetric("radgraph_f1_rexrank", "RadGraph F1 (ReXrank)", "radgraph_f1_rexrank"),
    TableMetric("radcliq_v0", "RadCliQ-v0", "radcliq_v0", "lower"),
    TableMetric("radcliq_v1", "RadCliQ-v1", "radcliq_v1", "lower"),
    TableMetric("inverse_radcliq_v1", "1/RadCliQ-v1", "radcliq_v1", "higher", inverse_of_mean),
    TableMetric("rouge_l", "ROUGE-L", "rouge_l"),
    TableMetric("radgraph_f1_partial", "RadGraph F1 (partial)", "radgraph_f1_partial"),
    *_label_metrics("chexbert", "CheXbert", "labels_chexbert"),
    *_label_metrics("rules", "rule labels", "labels_rules"),
    TableMetric("keyword_f1_rules", "KeyWordMatch (rules)", "keyword_f1_rules"),
    TableMetric("label_f1_rules", "label F1 (rules)", "label_f1_rules"),
    TableMetric("entity_f1_rules", "entity F1 (rules)", "entity_f1_rules"),
    TableMetric("consistency_rules", "consistency (rules)", "consistency_rules"),
)
BY_NAME = {metric.name: metric for metric in METRICS}
CELLS = tuple(dict.fromkeys(metric.cells for metric in METRICS))
LABEL_CELLS = frozenset(metric.cells for metric in METRICS if metric.labels)
