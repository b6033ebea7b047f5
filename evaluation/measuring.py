"""Every cell of a set of report pairs: rules in this process or in others, models in this one."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from capo.checks import check_range
from radflow.data.protocols import Protocol
from radflow.data.sections import SectionParser
from radflow.evaluation.rules import LabelerName, Rules
from radflow.evaluation.table_metrics import (
    COUNT_CELLS,
    LABEL_CELLS,
    PER_REPORT,
    Cells,
    TableMetric,
    label_cells,
    table_metrics,
)
from radflow.evaluation.weights import Weights
from radflow.rewards.config import RewardConfig
from radflow.rewards.faults import describe_faults
from radflow.rewards.measure import Metrics, Reads
from radflow.rewards.metrics.chexbert import ChexbertLabels
from radflow.rewards.metrics.lexical import ngram_counts
from radflow.rewards.metrics.radcliq import SUB_SCORES, radcliq_v0, radcliq_v1
from radflow.rewards.metrics.srrbert import SrrBert
from radflow.rewards.radgraph.cache import GraphCache
from radflow.rewards.radgraph.text import Graph
from radflow.rewards.registry import METRICS, Backends, load_metrics
from radflow.rewards.types import Fault, Labeler
from radflow.rewards.watched import WatchedWorkers
from radflow.rewards.workers import SINGLES

RADCLIQ = {"radcliq_v0": radcliq_v0, "radcliq_v1": radcliq_v1}
# What is measured: RadCliQ is not, it follows from others that may be given.
MODELS = {name: METRICS[name].model for name in PER_REPORT if name not in RADCLIQ}
MODELS |= {"labels_chexbert": "chexbert", "labels_rules": None, "labels_srrbert": "srrbert"}
MODELS |= {"bleu_counts": None, "meteor_counts": "meteor"}
LOADERS: dict[str, Callable[[Backends], object]] = {
    "bertscore": lambda backends: backends.metric("bertscore"),
    "chexbert": lambda backends: backends.chexbert,
    "radgraph": lambda backends: backends.radgraph,
    "meteor": lambda backends: backends.meteor,
    "cider": lambda backends: backends.metric("cider"),
    "ratescore": lambda backends: backends.metric("ratescore"),
    "srrbert": lambda backends: backends.srrbert,
    "temporal": lambda backends: backends.metric("temporal_f1"),
}
LABELERS: dict[str, Callable[[Backends], Labeler | ChexbertLabels | SrrBert]] = {
    "labels_chexbert": lambda backends: backends.chexbert_labels,
    "labels_rules": lambda backends: backends.rules,
    "labels_srrbert": lambda backends: backends.srrbert,
}
RULES_CHUNK, MODELS_CHUNK = 128, 512  # pairs that a worker is given, and whose embeddings are held, at a time

Annotate = Callable[[Sequence[str]], list[Graph]]
Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """How texts are compared, and with what."""

    protocol: Protocol = "rexrank"
    """`rexrank`: both sections, text untouched; or one section."""
    labeler: LabelerName | None = None
    """Rules that read labels, consistency and criticality. Unset: those of the run that wrote the files, if they lie in
    the folder `eval` of a run, else those of the chest."""
    lexicon: Path | None = None
    """Keywords of keyword F1. Unset: those of the run, else carotid ultrasound."""
    headers: Path | None = None
    """TOML file with further headers of reports, as `data.headers` of a run."""
    workers: int = 0
    """Processes for metrics without weights; 0 and 1 measure in this one."""
    cache: Path | None = None
    """SQLite file that keeps RadGraph's graphs by model and text."""
    num_resamples: int = 10_000
    """Bootstrap resamples, and shuffles of the randomisation test."""
    seed: int = 0
    """Of resampling, and of random training reports."""

    def __post_init__(self) -> None:
        check_range(self, "workers", "seed", least=0)
        check_range(self, "num_resamples", least=100)


