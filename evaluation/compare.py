"""`evaluate.py compare`: systems against one another over the studies that all of them report."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from capo.journal import write_json, write_whole
from data.protocols import Pairs, Protocol
from evaluation.inputs import left_out, notes_on, read_pairs, read_references
from evaluation.measuring import Measures, available, lacking, without_keywords
from evaluation.model_cells import ModelCells
from evaluation.table_metrics import BY_NAME, METRICS, Cells, TableMetric, inverse_of_mean, per_label_f1
from evaluation.tables import Table, bounds, documents, number
from evaluation.variety import Variety
from evaluation.weight_free import WeightFree
from evaluation.weights import Weights
from rewards.chexpert_rules import ChexpertRules
from rewards.criticality import CriticalityRules
from rewards.lexicon import CAROTID, Lexicon
from rewards.statistics import Interval, bootstrap_difference, holm, randomisation_test


@dataclass(frozen=True)
class CompareConfig:
    """Which systems, over what, and how differences are tested."""

    systems: tuple[Path, ...]
    """Files or folders of reports; the first is the one that others are compared with."""
    references: Path | None = None
    """File or folder of references; else those beside the first system's predictions."""
    protocol: Protocol = "rexrank"
    """Which text is compared."""
    split: str = "all"
    """Only references of this split."""
    pairs: Literal["first", "all"] = "first"
    """Each other system against the first, or every pair."""
    changed: int = 10
    """Studies shown that changed most, in each direction."""
    changed_by: str | None = None
    """Metric by which they changed; unset: RadCliQ-v1 where it is there, else entity F1 by rules."""
    lexicon: Path = CAROTID
    """Keywords of KeyWordMatch."""
    workers: int = 0
    """Processes for what needs no weights."""
    cache: Path | None = None
    """SQLite file of RadGraph's graphs."""
    num_resamples: int = 10_000
    """Bootstrap resamples, and shuffles of the randomisation test."""
    seed: int = 0
    """Of both."""

    def __post_init__(self) -> None:
        if len(self.systems) < 2:
            raise ValueError(f"expected at least two files of reports to compare, got {len(self.systems)}")
        if self.workers < 0 or self.changed < 0 or self.num_resamples < 100:
            raise ValueError(
                "expected --workers and --changed not negative and --resamples of at least 100, got "
                f"{self.workers}, {self.changed} and {self.num_resamples}"
            )
        if self.changed_by is not None and (self.changed_by not in BY_NAME or BY_NAME[self.changed_by].labels):
            names = [metric.name for metric in METRICS if not metric.labels]
            raise ValueError(f"expected --changed-by among {', '.join(names)}, got {self.changed_by}")


@dataclass(frozen=True)
class System:
    """One system over the common studies."""

    name: str
    reports: Sequence[str]
    cells: Cells


@dataclass(frozen=True)
class Test:
    """One metric of two systems."""

    metric: TableMetric
    first: str
    second: str
    difference: Interval  # second minus first, over the studies that define the metric for both
    studies: int
    p: float  # approximate randomisation, two-sided
    corrected: float  # Holm, over all tests of the comparison


@dataclass(frozen=True)
class Compared:
    """Everything that the files of a comparison are written from."""

    ids: Sequence[str]
    references: Sequence[str]
    systems: Sequence[System]
    tests: Sequence[Test]
    critical: np.ndarray  # [N] bool
    lists: Mapping[str, Mapping[str, Sequence[str]]]  # system -> ids left out, by why
    reasons: Mapping[str, str]  # metric -> why it is not compared


