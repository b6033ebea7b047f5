"""The result of `score`: values with intervals and baselines, columns per report, and the files written from it."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from capo.journal import write_json, write_lines, write_whole
from radflow.evaluation.baselines import BASELINES, Baselines
from radflow.evaluation.inputs import FilesConfig
from radflow.evaluation.measuring import notes_on_lacking
from radflow.evaluation.rules import LabelerName
from radflow.evaluation.table_metrics import LABEL_CELLS, Cells, TableMetric
from radflow.pipeline.comparison import Variety
from radflow.pipeline.tables import Table, bounds, csv_document, documents, number
from radflow.rewards.metrics.srrbert import LABELS as SRR_LABELS
from radflow.rewards.registry import LABELERS
from radflow.rewards.rules.chexpert_rules import LABELS as CHEXPERT_LABELS
from radflow.rewards.statistics import Interval

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Row:
    """One metric of the summary."""

    metric: TableMetric
    interval: Interval | None  # None: not available
    studies: int
    baselines: Mapping[str, float | None]
    reason: str | None  # why it is not available


@dataclass(frozen=True)
class Scored:
    """A system over the studies that are scored."""

    ids: Sequence[str]
    cells: Cells
    labeler: LabelerName
    rows: Sequence[Row]
    baselines: Baselines
    varieties: Mapping[str, Variety]
    left_out: Mapping[str, Sequence[str]]
    notes: Sequence[str]
    listed: Sequence[Mapping[str, object]] = ()  # errors that a language model found

    @property
    def values(self) -> dict[str, float]:
        """Each metric that could be computed, over all studies."""
        return {row.metric.name: row.interval.mean for row in self.rows if row.interval is not None}

    @property
    def columns(self) -> dict[str, list[float | None]]:
        """Each value that single studies have, in the order of `ids`; None if the reference does not define it."""
        return {
            name: [None if np.isnan(value) else float(value) for value in column]
            for name, column in self.cells.items()
            if column.ndim == 1
        }

    def to_pandas(self) -> "pandas.DataFrame":
        """The columns, one row per study; needs pandas."""
        import pandas

        return pandas.DataFrame(self.columns, index=pandas.Index(self.ids, name="study_id"))

    def __str__(self) -> str:
        return documents(*tables(self))["txt"]


def tables(scored: Scored, *, explained: bool = False) -> tuple[list[Table], list[str]]:
    """The summary with its baselines, and the notes below it; what is not computed is a row with its reason only if
    that is to be explained."""
    head = ["metric", "score", "95 % interval", "studies", *BASELINES, ""]
    rows = []
    for row in (row for row in scored.rows if explained or row.interval is not None):
        shown, worse = ["unavailable", *["-"] * (len(head) - 3)], ""
        if row.interval is not None:
            value = [number(row.interval.mean), bounds(row.interval.low, row.interval.high), str(row.studies)]
            shown = [*value, *(number(row.baselines[name]) for name in BASELINES)]
            worse = "lower is better" if row.metric.better == "lower" else ""
        rows.append([row.metric.label, *shown, worse])
    reasons = {row.metric.name: row.reason for row in scored.rows if row.reason is not None}
    lacking = notes_on_lacking([row.metric for row in scored.rows], reasons, explained=explained)
    return [Table("Scores", head, rows)], [*scored.notes, *lacking]


def write(scored: Scored, folder: Path, config: FilesConfig) -> str:
    """Write summary.txt, .md, .tex and .json, per_study.csv and .jsonl, and errors.jsonl of a language model; returns
    the text."""
    shown, notes = tables(scored, explained=config.all)
    texts = documents(shown, notes)
    for ending, text in texts.items():
        write_whole(folder / f"summary.{ending}", text)
    write_json(folder / "summary.json", as_json(scored, config))
    rows = per_study(scored)
    write_whole(folder / "per_study.csv", csv_document(list(rows[0]), rows))
    write_lines(folder / "per_study.jsonl", [row | labels for row, labels in zip(rows, _labels(scored), strict=True)])
    if scored.listed:
        write_lines(folder / "errors.jsonl", scored.listed)
    return texts["txt"]


def per_study(scored: Scored) -> list[dict[str, object]]:
    """One row per study: its id, and each value that single studies have; None if this one has none."""
    columns = scored.columns
    return [
        {"study_id": study_id, **dict(zip(columns, values, strict=True))}
        for study_id, *values in zip(scored.ids, *columns.values(), strict=True)
    ]


def _labels(scored: Scored) -> list[dict[str, object]]:
    """Labels of both sides, of each study."""
    found: list[dict[str, object]] = [{} for _ in scored.ids]
    names = (CHEXPERT_LABELS, LABELERS[scored.labeler].labels, SRR_LABELS)
    for name, labels in zip(LABEL_CELLS, names, strict=True):
        for i, row in enumerate(scored.cells.get(name, ())):
            sides = {"prediction": row[1::3], "reference": row[2::3]}
            found[i][name] = {side: list(itertools.compress(labels, there)) for side, there in sides.items()}
    return found


def as_json(scored: Scored, config: FilesConfig) -> dict[str, object]:
    """The summary with everything that a program may want: all ids left out, the constant reports."""
    metrics = []
    for row in scored.rows:
        entry: dict[str, object] = {"metric": row.metric.name, "label": row.metric.label, "better": row.metric.better}
        if row.interval is None:
            entry |= {"value": None, "unavailable": row.reason}
        else:
            low, high = (None if np.isnan(bound) else bound for bound in (row.interval.low, row.interval.high))
            entry |= {"value": row.interval.mean, "low": low, "high": high, "studies": row.studies}
        metrics.append({**entry, "baselines": dict(row.baselines)})
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))  # paths as text
    return {
        "settings": settings,
        "labeler": scored.labeler,
        "studies": len(scored.ids),
        "metrics": metrics,
        "baselines_unavailable": dict(scored.baselines.reasons),
        "constant_reports": dict(scored.baselines.constants),
        "variety": {name: dataclasses.asdict(variety) for name, variety in scored.varieties.items()},
        "left_out": {what: list(ids) for what, ids in scored.left_out.items()},
        "notes": list(scored.notes),
    }
