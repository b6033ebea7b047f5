"""Cells of the metrics that need no weights, in this process or shared out over worker processes.

A cell depends on its two texts alone: neither the number of workers nor what is scored beside it changes a digit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.protocols import Protocol
from data.sections import parse_sections
from evaluation.table_metrics import LABEL_CELLS, Cells, label_cells
from rewards.catalogue import Backends
from rewards.chexpert_rules import LABELS, ChexpertRules
from rewards.config import RewardConfig
from rewards.entity_rules import EntityF1Rules
from rewards.expert import LabelF1
from rewards.judge_config import JudgeConfig
from rewards.keywords import KeywordMatch
from rewards.lexical import Bleu2, RougeL
from rewards.lexicon import CAROTID
from rewards.measure import Metrics

NAMES = (
    "bleu2", "rouge_l", "labels_rules", "keyword_f1_rules", "label_f1_rules", "entity_f1_rules", "consistency_rules"
)  # fmt: skip
BY_SECTION = ("label_f1_rules", "entity_f1_rules", "consistency_rules")  # they read sections of a whole report
CHUNK = 128  # pairs that a worker is given at a time

Pair = tuple[str, str]


@dataclass(frozen=True)
class WeightFree:
    """Measures pairs of texts.

    With protocol rexrank, label F1 is of the Impressions, entity F1 of the Findings, and consistency of the two
    sections of the prediction, by the parser rule of rewards (`rewards.measure`). With a single section both F1 are of
    that section, and there is no consistency.
    """

    protocol: Protocol
    lexicon: Path = CAROTID
    workers: int = 0
    """Processes; 0 and 1 measure in this one."""

    @property
    def names(self) -> tuple[str, ...]:
        """Cells that the protocol defines."""
        return NAMES if self.protocol == "rexrank" else NAMES[:-1]

    def __call__(
        self, predictions: Sequence[str], references: Sequence[str], names: Sequence[str], *, title: str
    ) -> Cells:
        """Cells by name, one row a pair; equal pairs are measured once."""
        pairs = list(zip(predictions, references, strict=True))
        different = list(dict.fromkeys(pairs))
        parts = [different[i : i + CHUNK] for i in range(0, len(different), CHUNK)]
        rows: dict[Pair, int] = {pair: i for i, pair in enumerate(different)}
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        with tqdm(total=len(different), desc=title, unit="report", disable=None, leave=False) as bar:
            for part, cells in zip(parts, self._measured(parts, tuple(names)), strict=True):
                for name in names:
                    found[name].append(cells[name])
                bar.update(len(part))
        places = [rows[pair] for pair in pairs]
        return {name: np.concatenate(chunks)[places] for name, chunks in found.items()}

    def _measured(self, parts: Sequence[Sequence[Pair]], names: tuple[str, ...]) -> Iterator[Cells]:
        jobs = [(part, names, self.protocol, str(self.lexicon)) for part in parts]
        if self.workers < 2 or len(parts) < 2:
            yield from (measure(*job) for job in jobs)
            return
        import loky

        with loky.ProcessPoolExecutor(self.workers, env={"OMP_NUM_THREADS": "1"}) as executor:
            yield from executor.map(_measure_job, jobs)


def _measure_job(job: tuple) -> Cells:
    return measure(*job)


def measure(pairs: Sequence[Pair], names: tuple[str, ...], protocol: Protocol, lexicon: str) -> Cells:
    """Cells of some pairs of (prediction, reference)."""
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    cells: Cells = {}
    sectioned = tuple(name for name in names if name in BY_SECTION)
    if protocol == "rexrank" and sectioned:
        cells |= _by_section(sectioned, predictions, references)
    for name in names:
        if name not in cells:
            values = _metric(name, lexicon)(predictions, references)
            cells[name] = values if name in LABEL_CELLS else np.asarray(values, dtype=np.float64)
    return cells


def _by_section(names: tuple[str, ...], predictions: Sequence[str], references: Sequence[str]) -> Cells:
    measured = _section_metrics(names)(predictions, references)
    cells = {name: np.array([np.nan if v is None else v for v in measured.values[name]]) for name in names}
    if "label_f1_rules" in cells:
        # A report that lacks the Impression which its reference has agrees with it on nothing.
        expected = np.array([bool(parse_sections(reference).impression) for reference in references])
        cells["label_f1_rules"][expected & np.isnan(cells["label_f1_rules"])] = 0.0
    return cells


@cache
def _section_metrics(names: tuple[str, ...]) -> Metrics:
    return Metrics.load(parse_sections, names, Backends(RewardConfig(), JudgeConfig()))


@cache
def _metric(name: str, lexicon: str):
    makers = {
        "bleu2": Bleu2,
        "rouge_l": RougeL,
        "labels_rules": lambda: _rule_labels,
        "keyword_f1_rules": lambda: KeywordMatch.with_lexicon(lexicon),
        "label_f1_rules": lambda: LabelF1(ChexpertRules()),
        "entity_f1_rules": EntityF1Rules,
    }
    return makers[name]()


def _rule_labels(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    labeler = ChexpertRules()
    first, second = (
        [[int(label in s) for label in LABELS] for s in labeler(side)] for side in (predictions, references)
    )
    return label_cells(first, second)