class Measures:
    """Measures pairs of texts by every metric that tables show.

    With protocol rexrank each metric reads what the registry says, by the parser rule of rewards. With a single section
    each reads that section, and there is no consistency. A model that is absent, or that cannot be loaded, is in
    `missing` with the reason, and the others are used.

    Args:
        rules: those chosen for these texts.
        given: cells that need not be measured; a model that only they need is not loaded.
    """

    def __init__(self, config: MeasureConfig, weights: Weights, rules: Rules, *, given: Collection[str] = ()) -> None:
        self.config, self.rules = config, rules
        self.reward = RewardConfig(
            expert=rules.labeler,
            lexicon=rules.lexicon,
            bertscore=weights.bertscore_config(),
            chexbert=weights.chexbert_config(),
            radgraph=replace(weights.radgraph_config(), cache=config.cache),
            ratescore=weights.ratescore_config(),
            srrbert=weights.srrbert_config(),
            temporal=weights.temporal_config(),
        )
        self.parse = SectionParser(config.headers)
        self.backends = Backends(self.reward, self.parse)
        self.rows = table_metrics(
            self.labeler.labels, one_section=config.protocol != "rexrank", by_character=rules.by_character
        )
        self.notes: list[str] = []  # on metrics that failed for some reports
        self.missing = dict(rules.missing)  # cells -> how to get what they need, or why they are not measured
        if config.protocol != "rexrank":
            self.missing["consistency_rules"] = "compares Findings with Impression: protocol rexrank only"
        if rules.by_character:
            self.missing |= dict.fromkeys(("meteor", "meteor_counts"), "reads English only")
        for model in LOADERS:
            names = [name for name, needed in MODELS.items() if needed == model and name not in self.missing]
            reason = "given, and not measured" if {*names} <= {*given} else self._load(model, weights)
            self.missing |= dict.fromkeys(names, reason) if reason else {}

    @property
    def labeler(self) -> Labeler:
        """The rules that read labels."""
        return self.backends.rules

    def _load(self, model: str, weights: Weights) -> str | None:
        """Load a model; returns why that is not possible."""
        if lacks := weights.how_to_get(model):
            return lacks
        try:
            LOADERS[model](self.backends)
        except ValueError as error:
            return f"does not load: {error}"
        if model == "radgraph":  # two F1 of the same reports, and baselines bring references back
            radgraph = self.backends.radgraph
            radgraph.annotate = partial(annotate_once, radgraph.annotate, radgraph.cache)
        return None

    def cells(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        *,
        title: str,
        names: Collection[str] | None = None,
        ids: Sequence[str] | None = None,
    ) -> Cells:
        """Cells by name (all, or `names` and what they follow from), one row per pair, with RadCliQ if its sub-scores
        are there. Equal pairs are measured once, but by a metric that depends on all of them.

        Args:
            ids: of the studies; None for a baseline, whose reports are named by their numbers.

        Raises:
            RewardError: a metric cannot be measured, or fails for most of the studies.
        """
        wanted = {*MODELS} if names is None else {*names}
        wanted |= {*SUB_SCORES} if wanted & RADCLIQ.keys() else set()
        asked = [name for name in MODELS if name in wanted and name not in self.missing]
        pairs = list(zip(predictions, references, strict=True))
        together = [name for name in asked if name in METRICS and METRICS[name].together]
        rules = [name for name in asked if MODELS[name] is None]
        models = [name for name in asked if MODELS[name] is not None and name not in together]
        different = list(dict.fromkeys(pairs))
        rows = {pair: i for i, pair in enumerate(different)}
        indices, faults, cells = [rows[pair] for pair in pairs], list[Fault](), Cells()
        for chosen, size, workers, shown in (
            (rules, RULES_CHUNK, self.config.workers, title),
            (models, MODELS_CHUNK, 0, f"{title} (models)"),
        ):
            found, failed = self._measure(different, chosen, size, shown, workers=workers)
            cells |= {name: column[indices] for name, column in found.items()}
            faults += [replace(one, report=i) for one in failed for i, row in enumerate(indices) if row == one.report]
        found, failed = self._measure(pairs, together, len(pairs), title, workers=0)
        names_of = ids or [str(number) for number in range(1, len(pairs) + 1)]
        named = ((names_of[one.report], one) for one in (*faults, *failed))
        config = self.reward if ids else replace(self.reward, max_failed=1.0)
        self.notes += describe_faults(named, config, num_reports=len(pairs))
        return with_radcliq(cells | found)

    def _measure(
        self, pairs: Sequence[Pair], names: Sequence[str], size: int, title: str, *, workers: int
    ) -> tuple[Cells, list[Fault]]:
        if not names:
            return {}, []
        parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        chunks, faults, done = [], [], 0
        with tqdm(total=len(pairs), desc=title, unit="report", disable=None, leave=False) as bar:
            for part, (cells, failed) in zip(parts, self._chunks(parts, names, workers), strict=True):
                chunks.append(cells)
                faults += [replace(fault, report=fault.report + done) for fault in failed]
                done += len(part)
                bar.update(len(part))
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}, faults

    def _chunks(
        self, parts: Sequence[Sequence[Pair]], names: Sequence[str], workers: int
    ) -> Iterator[tuple[Cells, tuple[Fault, ...]]]:
        work = partial(measure, names=names, protocol=self.config.protocol)
        many = workers > 1 and len(parts) > 1
        backends = partial(Backends, self.reward, self.parse) if many else lambda: self.backends
        build, limit_s = partial(_measure_with, work, backends), self.reward.timeout_s
        watched = WatchedWorkers(workers if many else 0, build, limit_s=limit_s, option="the limit")
        try:
            pending = [watched.submit("pairs", part, patience=SINGLES) for part in parts]
            yield from (future.result() for future in pending)
        finally:
            watched.close()