def compare(config: CompareConfig, weights: Weights) -> Compared:
    """Compare files of reports.

    Raises:
        ValueError: a file does not fit, or no study is common to all; names the file.
    """
    references = read_references(config.references, config.systems[0], None, split=config.split)
    read = {name: read_pairs(path, references, config.protocol) for name, path in _names(config.systems).items()}
    ids, texts, lists = _common(read)
    measures = Measures(
        WeightFree(config.protocol, config.lexicon, config.workers), ModelCells(weights, cache=config.cache)
    )
    first = next(iter(read.values()))
    expected = dict(zip(first.ids, first.references, strict=True))
    targets, lexicon = [expected[study_id] for study_id in ids], Lexicon.load(config.lexicon)
    systems, reasons = [], {}
    for name, reports in texts.items():
        cells, no_keywords = without_keywords(measures.cells(reports, targets, title=name), targets, lexicon)
        systems.append(System(name, reports, cells))
        reasons |= lacking(cells, measures) | no_keywords
    critical = [found.critical for found in CriticalityRules(ChexpertRules())(targets)]
    return Compared(ids, targets, systems, _tests(systems, config), np.array(critical), lists, reasons)


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """A name for each file: its own, or its path where two files have one name."""
    stems = [path.stem for path in paths]
    names = [path.stem if stems.count(path.stem) == 1 else str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"expected different files to compare, got {', '.join(map(str, paths))}")
    return dict(zip(names, paths, strict=True))


def _common(read: Mapping[str, Pairs]):
    """Ids that all systems report, the systems' texts of them, and what is left out of each."""
    shared = set.intersection(*(set(pairs.ids) for pairs in read.values()))
    ids = [study_id for study_id in next(iter(read.values())).ids if study_id in shared]
    if not ids:
        raise ValueError("expected studies that all systems report, got none; rename the ids of one file")
    lists, texts = {}, {}
    for name, pairs in read.items():
        lists[name] = left_out(pairs)
        if others := [study_id for study_id in pairs.ids if study_id not in shared]:
            lists[name]["predictions that another system lacks, not compared"] = others
        written = dict(zip(pairs.ids, pairs.predictions, strict=True))
        texts[name] = [written[study_id] for study_id in ids]
    return ids, texts, lists


def _tests(systems: Sequence[System], config: CompareConfig) -> list[Test]:
    chosen = list(itertools.combinations(systems, 2))
    chosen = chosen if config.pairs == "all" else [(a, b) for a, b in chosen if a is systems[0]]
    # 1/RadCliQ-v1 says the same as RadCliQ-v1: tested twice, it would only cost the others power.
    work = [(m, a, b) for a, b in chosen for m in available(a.cells) if m.statistic is not inverse_of_mean]
    found = []
    for metric, a, b in tqdm(work, "tests", unit="test", disable=None, leave=False):
        places = np.flatnonzero(metric.defined(a.cells) & metric.defined(b.cells))
        if not len(places):
            continue
        first, second = metric.columns(a.cells, places), metric.columns(b.cells, places)
        options = {"seed": config.seed}
        difference = bootstrap_difference(
            first, second, metric.statistic, num_resamples=config.num_resamples, **options
        )
        p = randomisation_test(first, second, metric.statistic, num_shuffles=config.num_resamples, **options)
        found.append(Test(metric, a.name, b.name, difference, len(places), p, p))
    corrected = holm([test.p for test in found])
    return [dataclasses.replace(test, corrected=value) for test, value in zip(found, corrected, strict=True)]


def changed_by(compared: Compared, asked: str | None) -> TableMetric:
    """The metric by which studies changed.

    Raises:
        ValueError: the one asked for is not available.
    """
    there = {metric.name for metric in available(compared.systems[0].cells)}
    names = [asked] if asked else ["radcliq_v1", "entity_f1_rules"]
    found = next((name for name in names if name in there), None)
    if found is None:
        raise ValueError(f"--changed-by {names[-1]}: it is not available here; choose among {', '.join(sorted(there))}")
    return BY_NAME[found]


def tables(compared: Compared, config: CompareConfig) -> tuple[list[Table], list[str]]:
    """Differences, labels, the split by criticality, the studies that changed most; and the notes."""
    made = [_differences(compared), _labels(compared), _by_criticality(compared), *_changes(compared, config)]
    notes = [
        f"protocol {config.protocol}, {len(compared.ids)} studies that all systems report; differences with 95 % "
        f"paired bootstrap intervals; p by approximate randomisation, "
        f"Holm-corrected over all {len(compared.tests)} tests"
    ]
    notes += [Variety.of(system.reports).line(system.name) for system in compared.systems]
    notes += [f"{name}: {line}" for name, lists in compared.lists.items() for line in notes_on(lists)]
    missing: dict[str, list[str]] = {}
    for name, reason in compared.reasons.items():
        missing.setdefault(reason, []).append(BY_NAME[name].label)
    return made, [*notes, *(f"unavailable: {', '.join(labels)}: {reason}" for reason, labels in missing.items())]


