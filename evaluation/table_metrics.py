"""The rows of a table: the cells of a study that each is made of, and the statistic over studies.

Every statistic is a function of sums over studies, so that a bootstrap resample costs one product. Values per report,
their labels and which way is better are those of `radflow.rewards.registry`. What a metric means: docs/evaluate.md.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from radflow.rewards.metrics.captions import meteor
from radflow.rewards.metrics.lexical import ORDERS
from radflow.rewards.metrics.srrbert import LABELS as SRR_LABELS
from radflow.rewards.registry import METRICS, label_of
from radflow.rewards.rules.chexpert_rules import LABELS
from radflow.rewards.statistics import Interval, Statistic, bootstrap, bootstrap_mean, mean_of

# name -> one row per study: [N] float64 with NaN if the reference does not define the value; for L labels [N, 3 L] of 0
# and 1: of each label whether both sides have it, the prediction, the reference; or [N, K] counts, NaN for none.
Cells = dict[str, np.ndarray]

FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
LABEL_CELLS = ("labels_chexbert", "labels_rules", "labels_srrbert")
COUNT_CELLS = ("bleu_counts", "meteor_counts")  # of BLEU and METEOR over the corpus
# Metrics of the registry that tables show. RadGraph F1 of the Findings and label F1 by CheXbert are parts of rewards,
# and a judge is not asked.
PER_REPORT = (
    *("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "cider", "rouge_l"),
    *("bertscore", "sembscore", "radgraph_f1_rexrank", "radcliq_v0", "radcliq_v1"),
    *("radgraph_f1_partial", "keyword_f1_rules", "label_f1_rules", "entity_f1_rules", "consistency_rules"),
    *("ratescore", "temporal_f1"),
)


@dataclass(frozen=True)
class TableMetric:
    """One row of a table."""

    name: str
    label: str
    cells: str  # what it is computed from, a key of Cells
    better: Literal["higher", "lower"] = "higher"
    statistic: Statistic = mean_of
    labels: tuple[int, ...] = ()  # if cells are labels: indices of those that count

    def columns(self, cells: Mapping[str, np.ndarray], indices: np.ndarray | None = None) -> np.ndarray:
        """[n, K], what each study that defines the metric (of `indices`) adds to the sums."""
        columns = self._added(cells[self.cells] if indices is None else cells[self.cells][indices])
        return columns[~np.isnan(columns).any(1)]

    def defined(self, cells: Mapping[str, np.ndarray]) -> np.ndarray:
        """[N] bool, the studies that the metric is over; none without such cells, or if neither side has a label."""
        if self.cells not in cells:
            return np.zeros(0, dtype=bool)
        added = self._added(cells[self.cells])
        return ~np.isnan(added).any(1) & (not self.labels or added.any())

    def _added(self, values: np.ndarray) -> np.ndarray:
        """[N, K], what the cells of each study add to the sums; NaN if they do not define the metric."""
        if self.labels:
            values = values[:, [3 * label + kind for label in self.labels for kind in range(3)]]
        return values.astype(np.float64) if values.ndim == 2 else np.stack([values, np.ones_like(values)], 1)

    def within_one(self, cells: Mapping[str, np.ndarray]) -> bool:
        """Whether all values are within -1 and 1: of each study, or over the corpus if no study has one."""
        values = cells[self.cells] if cells[self.cells].ndim == 1 else np.array([self.value(cells)], dtype=np.float64)
        return bool((np.abs(values[~np.isnan(values)]) <= 1).all())

    def value(self, cells: Mapping[str, np.ndarray], indices: np.ndarray | None = None) -> float | None:
        """The statistic; None if no study defines it."""
        columns = self.columns(cells, indices)
        value = float(self.statistic(columns.sum(0))) if len(columns) else np.nan
        return None if np.isnan(value) else value

    def interval(self, cells: Mapping[str, np.ndarray], *, num_resamples: int, seed: int) -> Interval | None:
        """The statistic with its bootstrap interval; None if no study defines it."""
        if not self.defined(cells).any():
            return None
        inverse = self.statistic is inverse_of_mean
        statistic = mean_of if inverse else self.statistic
        columns, options = self.columns(cells), {"num_resamples": num_resamples, "seed": seed}
        if statistic is mean_of:
            interval = bootstrap_mean(columns[:, 0], **options)
        else:
            interval = bootstrap(columns, statistic, **options)
        return inverted(interval) if inverse else interval


def available(rows: Sequence[TableMetric], cells: Mapping[str, np.ndarray]) -> list[TableMetric]:
    """Rows that have a value."""
    return [row for row in rows if row.defined(cells).any()]


def inverse_of_mean(sums: np.ndarray) -> np.ndarray:
    """1 / mean of columns (value, 1); never the mean of inverses."""
    return sums[..., 1] / sums[..., 0]


def inverted(interval: Interval) -> Interval:
    """Interval of 1 / statistic; without bounds (NaN) if that of the statistic holds 0: 1/x jumps there."""
    if interval.low <= 0 <= interval.high:
        return Interval(1 / interval.mean if interval.mean else np.nan, np.nan, np.nan)
    return Interval(1 / interval.mean, 1 / interval.high, 1 / interval.low)


def corpus_bleu(sums: np.ndarray, order: int) -> np.ndarray:
    """Corpus BLEU, in [0, 1], of sums [..., 10] of `lexical.ngram_counts`: no smoothing, 0 without a common n-gram.

    Source: Papineni et al., BLEU, ACL 2002, as in pycocoevalcap, which published values of IU X-ray are computed with.
    """
    matches, totals, candidate, reference = sums[..., :order], sums[..., 4 : 4 + order], sums[..., 8], sums[..., 9]
    with np.errstate(divide="ignore"):  # the log of 0
        logs = np.log(matches / np.maximum(totals, 1)).mean(-1)
    return np.exp(logs + np.minimum(0, 1 - reference / np.maximum(candidate, 1)))


def micro_f1(sums: np.ndarray) -> np.ndarray:
    """F1 over all cells of reports and labels, NaN if there is no label; columns as in `TableMetric.columns`."""
    return _f1(sums[..., 0::3].sum(-1), sums[..., 1::3].sum(-1), sums[..., 2::3].sum(-1))


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """Mean of the labels' F1, those left out that neither side has in any of these studies."""
    scores = _label_f1(sums)
    with np.errstate(invalid="ignore"):  # no label is left
        return np.nansum(scores, -1) / (~np.isnan(scores)).sum(-1)


