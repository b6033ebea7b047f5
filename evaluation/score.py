"""`evaluate.py score`: one system against its references, next to baselines that see nothing or only copy.

best constant: for each metric, the training report that scores best when it is given for every training study.
random: another training report for each study, drawn with a seed.
nearest neighbour: the report of the training study whose first image is most similar.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from tqdm import tqdm
from tyro.conf import arg

from capo.checks import check_range
from capo.journal import write_json, write_lines, write_whole
from radflow.data.nearest import nearest_indices
from radflow.data.protocols import Pairs
from radflow.data.sections import SectionParser
from radflow.data.studies import Study
from radflow.evaluation.inputs import (
    FilesConfig,
    left_out,
    notes_on,
    read_pairs,
    read_references,
    studies_of,
    training_texts,
)
from radflow.evaluation.llm_metrics import LlmMetric, LlmScores, ask_errors
from radflow.evaluation.measuring import MODELS, MeasureConfig, Measures, lacking, notes_on_lacking, with_radcliq
from radflow.evaluation.precomputed import Rows, precomputed_cells, read_precomputed
from radflow.evaluation.rules import DEFAULT_LABELER, LabelerName, choose_rules
from radflow.evaluation.table_metrics import LABEL_CELLS, Cells, TableMetric, available, notes_on_labels, table_metrics
from radflow.evaluation.weights import Weights
from radflow.pipeline.command_line import say
from radflow.pipeline.comparison import Variety, best_constants, even_sample
from radflow.pipeline.tables import Table, bounds, csv_document, documents, number
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.metrics.srrbert import LABELS as SRR_LABELS
from radflow.rewards.registry import LABELERS
from radflow.rewards.rules.chexpert_rules import LABELS as CHEXPERT_LABELS
from radflow.rewards.statistics import Interval

if TYPE_CHECKING:
    import pandas

CONSTANT, RANDOM, NEAREST = "best constant", "random", "nearest neighbour"
BASELINES = (CONSTANT, RANDOM, NEAREST)

Texts = Mapping[str, str]  # by study id, or by metric
Values = dict[str, float | None]  # metric -> value


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(FilesConfig):
    """What is scored, against what, and with what."""

    predictions: Path | None = None
    """File or folder of reports: ReXrank's JSON, JSONL, CSV, or text files. Unset with `precomputed` alone."""
    train: Path | None = None
    """Training references, for the baselines; else those of the manifest."""
    manifest: Path | None = None
    """JSONL manifest of studies with images, for the nearest neighbour."""
    image_root: Path | None = None
    """Folder that image paths start from; the manifest's own by default."""
    precomputed: Path | None = None
    """JSONL of sub-scores and annotations computed elsewhere; they are used as they are."""
    baseline_sample: int = 100
    """Training reports tried as constant, and training references that they are judged on."""
    llm: tuple[LlmMetric, ...] = ()
    """Metrics that the model of section judge fills, listing the errors of each report (docs/judge.md)."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictions is None and self.precomputed is None:
            raise ValueError("expected predictions, or precomputed sub-scores, got neither")
        if self.predictions is None and (self.references or self.train or self.manifest):
            raise ValueError("expected predictions with the references, training references or manifest, got none")
        check_range(self, "baseline_sample", least=1)
        if self.llm and (self.predictions is None or self.judge.model is None):
            raise ValueError("llm needs predictions, and judge.model, the name of the model that is asked")


@dataclass(frozen=True)
class Baselines:
    """Values of the baselines, and why one is lacking."""

    values: Mapping[str, Values]  # by baseline
    reasons: Mapping[str, str]  # baseline -> what to give
    constants: Texts  # metric -> the constant report


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


def score_files(config: Annotated[ScoreConfig, arg(name="")], weights: Weights, out: Path | None = None) -> None:
    """Score one file of reports, next to baselines that see nothing or only copy.

    Args:
        out: Folder of the summary as text, Markdown, LaTeX and JSON, and of the scores per study as CSV and JSONL.
    """
    scored = score(config, weights)
    if out is None:
        say(documents(*tables(scored, explained=config.all))["txt"].rstrip("\n"))
    else:
        say(f"{write(scored, out, config)}\nwritten to {out}")


def score(config: ScoreConfig, weights: Weights) -> Scored:
    """Everything that the files are written from.

    Raises:
        ValueError: a file does not fit; names it.
    """
    given: Rows = {} if config.precomputed is None else read_precomputed(config.precomputed)
    if config.predictions is None:
        return _score_precomputed(config, given)
    references = read_references(config.references, config.predictions, config.manifest, split=config.split)
    parse = SectionParser(config.headers)
    pairs = read_pairs(config.predictions, references, config.protocol, parse)
    train, notes = training_texts(config.train, config.manifest, pairs, config.references, config.protocol, parse)
    others = [study_id for study_id in given if study_id not in set(pairs.ids)]
    return score_pairs(
        pairs,
        config,
        weights,
        files=(config.predictions, config.references),
        made={} if config.precomputed is None else precomputed_cells(given, pairs.ids, config.precomputed),
        train=train,
        nearest=nearest_texts(pairs.ids, studies_of(config.manifest, config.image_root), train),
        sample=config.baseline_sample,
        ask=partial(ask_errors, config.llm, config.judge),
        lists={"precomputed lines of studies that are not scored": others} if others else {},
        notes=notes,
    )


def score_pairs(
    pairs: Pairs,
    config: MeasureConfig,
    weights: Weights,
    *,
    nearest: Sequence[str] | str,
    files: Sequence[Path | None] = (),
    made: Cells | None = None,
    train: Texts | None = None,
    sample: int = 100,
    ask: Callable[[Pairs], LlmScores] | None = None,
    lists: Mapping[str, Sequence[str]] | None = None,
    notes: Sequence[str] = (),
) -> Scored:
    """Every metric of the pairs that can be computed, and the baselines.

    Args:
        nearest, train, sample: what `measure_baselines` takes.
        files: that the texts are from; those of a run name its rules.
        made: cells that were computed elsewhere.
        ask: metrics of a language model. It is asked last: it may cost money, and a mistake elsewhere would waste it.
        lists: further ids that are left out, by reason.
        notes: further lines below the table.
    """
    made = made or {}
    rules = choose_rules(config.labeler, config.lexicon, files, pairs.references, SectionParser(config.headers))
    measures = Measures(config, weights, rules, given=made)
    names = [name for name in MODELS if name not in made]
    measured = measures.cells(pairs.predictions, pairs.references, title="score", names=names)
    found = measure_baselines(measures, pairs.references, train, nearest, sample=sample)
    asked = ask(pairs) if ask else LlmScores()
    cells = with_radcliq(measured | made) | asked.cells
    lists = {**left_out(pairs), **(lists or {})}
    varieties = {"predictions": Variety.of(pairs.predictions), "references": Variety.of(pairs.references)}
    missing = measures.missing | dict.fromkeys(asked.cells, "the model answered for no report")
    metrics = [*measures.rows, *asked.rows]
    rows = _rows(config, metrics, cells, missing, found)
    feet = _feet(config, pairs.ids, rules.labeler, varieties, found)
    feet += [*notes_on_labels(metrics, cells), *rules.tokens, *asked.notes, *pairs.notes, *notes, *notes_on(lists)]
    return Scored(pairs.ids, cells, rules.labeler, rows, found, varieties, lists, feet, asked.listed)


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


def _score_precomputed(config: ScoreConfig, given: Rows) -> Scored:
    """Without texts: what is given, and what follows from it."""
    ids, labeler = list(given), config.labeler or DEFAULT_LABELER
    assert config.precomputed is not None  # the config says so
    cells = with_radcliq(precomputed_cells(given, ids, config.precomputed))
    found = Baselines({}, dict.fromkeys(BASELINES, "needs texts: predictions and references"), {})
    missing = dict.fromkeys(MODELS, "not precomputed, and there are no texts to measure")
    metrics = table_metrics(LABELERS[labeler].labels)
    rows = _rows(config, metrics, cells, missing, found)
    feet = [*_feet(config, ids, labeler, {}, found), *notes_on_labels(metrics, cells)]
    return Scored(ids, cells, labeler, rows, found, {}, {}, feet)


def _rows(
    config: MeasureConfig, metrics: Sequence[TableMetric], cells: Cells, missing: Mapping[str, str], found: Baselines
) -> list[Row]:
    reasons, rows = lacking(metrics, cells, missing), []
    for metric in metrics:
        interval = metric.interval(cells, num_resamples=config.num_resamples, seed=config.seed)
        columns = {name: found.values.get(name, {}).get(metric.name) for name in BASELINES}
        rows.append(Row(metric, interval, int(metric.defined(cells).sum()), columns, reasons.get(metric.name)))
    return rows


def _feet(
    config: MeasureConfig, ids: Sequence[str], labeler: str, varieties: Mapping[str, Variety], found: Baselines
) -> list[str]:
    return [
        f"protocol {config.protocol}, labeler {labeler}, {len(ids)} studies; 95 % bootstrap intervals over studies",
        *(variety.line(name) for name, variety in varieties.items()),
        *(f"baseline {name}: not available: {reason}" for name, reason in found.reasons.items()),
    ]


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


def write(scored: Scored, folder: Path, config: ScoreConfig) -> str:
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


def as_json(scored: Scored, config: ScoreConfig) -> dict[str, object]:
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