def measure(
    pairs: Sequence[Pair], *, names: Sequence[str], protocol: Protocol, backends: Backends
) -> tuple[Cells, tuple[Fault, ...]]:
    """Cells of some pairs of (prediction, reference), and which values a metric failed to give."""
    sides = [p for p, _ in pairs], [r for _, r in pairs]
    cells: Cells = {}
    for name in LABEL_CELLS:
        if name in names:
            labeler = LABELERS[name](backends)
            tables = ([[label in found for label in labeler.labels] for found in labeler(side)] for side in sides)
            cells[name] = label_cells(*tables)
    if "bleu_counts" in names:
        cells["bleu_counts"] = np.array(ngram_counts(*sides), dtype=np.float64)
    if "meteor_counts" in names:
        cells["meteor_counts"] = backends.meteor.counts(*map(tuple, sides))
    metrics = load_metrics([name for name in names if name not in (*LABEL_CELLS, *COUNT_CELLS)], backends)
    if protocol != "rexrank":
        text: Reads = "text"
        read = {name: (text, metric) for name, (_, metric) in metrics.metrics.items()}
        metrics = Metrics(backends.parse, read, together=metrics.together)
    table = metrics.table(*sides)
    return cells | {name: _column(column) for name, column in table.columns.items()}, table.faults


def _column(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _measure_with(work: Callable[..., object], backends: Callable[[], Backends], _: str) -> Callable[..., object]:
    """`measure` with the backends of a worker, for the only kind of task that there is."""
    return partial(work, backends=backends())


def annotate_once(annotate: Annotate, graphs: GraphCache, texts: Sequence[str]) -> list[Graph]:
    """RadGraph's graphs of texts, those of predictions kept as well."""
    known = graphs.read(set(texts))
    waiting = [text for text in dict.fromkeys(texts) if text not in known]
    new = dict(zip(waiting, annotate(waiting), strict=True)) if waiting else {}
    graphs.write(new)
    return [(known | new)[text] for text in texts]


def with_radcliq(cells: Mapping[str, np.ndarray]) -> Cells:
    """The cells and RadCliQ, if all of its sub-scores are there."""
    made = dict(cells)
    if all(name in cells for name in SUB_SCORES):
        for name, regression in RADCLIQ.items():
            made.setdefault(name, np.asarray(regression(*(cells[part] for part in SUB_SCORES))))
    return made


def lacking(rows: Sequence[TableMetric], cells: Cells, missing: Mapping[str, str]) -> dict[str, str]:
    """Row -> why it has no value, with the way to get one; `missing` says it of cells that were not measured."""
    found = {}
    for row in rows:
        if row.cells in cells and not row.defined(cells).any():
            found[row.name] = "neither side has a label" if row.labels else "no reference defines it"
        elif row.cells in RADCLIQ and row.cells not in cells:
            absent = [METRICS[name].label for name in SUB_SCORES if name not in cells]
            found[row.name] = f"needs {', '.join(absent)}: see these"
        elif row.cells not in cells:
            found[row.name] = missing[row.cells]
    return found


def notes_on_lacking(rows: Sequence[TableMetric], reasons: Mapping[str, str], *, explained: bool) -> list[str]:
    """The reasons as lines of a table's foot, each with the labels of its rows; or one line of labels."""
    if reasons and not explained:
        names = ", ".join(row.label for row in rows if row.name in reasons)
        return [f"not computed here: {names}; --all lists them with reasons and commands"]
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row.name in reasons:
            labels.setdefault(reasons[row.name], []).append(row.label)
    return [f"unavailable: {', '.join(names)}: {reason}" for reason, names in labels.items()]
