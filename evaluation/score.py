"""`evaluate.py score`: one system against its references, beside what knows nothing."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capo.journal import write_json, write_lines, write_whole
from data.protocols import Protocol
from evaluation.baselines import NAMES as BASELINES
from evaluation.baselines import Baselines, baselines, nearest_texts
from evaluation.inputs import left_out, notes_on, read_pairs, read_references, studies_of, training_texts
from evaluation.measuring import Measures, available, lacking, without_keywords
from evaluation.model_cells import ModelCells, with_radcliq
from evaluation.precomputed import read_precomputed
from evaluation.table_metrics import LABEL_CELLS, METRICS, Cells, TableMetric
from evaluation.tables import Table, bounds, documents, number
from evaluation.variety import Variety
from evaluation.weight_free import WeightFree
from evaluation.weights import Weights
from rewards.chexpert_rules import LABELS
from rewards.lexicon import CAROTID, Lexicon
from rewards.statistics import Interval


@dataclass(frozen=True)
class ScoreConfig:
    """What is scored, against what, and with what."""

    predictions: Path | None = None
    """File or folder of reports; None with `precomputed` alone."""
    references: Path | None = None
    """File or folder of references; else those of the manifest, or those beside the predictions."""
    train: Path | None = None
    """Training references, for the baselines; else those of the manifest."""
    manifest: Path | None = None
    """Studies with images, for the nearest neighbour."""
    image_root: Path | None = None
    """Folder that image paths start from; the manifest's own by default."""
    precomputed: Path | None = None
    """Sub-scores and annotations computed elsewhere; they are used as they are."""
    protocol: Protocol = "rexrank"
    """Which text is compared."""
    split: str = "all"
    """Only references of this split."""
    lexicon: Path = CAROTID
    """Keywords of KeyWordMatch."""
    workers: int = 0
    """Processes for what needs no weights."""
    cache: Path | None = None
    """SQLite file of RadGraph's graphs."""
    baseline_sample: int = 100
    """Training reports tried as constant, and training references that they are judged on."""
    num_resamples: int = 10_000
    """Bootstrap resamples."""
    seed: int = 0
    """Of the bootstrap and of the random training reports."""

    def __post_init__(self) -> None:
        if self.predictions is None and self.precomputed is None:
            raise ValueError("expected --predictions FILE, or --precomputed FILE with sub-scores, got neither")
        if self.predictions is None and (self.references or self.train or self.manifest):
            raise ValueError("expected --predictions beside --references, --train or --manifest, got none")
        if self.workers < 0 or self.baseline_sample < 1 or self.num_resamples < 100:
            raise ValueError(
                "expected --workers not negative, --baseline-sample of at least 1 and --resamples of at least 100, got "
                f"{self.workers}, {self.baseline_sample} and {self.num_resamples}"
            )


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
    """Everything that the files of a score are written from."""

    ids: Sequence[str]
    cells: Cells
    rows: Sequence[Row]
    baselines: Baselines
    varieties: Mapping[str, Variety]
    left_out: Mapping[str, Sequence[str]]
    notes: Sequence[str]


def score(config: ScoreConfig, weights: Weights) -> Scored:
    """Score a file of reports.

    Raises:
        ValueError: a file does not fit; names it.
    """
    given = None if config.precomputed is None else read_precomputed(config.precomputed)
    if config.predictions is None:
        ids = list(given.rows)
        cells = with_radcliq(given.cells(ids))
        nothing = Baselines({}, dict.fromkeys(BASELINES, "needs texts: give --predictions and --references"))
        return _scored(config, ids, cells, lacking(cells, None), nothing, {}, {}, [])
    references = read_references(config.references, config.predictions, config.manifest, split=config.split)
    pairs = read_pairs(config.predictions, references, config.protocol)
    made = {} if given is None else given.cells(pairs.ids)
    measures = Measures(
        WeightFree(config.protocol, config.lexicon, config.workers),
        ModelCells(weights, cache=config.cache, given=made),
    )
    names = [name for name in measures.names if name not in made]
    measured = measures.cells(pairs.predictions, pairs.references, title="score", names=names)
    cells, no_keywords = without_keywords(with_radcliq(measured | made), pairs.references, Lexicon.load(config.lexicon))
    train, train_notes = training_texts(config.train, config.manifest, pairs.ids, config.protocol)
    nearest = nearest_texts(pairs.ids, studies_of(config.manifest, config.image_root), train)
    beside = baselines(
        measures, pairs.references, train, nearest, sample=config.baseline_sample, seed=config.seed
    )  # fmt: skip
    varieties = {"predictions": Variety.of(pairs.predictions), "references": Variety.of(pairs.references)}
    lists = left_out(pairs)
    if given is not None and (others := [study_id for study_id in given.rows if study_id not in set(pairs.ids)]):
        lists["precomputed lines of studies that are not scored"] = others
    return _scored(
        config, pairs.ids, cells, lacking(cells, measures) | no_keywords, beside, varieties, lists, train_notes
    )


