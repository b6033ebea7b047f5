"""`evaluate.py score`: one system against its references, next to baselines that see nothing or only copy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from capo.checks import check_range
from radflow.data.protocols import Pairs
from radflow.data.sections import SectionParser
from radflow.evaluation.baselines import BASELINES, Baselines, Texts, measure_baselines, nearest_texts
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
from radflow.evaluation.measuring import MODELS, MeasureConfig, Measures, lacking, with_radcliq
from radflow.evaluation.precomputed import Rows, precomputed_cells, read_precomputed
from radflow.evaluation.rules import DEFAULT_LABELER, choose_rules
from radflow.evaluation.scored import Row, Scored, tables, write
from radflow.evaluation.table_metrics import Cells, TableMetric, notes_on_labels, table_metrics
from radflow.evaluation.weights import Weights
from radflow.pipeline.command_line import say
from radflow.pipeline.comparison import Variety
from radflow.pipeline.tables import documents
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.registry import LABELERS


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
    own = {*pairs.ids}
    others = [study_id for study_id in given if study_id not in own]
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
    measured = measures.cells(pairs.predictions, pairs.references, title="score", names=names, ids=pairs.ids)
    found = measure_baselines(measures, pairs.references, train, nearest, sample=sample)
    asked = ask(pairs) if ask else LlmScores()
    cells = with_radcliq(measured | made) | asked.cells
    lists = {**left_out(pairs), **(lists or {})}
    varieties = {"predictions": Variety.of(pairs.predictions), "references": Variety.of(pairs.references)}
    missing = measures.missing | dict.fromkeys(asked.cells, "the model answered for no report")
    metrics = [*measures.rows, *asked.rows]
    rows = _rows(config, metrics, cells, missing, found)
    feet = _feet(config, pairs.ids, rules.labeler, varieties, found)
    feet += [*notes_on_labels(metrics, cells), *measures.notes, *rules.tokens, *asked.notes, *pairs.notes, *notes]
    feet += notes_on(lists)
    return Scored(pairs.ids, cells, rules.labeler, rows, found, varieties, lists, feet, asked.listed)


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
