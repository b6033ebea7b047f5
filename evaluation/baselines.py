"""What systems score that see nothing or only copy: every table holds them beside the system.

best constant: for each metric, the training report that scores best when it is given for every training study.
random: another training report for each study, drawn with a seed.
nearest neighbour: the report of the training study whose first image is most alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from data.studies import Study
from evaluation.measuring import Measures, available
from evaluation.nearest import nearest_places
from evaluation.table_metrics import BY_NAME, Cells, TableMetric

CONSTANT, RANDOM, NEAREST = "best constant", "random", "nearest neighbour"
NAMES = (CONSTANT, RANDOM, NEAREST)


@dataclass(frozen=True)
class Baselines:
    """Values of the baselines, and why one is lacking."""

    values: Mapping[str, Mapping[str, float]]  # baseline -> metric -> value
    reasons: Mapping[str, str] = field(default_factory=dict)  # baseline -> what to give
    constants: Mapping[str, str] = field(default_factory=dict)  # metric -> the constant report


def baselines(
    measures: Measures,
    references: Sequence[str],
    train: Mapping[str, str] | None,
    nearest: Sequence[str] | str,
    *,
    sample: int,
    seed: int,
) -> Baselines:
    """Baselines over the references that are scored.

    Args:
        train: training references by id, none of a study that is scored; None where they are not given.
        nearest: the report of the likest image for each reference, or why there is none.
        sample: training reports tried as constant, and training references that they are judged on.
    """
    values, reasons, constants = {}, {}, {}
    if train is None:
        reasons = dict.fromkeys((CONSTANT, RANDOM), "give the training references: --train FILE, or --manifest FILE")
    else:
        texts = list(train.values())
        constants = best_constants(measures, texts, sample=sample)
        values[CONSTANT] = _constant_values(measures, references, constants)
        drawn = np.random.default_rng(seed).integers(0, len(texts), len(references))
        values[RANDOM] = _values(measures, [texts[i] for i in drawn], references, RANDOM)
    if isinstance(nearest, str):
        reasons[NEAREST] = nearest
    else:
        values[NEAREST] = _values(measures, nearest, references, NEAREST)
    return Baselines(values, reasons, constants)


def _values(measures: Measures, predictions: Sequence[str], references: Sequence[str], title: str) -> dict[str, float]:
    cells = measures.cells(predictions, references, title=title)
    return {metric.name: metric.value(cells) for metric in available(cells)}


def best_constants(measures: Measures, texts: Sequence[str], *, sample: int) -> dict[str, str]:
    """For each metric the text that scores best when given for each of the texts.

    Tried on an even sample of the texts: all pairs would be quadratic in their number.
    """
    stride = max(1, len(texts) // sample)
    judged = list(texts[::stride][:sample])
    candidates = list(dict.fromkeys(judged))
    predictions = [candidate for candidate in candidates for _ in judged]
    cells = measures.cells(predictions, judged * len(candidates), title="best constant")
    best: dict[str, tuple[float, str]] = {}
    for place, candidate in enumerate(candidates):
        own = np.arange(place * len(judged), (place + 1) * len(judged))
        for metric in available(cells):
            value = metric.value(cells, own)
            if value is not None and (metric.name not in best or _better(metric, value, best[metric.name][0])):
                best[metric.name] = value, candidate
    return {name: report for name, (_, report) in best.items()}


def _better(metric: TableMetric, value: float, than: float) -> bool:
    return value < than if metric.better == "lower" else value > than


def _constant_values(measures: Measures, references: Sequence[str], constants: Mapping[str, str]) -> dict[str, float]:
    """Each metric of the constant that was chosen for it; a constant is measured by the metrics that chose it."""
    chosen: dict[str, list[TableMetric]] = {}
    for name, report in constants.items():
        chosen.setdefault(report, []).append(BY_NAME[name])
    values: dict[str, float] = {}
    for report, metrics in tqdm(chosen.items(), "best constant, scored", unit="report", disable=None, leave=False):
        names = [metric.cells for metric in metrics]
        cells: Cells = measures.cells([report] * len(references), references, title="constant", names=names)
        for metric in metrics:
            if (value := metric.value(cells)) is not None:
                values[metric.name] = value
    return values


def nearest_texts(ids: Sequence[str], studies: Mapping[str, Study], train: Mapping[str, str] | None) -> list[str] | str:
    """The training report of the likest image for each study, or why there is none.

    Args:
        studies: of the manifest, by id.
        train: training references by id.
    """
    if not studies:
        return "needs the images: give --manifest FILE with the studies that are scored and those of training"
    absent = [study_id for study_id in ids if study_id not in studies or not studies[study_id].images]
    if absent:
        return f"{len(absent)} of {len(ids)} studies have no image in the manifest, such as {', '.join(absent[:3])}"
    known = [studies[study_id] for study_id in train or () if study_id in studies and studies[study_id].images]
    if not known:
        return "no training reference has an image in the manifest"
    places = nearest_places(known, [studies[study_id] for study_id in ids])
    return [train[known[place].id] for place in places]