def _scored(
    config: ScoreConfig, ids: Sequence[str], cells: Cells, reasons: Mapping[str, str], beside: Baselines,
    varieties: Mapping[str, Variety], lists: Mapping[str, Sequence[str]], notes: Sequence[str],
) -> Scored:  # fmt: skip
    there = {metric.name for metric in available(cells)}
    rows = []
    for metric in METRICS:
        interval, studies = None, 0
        if metric.name in there:
            interval = metric.interval(cells, num_resamples=config.num_resamples, seed=config.seed)
            studies = int(metric.defined(cells).sum())
        columns = {name: beside.values[name].get(metric.name) if name in beside.values else None for name in BASELINES}
        rows.append(Row(metric, interval, studies, columns, None if metric.name in there else reasons[metric.name]))
    feet = [f"protocol {config.protocol}, {len(ids)} studies; 95 % bootstrap intervals over studies"]
    feet += [variety.line(name) for name, variety in varieties.items()]
    feet += [f"baseline {name}: not available: {reason}" for name, reason in beside.reasons.items()]
    return Scored(ids, cells, rows, beside, varieties, lists, [*feet, *notes, *notes_on(lists)])


def tables(scored: Scored) -> tuple[list[Table], list[str]]:
    """The summary with its baselines, and the notes below it; what is unavailable is a row too."""
    head = ["metric", "score", "95 % interval", "studies", *BASELINES, ""]
    rows, missing = [], {}
    for row in scored.rows:
        if row.interval is None:
            missing.setdefault(row.reason, []).append(row.metric.label)
            rows.append([row.metric.label, "unavailable", *["-"] * (len(head) - 3), ""])
            continue
        shown = [number(row.baselines[name]) for name in BASELINES]
        interval = bounds(row.interval.low, row.interval.high)
        rows.append([
            row.metric.label, number(row.interval.mean), interval, str(row.studies), *shown,
            "lower is better" if row.metric.better == "lower" else "",
        ])  # fmt: skip
    notes = [f"unavailable: {', '.join(labels)}: {reason}" for reason, labels in missing.items()]
    return [Table("Scores", head, rows)], [*scored.notes, *notes]


def write(scored: Scored, folder: Path, config: ScoreConfig) -> str:
    """Write summary.txt, .md, .tex and .json, per_study.csv and .jsonl; returns the text."""
    shown, notes = tables(scored)
    texts = documents(shown, notes)
    for ending, text in texts.items():
        write_whole(folder / f"summary.{ending}", text)
    write_json(folder / "summary.json", as_json(scored, config))
    names, rows = per_study(scored)
    with io.StringIO(newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["study_id", *names])
        writer.writerows(
            [row["study_id"], *("" if row[name] is None else repr(row[name]) for name in names)] for row in rows
        )
        write_whole(folder / "per_study.csv", file.getvalue().replace("\r\n", "\n"))
    write_lines(folder / "per_study.jsonl", [row | labels for row, labels in zip(rows, _labels(scored), strict=True)])
    return texts["txt"]


def per_study(scored: Scored) -> tuple[list[str], list[dict[str, object]]]:
    """Names of the values that single studies have, and one row a study; None where it has none."""
    names = [name for name in scored.cells if name not in LABEL_CELLS]
    columns = {name: [None if np.isnan(v) else float(v) for v in scored.cells[name]] for name in names}
    rows = [{"study_id": s, **{name: columns[name][i] for name in names}} for i, s in enumerate(scored.ids)]
    return names, rows


def _labels(scored: Scored) -> list[dict[str, object]]:
    """Labels of both sides, of each study."""
    found: list[dict[str, object]] = [{} for _ in scored.ids]
    for name in LABEL_CELLS & scored.cells.keys():
        for place, row in enumerate(scored.cells[name]):
            sides = {"prediction": row[1::3], "reference": row[2::3]}
            found[place][name] = {
                side: [label for label, there in zip(LABELS, values, strict=True) if there]
                for side, values in sides.items()
            }
    return found


def as_json(scored: Scored, config: ScoreConfig) -> dict[str, object]:
    """The summary with everything that a program may want: all ids left out, the constant reports."""
    metrics = []
    for row in scored.rows:
        entry: dict[str, object] = {"metric": row.metric.name, "label": row.metric.label, "better": row.metric.better}
        if row.interval is None:
            entry |= {"value": None, "unavailable": row.reason}
        else:
            values = dataclasses.asdict(row.interval)
            low, high = (None if np.isnan(values[key]) else values[key] for key in ("low", "high"))
            entry |= {"value": values["mean"], "low": low, "high": high, "studies": row.studies}
        metrics.append({**entry, "baselines": dict(row.baselines)})
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(config).items()}
    return {
        "settings": settings,
        "studies": len(scored.ids),
        "metrics": metrics,
        "baselines_unavailable": dict(scored.baselines.reasons),
        "constant_reports": dict(scored.baselines.constants),
        "variety": {name: dataclasses.asdict(variety) for name, variety in scored.varieties.items()},
        "left_out": {what: list(ids) for what, ids in scored.left_out.items()},
        "notes": list(scored.notes),
    }
