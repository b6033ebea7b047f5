"""Every cell of a set of report pairs, and why those that are lacking are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.model_cells import RADCLIQ, SUB_SCORES, ModelCells, with_radcliq
from evaluation.table_metrics import BY_NAME, METRICS, Cells, TableMetric
from evaluation.weight_free import NAMES, WeightFree
from rewards.keywords import asserted
from rewards.lexicon import Lexicon


@dataclass(frozen=True)
class Measures:
    """What measures texts: rules in this or other processes, models in this one."""

    weight_free: WeightFree
    models: ModelCells

    @property
    def names(self) -> tuple[str, ...]:
        """Cells that can be measured, RadCliQ left out: it follows from them."""
        return (*self.weight_free.names, *self.models.names)

    def cells(
        self, predictions: Sequence[str], references: Sequence[str], *, title: str, names: Sequence[str] | None = None
    ) -> Cells:
        """Cells by name, one row a pair, with RadCliQ where its sub-scores are among them.

        Args:
            names: only these, and what they follow from; by default all.
        """
        wanted = set(self.names if names is None else names)
        if wanted & set(RADCLIQ):
            wanted |= set(SUB_SCORES)
        rules = [name for name in self.weight_free.names if name in wanted]
        models = [name for name in self.models.names if name in wanted]
        cells = self.weight_free(predictions, references, rules, title=title) if rules else {}
        return with_radcliq(cells | self.models(predictions, references, models, title=f"{title} (models)"))


def lacking(cells: Mapping[str, np.ndarray], measures: Measures | None) -> dict[str, str]:
    """Metric -> why it is not in the table, with the way to get it.

    Args:
        measures: None where there are no texts, only precomputed values.
    """
    found = {}
    for metric in METRICS:
        if metric.cells in cells:
            if not metric.defined(cells).any():
                found[metric.name] = "no reference defines it"
        elif measures is None:
            found[metric.name] = "not precomputed, and there are no texts: give --predictions and --references"
        elif metric.cells in measures.models.missing:
            found[metric.name] = measures.models.missing[metric.cells]
        elif metric.cells in RADCLIQ:
            absent = [name for name in SUB_SCORES if name not in cells]
            found[metric.name] = f"needs {', '.join(BY_NAME[name].label for name in absent)}: see these"
        elif metric.cells in NAMES:
            found[metric.name] = "compares Findings with Impression: protocol rexrank only"
    return found


def available(cells: Mapping[str, np.ndarray]) -> list[TableMetric]:
    """Metrics that have a value."""
    return [metric for metric in METRICS if metric.cells in cells and metric.defined(cells).any()]


def without_keywords(cells: Cells, references: Sequence[str], lexicon: Lexicon) -> tuple[Cells, dict[str, str]]:
    """The cells without KeyWordMatch where fewer than one reference in ten names a keyword: a lexicon of another organ
    compares nothing but the words for "normal". Returns the reason beside them."""
    if "keyword_f1_rules" not in cells:
        return cells, {}
    named = sum(bool(asserted(reference, lexicon) - {lexicon.normal.name}) for reference in references)
    if 10 * named >= len(references):
        return cells, {}
    kept = {name: values for name, values in cells.items() if name != "keyword_f1_rules"}
    reason = (
        f"{named} of {len(references)} references name a keyword of the lexicon {lexicon.name}; give one for these "
        "reports with --lexicon FILE"
    )
    return kept, {"keyword_f1_rules": reason}
