"""Baselines of a table: reports that see nothing or only copy.

best constant: for each metric, the training report that scores best when it is given for every training study.
random: another training report for each study, drawn with a seed.
nearest neighbour: the report of the training study whose first image is most similar.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from radflow.data.nearest import nearest_indices
from radflow.data.studies import Study
from radflow.evaluation.measuring import Measures
from radflow.evaluation.table_metrics import available
from radflow.pipeline.comparison import best_constants, even_sample

CONSTANT, RANDOM, NEAREST = "best constant", "random", "nearest neighbour"
BASELINES = (CONSTANT, RANDOM, NEAREST)

Texts = Mapping[str, str]  # by study id, or by metric
Values = dict[str, float | None]  # metric -> value


@dataclass(frozen=True)
class Baselines:
    """Values of the baselines, and why one is lacking."""

    values: Mapping[str, Values]  # by baseline
    reasons: Mapping[str, str]  # baseline -> what to give
    constants: Texts  # metric -> the constant report


def measure_baselines(
    measures: Measures, references: Sequence[str], train: Texts | None, nearest: Sequence[str] | str, *, sample: int
) -> Baselines:
    """Baselines over the references that are scored.

    Args:
        train: by id, none of a study that is scored.
        nearest: the report of the likest image for each reference, or why there is none.
        sample: training reports tried as constant, and training references that they are judged on.
    """
    values, reasons, constants = {}, {}, {}
    if train is None:
        reasons = dict.fromkeys((CONSTANT, RANDOM), "needs training references, of their own or in a manifest")
    else:
        texts = list(train.values())
        constants = choose_constants(measures, even_sample(texts, sample))
        values[CONSTANT] = _constant_values(measures, references, constants)
        drawn = np.random.default_rng(measures.config.seed).integers(0, len(texts), len(references))
        values[RANDOM] = _values(measures, [texts[i] for i in drawn], references, RANDOM)
    if isinstance(nearest, str):
        reasons[NEAREST] = nearest
    else:
        values[NEAREST] = _values(measures, nearest, references, NEAREST)
    return Baselines(values, reasons, constants)


def _values(measures: Measures, predictions: Sequence[str], references: Sequence[str], title: str) -> Values:
    cells = measures.cells(predictions, references, title=title)
    return {row.name: row.value(cells) for row in available(measures.rows, cells)}


def choose_constants(measures: Measures, judged: Sequence[str]) -> dict[str, str]:
    """For each metric the text that scores best when given for each of the texts."""
    candidates = list(dict.fromkeys(judged))
    predictions = [candidate for candidate in candidates for _ in judged]
    cells = measures.cells(predictions, list(judged) * len(candidates), title=CONSTANT)
    rows = available(measures.rows, cells)
    slices = [np.arange(i * len(judged), (i + 1) * len(judged)) for i in range(len(candidates))]
    values = ({row.name: row.value(cells, own) for row in rows} for own in slices)
    return best_constants(zip(candidates, values, strict=True), lower={r.name for r in rows if r.better == "lower"})


def _constant_values(measures: Measures, references: Sequence[str], constants: Texts) -> Values:
    """Each metric of the constant that was chosen for it; a constant is measured by the metrics that chose it."""
    values: Values = {}
    for report in tqdm(dict.fromkeys(constants.values()), f"{CONSTANT}, scored", disable=None, leave=False):
        rows = [row for row in measures.rows if constants.get(row.name) == report]
        texts, names = [report] * len(references), {row.cells for row in rows}
        cells = measures.cells(texts, references, title="constant", names=names)
        values |= {row.name: row.value(cells) for row in rows}
    return values


def nearest_texts(ids: Sequence[str], studies: Mapping[str, Study], train: Texts | None) -> list[str] | str:
    """The training report of the likest image for each study, or why there is none."""
    if not studies:
        return "needs a manifest with the images of the studies that are scored and of those of training"
    if absent := [study_id for study_id in ids if study_id not in studies or not studies[study_id].images]:
        return f"{len(absent)} of {len(ids)} studies have no image in the manifest, such as {', '.join(absent[:3])}"
    reports = {study_id: text for study_id, text in (train or {}).items() if study_id in studies}
    known = [studies[study_id] for study_id in reports if studies[study_id].images]
    if not known:
        return "no training reference has an image in the manifest"
    return [reports[known[i].id] for i in nearest_indices(known, [studies[study_id] for study_id in ids])]