def _label_f1(sums: np.ndarray) -> np.ndarray:
    return _f1(sums[..., 0::3], sums[..., 1::3], sums[..., 2::3])


def weighted_f1(sums: np.ndarray) -> np.ndarray:
    """Mean of the labels' F1, weighted by the references that have each; 0 if none has any, as in scikit-learn."""
    expected = sums[..., 2::3]
    scores = np.nan_to_num(_label_f1(sums))  # of a label that neither side has, and its weight is 0
    return (scores * expected).sum(-1) / np.maximum(expected.sum(-1), 1)


def _f1(both: np.ndarray, predicted: np.ndarray, expected: np.ndarray) -> np.ndarray:
    total = predicted + expected
    return np.where(total > 0, 2 * both / np.maximum(total, 1), np.nan)


def notes_on_labels(rows: Sequence[TableMetric], cells: Mapping[str, np.ndarray]) -> list[str]:
    """Which macro F1 leave labels out, and their values as published: scikit-learn counts such a label 0."""
    notes = []
    for row in available([row for row in rows if row.statistic is macro_f1], cells):
        scores = _label_f1(row.columns(cells).sum(0))
        if absent := int(np.isnan(scores).sum()):
            published = f"if they count 0, as in scikit-learn, it is {np.nan_to_num(scores).mean():.3f}"
            notes.append(f"{row.label}: {absent} labels that neither side has are left out; {published}")
    return notes


def label_cells(predicted: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> np.ndarray:
    """[N, 3 L] int8 of two [N][L] tables of 0 and 1."""
    first, second = (np.asarray(side, dtype=np.int8) for side in (predicted, expected))
    return np.stack([first * second, first, second], -1).reshape(len(first), -1)


def per_label_f1(cells: np.ndarray) -> list[tuple[float, int]]:
    """(F1, number of references that have it) of each label of label cells; F1 is NaN if neither side has it."""
    sums = cells.sum(0, dtype=np.int64)
    return [(float(score), int(count)) for score, count in zip(_label_f1(sums), sums[2::3], strict=True)]


def table_metrics(labels: Sequence[str], *, one_section: bool = False, by_character: bool = False) -> list[TableMetric]:
    """The rows of a table, in their order; `labels` are those of the rule labeler.

    Label F1 over the corpus is of all labels of a labeler, and of the usual five if they are among them.
    """

    def label(name: str) -> str:
        return label_of(name, one_section=one_section, by_character=by_character)

    def over_corpus(name: str, statistic: Statistic, cells: str) -> TableMetric:
        return TableMetric(f"corpus_{name}", f"corpus {label(name)}", cells, statistic=statistic)

    everything = tuple(range(len(SRR_LABELS)))
    srrbert = TableMetric(
        "srrbert_weighted_f1", "SRR-BERT weighted F1", "labels_srrbert", statistic=weighted_f1, labels=everything
    )
    following = {
        "bleu4": [over_corpus(f"bleu{n}", partial(corpus_bleu, order=n), "bleu_counts") for n in ORDERS],
        "meteor": [over_corpus("meteor", meteor, "meteor_counts")],
        "radcliq_v1": [TableMetric("inverse_radcliq_v1", "1/RadCliQ-v1", "radcliq_v1", statistic=inverse_of_mean)],
        "radgraph_f1_partial": [
            *_label_rows("chexbert", "CheXbert", LABELS),
            *_label_rows("rules", "rule labels", labels),
        ],
        "temporal_f1": [srrbert],
    }
    rows = []
    for name in PER_REPORT:
        rows += [TableMetric(name, label(name), name, METRICS[name].better), *following.get(name, ())]
    return rows


def _label_rows(prefix: str, title: str, labels: Sequence[str]) -> list[TableMetric]:
    chosen = [tuple(range(len(labels)))]
    if set(FIVE) <= set(labels):
        chosen.append(tuple(labels.index(label) for label in FIVE))
    kinds = {"micro": micro_f1, "macro": macro_f1}
    rows = []
    for indices, (kind, statistic) in itertools.product(chosen, kinds.items()):
        name, label = f"{prefix}_{kind}_f1_{len(indices)}", f"{title} {kind} F1 ({len(indices)})"
        rows.append(TableMetric(name, label, f"labels_{prefix}", statistic=statistic, labels=indices))
    return rows