def _differences(compared: Compared) -> Table:
    values = {system.name: system.cells for system in compared.systems}
    rows = []
    for test in compared.tests:
        metric, d = test.metric, test.difference
        shown = [number(metric.value(values[name])) for name in (test.first, test.second)]
        worse = "" if metric.better == "higher" else " (lower is better)"
        rows.append([
            metric.label + worse, f"{test.second} - {test.first}", *shown, number(d.mean, signed=True),
            bounds(d.low, d.high, signed=True), _p(test.p), _p(test.corrected), str(test.studies),
        ])  # fmt: skip
    head = ["metric", "systems", "first", "second", "difference", "95 % interval", "p", "p (Holm)", "studies"]
    return Table("Differences", head, rows)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _labels(compared: Compared) -> Table:
    scores = [per_label_f1(system.cells["labels_rules"]) for system in compared.systems]
    rows = [[label, str(n), *(number(one[label][0]) for one in scores)] for label, (_, n) in scores[0].items()]
    head = ["label (by rules)", "references", *(system.name for system in compared.systems)]
    return Table("F1 of each label", head, rows)


def _by_criticality(compared: Compared) -> Table:
    groups = {"critical": np.flatnonzero(compared.critical), "normal": np.flatnonzero(~compared.critical)}
    rows = []
    for metric in available(compared.systems[0].cells):
        cells = []
        for places in groups.values():
            cells += [number(metric.value(s.cells, places)) if len(places) else "-" for s in compared.systems]
        rows.append([metric.label, *cells])
    head = [f"{s.name}, {name} ({len(places)})" for name, places in groups.items() for s in compared.systems]
    return Table("Critical and normal references (by rules)", ["metric", *head], rows)


def _changes(compared: Compared, config: CompareConfig) -> list[Table]:
    """For each other system, the studies whose value moved most from the first system's, both ways."""
    metric, first = changed_by(compared, config.changed_by), compared.systems[0]
    sign = 1 if metric.better == "higher" else -1
    made = []
    for system in compared.systems[1:] if config.changed else ():
        a, b = first.cells[metric.cells], system.cells[metric.cells]
        known = np.flatnonzero(~np.isnan(a) & ~np.isnan(b))
        order = known[np.argsort(sign * (b - a)[known], kind="stable")]
        worse = [i for i in order[: config.changed] if sign * (b - a)[i] < 0]
        better = [i for i in order[::-1][: config.changed] if sign * (b - a)[i] > 0]
        rows = [
            [compared.ids[i], way, number(a[i]), number(b[i]), number(b[i] - a[i], signed=True)]
            for way, places in (("better", better), ("worse", worse))
            for i in places
        ]
        head = ["study", f"with {system.name}", first.name, system.name, "difference"]
        made.append(Table(f"Studies that changed most, by {metric.label}", head, rows))
    return made


def write(compared: Compared, folder: Path, shown: Sequence[Table], notes: Sequence[str]) -> None:
    """Write comparison.txt, .md, .tex and .json."""
    for ending, text in documents(shown, notes).items():
        write_whole(folder / f"comparison.{ending}", text)
    tests = [
        {
            "metric": test.metric.name, "first": test.first, "second": test.second,
            "difference": test.difference.mean, "low": test.difference.low, "high": test.difference.high,
            "p": test.p, "p_holm": test.corrected, "studies": test.studies,
        }
        for test in compared.tests
    ]  # fmt: skip
    content = {
        "systems": [system.name for system in compared.systems],
        "studies": len(compared.ids),
        "critical": int(compared.critical.sum()),
        "tests": tests,
        "tables": [dataclasses.asdict(table) for table in shown],
        "left_out": compared.lists,
        "unavailable": dict(compared.reasons),
        "notes": list(notes),
    }
    write_json(folder / "comparison.json", content)
