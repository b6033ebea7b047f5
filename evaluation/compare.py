"""`evaluate.py compare`: systems against one another over the studies that all of them report."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes, Positional

from capo.checks import check_range
from capo.journal import write_json, write_whole
from radflow.data.protocols import Pairs
from radflow.data.readers.tables import escape_control
from radflow.data.sections import SectionParser
from radflow.evaluation.forest import Difference, forest_plot
from radflow.evaluation.inputs import FilesConfig, left_out, name_files, notes_on, read_pairs, read_references
from radflow.evaluation.measuring import MeasureConfig, Measures, lacking, notes_on_lacking
from radflow.evaluation.rules import choose_rules
from radflow.evaluation.table_metrics import (
    PER_REPORT,
    Cells,
    TableMetric,
    available,
    inverse_of_mean,
    notes_on_labels,
    per_label_f1,
)
from radflow.evaluation.weights import Weights
from radflow.pipeline.command_line import say
from radflow.pipeline.comparison import Variety
from radflow.pipeline.tables import Table, bounds, documents, number, with_direction
from radflow.rewards.rules.criticality import CriticalityRules
from radflow.rewards.statistics import Interval, bootstrap_difference, holm, randomisation_test

if TYPE_CHECKING:
    import pandas

CHANGED = 10  # studies shown that changed most, in each direction


@dataclass(frozen=True, kw_only=True)
class CompareConfig(FilesConfig):
    """Which systems, over what, and how differences are tested."""

    systems: Positional[tuple[Path, ...]]
    """Files or folders of reports; the first is the one that others are compared with."""
    pairs: Literal["first", "all"] = "first"
    """Each other system against the first, or every pair."""
    changed: int = CHANGED
    """Studies shown that changed most, in each direction."""
    changed_by: str | None = None
    """Metric by which they changed; unset: RadCliQ-v1 if it is there, else entity F1 by rules."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.systems) < 2:
            raise ValueError(f"expected at least two files of reports to compare, got {len(self.systems)}")
        check_range(self, "changed", least=0)
        if self.changed_by is not None and self.changed_by not in PER_REPORT:
            raise ValueError(f"expected changed_by among {', '.join(PER_REPORT)}, got {self.changed_by}")


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

    @property
    def row(self) -> dict[str, str | float | int]:
        """As one line of a file."""
        systems, d = {"metric": self.metric.name, "first": self.first, "second": self.second}, self.difference
        bounded = {"difference": d.mean, "low": d.low, "high": d.high}
        return {**systems, **bounded, "p": self.p, "p_holm": self.corrected, "studies": self.studies}


@dataclass(frozen=True)
class Compared:
    """Everything that the files of a comparison are written from."""

    ids: Sequence[str]
    systems: Sequence[System]
    tests: Sequence[Test]
    measures: Measures
    critical: np.ndarray  # [N] bool, by the labeler
    lists: Mapping[str, Mapping[str, Sequence[str]]]  # system -> ids left out, by why
    reasons: Mapping[str, str]  # metric -> why it is not compared
    notes: Sequence[str]  # on how the files were read

    @property
    def values(self) -> dict[str, dict[str, float | None]]:
        """Each metric of each system by its name; None if the system does not define it."""
        rows = self.measures.rows
        known = {row.name: row for system in self.systems for row in available(rows, system.cells)}
        return {s.name: {name: row.value(s.cells) for name, row in known.items()} for s in self.systems}

    @property
    def columns(self) -> dict[str, list[str | float | int]]:
        """The tests, a column each: metric, first, second, difference, low, high, p, p_holm, studies."""
        rows = [test.row for test in self.tests]
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}

    def to_pandas(self) -> "pandas.DataFrame":
        """The tests, one row each; needs pandas."""
        import pandas

        return pandas.DataFrame(self.columns)

    def __str__(self) -> str:
        return documents(*tables(self))["txt"]


def compare_files(config: OmitArgPrefixes[CompareConfig], weights: Weights, out: Path | None = None) -> None:
    """Compare two or more files of reports, paired by study.

    Args:
        out: Folder of the comparison as text, Markdown, LaTeX, JSON and picture.
    """
    compared = compare(config, weights)
    shown, notes = tables(compared, changed=config.changed, changed_by=config.changed_by, explained=config.all)
    say(documents(shown, notes)["txt"].rstrip("\n"))
    if out is not None:
        write(compared, out, shown, notes)
        say(f"\nwritten to {out}")


def compare(config: CompareConfig, weights: Weights) -> Compared:
    """The comparison.

    Raises:
        ValueError: a file does not fit, or no study is common to all; names the file.
    """
    references = read_references(config.references, config.systems[0], None, split=config.split)
    parse = SectionParser(config.headers)
    read = {
        name: read_pairs(path, references, config.protocol, parse) for name, path in name_files(config.systems).items()
    }
    return compare_pairs(read, config, weights, files=(*config.systems, config.references), which=config.pairs)


def compare_pairs(
    read: Mapping[str, Pairs],
    config: MeasureConfig,
    weights: Weights,
    *,
    files: Sequence[Path | None] = (),
    which: Literal["first", "all"] = "first",
) -> Compared:
    """The comparison of systems by name.

    Args:
        files: that the texts are from; those of a run name its rules.
        which: each other system against the first, or every pair.

    Raises:
        ValueError: no study is common to all.
    """
    ids, texts, lists = _common(read)
    targets = _targets(read, ids)
    rules = choose_rules(config.labeler, config.lexicon, files, targets, SectionParser(config.headers))
    measures = Measures(config, weights, rules)
    systems = [
        System(n, reports, measures.cells(reports, targets, title=escape_control(n), ids=ids))
        for n, reports in texts.items()
    ]
    tests, reasons = _test(systems, measures, which), dict[str, str]()
    for system in systems:
        reasons |= lacking(measures.rows, system.cells, measures.missing)
    critical = np.array([found.critical for found in CriticalityRules(measures.labeler, rules.definition)(targets)])
    notes = list(dict.fromkeys(note for pairs in read.values() for note in pairs.notes))
    return Compared(ids, systems, tests, measures, critical, lists, reasons, [*measures.notes, *notes])


def _common(read: Mapping[str, Pairs]) -> tuple[list[str], dict[str, list[str]], dict[str, dict[str, list[str]]]]:
    """Ids that all systems report, the systems' texts of them, and what is left out of each."""
    having = {name: set(pairs.ids) for name, pairs in read.items()}
    shared = set.intersection(*having.values())
    ids = [study_id for study_id in next(iter(read.values())).ids if study_id in shared]
    if not ids:
        raise ValueError("expected studies that all systems report, got none; rename the ids of one file")
    lists, texts = {}, {}
    for name, pairs in read.items():
        lists[name] = left_out(pairs)
        for other, known in having.items():
            if lacking := [study_id for study_id in pairs.ids if study_id not in known]:
                lists[name][f"predictions that {other} lacks, not compared"] = lacking
        written = dict(zip(pairs.ids, pairs.predictions, strict=True))
        texts[name] = [written[study_id] for study_id in ids]
    return ids, texts, lists


def _targets(read: Mapping[str, Pairs], ids: Sequence[str]) -> list[str]:
    """The references of these studies; ValueError if they are others for some system, which references without ids are
    if the systems list their studies in another order."""
    first, *others = [dict(zip(pairs.ids, pairs.references, strict=True)) for pairs in read.values()]
    for study_id in ids:
        if any(other[study_id] != first[study_id] for other in others):
            wanted = "expected systems in one order, since the references have no ids"
            raise ValueError(
                f"{wanted}, got study {escape_control(study_id)} in different rows; add ids to the references"
            )
    return [first[study_id] for study_id in ids]


def _test(systems: Sequence[System], measures: Measures, which: Literal["first", "all"]) -> list[Test]:
    config = measures.config
    pairs = [(a, b) for a, b in itertools.combinations(systems, 2) if which == "all" or a is systems[0]]
    # 1/RadCliQ-v1 says the same as RadCliQ-v1: tested twice, it would only cost the others power.
    tested = [metric for metric in measures.rows if metric.statistic is not inverse_of_mean]
    work = [(metric, a, b) for a, b in pairs for metric in available(tested, a.cells)]
    found = []
    for metric, a, b in tqdm(work, "tests", unit="test", disable=None, leave=False):
        indices = np.flatnonzero(metric.defined(a.cells) & metric.defined(b.cells))
        if not len(indices):
            continue
        sides = metric.columns(a.cells, indices), metric.columns(b.cells, indices), metric.statistic
        difference = bootstrap_difference(*sides, num_resamples=config.num_resamples, seed=config.seed)
        p = randomisation_test(*sides, num_shuffles=config.num_resamples, seed=config.seed)
        found.append(Test(metric, a.name, b.name, difference, len(indices), p, p))
    corrected = holm([test.p for test in found])
    return [dataclasses.replace(test, corrected=value) for test, value in zip(found, corrected, strict=True)]


def _changed_by(compared: Compared, asked: str | None) -> TableMetric:
    """The metric by which studies changed; ValueError if the one asked for is not available."""
    there = {metric.name: metric for metric in available(compared.measures.rows, compared.systems[0].cells)}
    names = [asked] if asked else ["radcliq_v1", "entity_f1_rules"]
    if found := [there[name] for name in names if name in there]:
        return found[0]
    known = ", ".join(sorted(there.keys() & {*PER_REPORT}))
    raise ValueError(f"changed_by {names[-1]}: it is not available here; choose among {known}")


def tables(
    compared: Compared, *, changed: int = CHANGED, changed_by: str | None = None, explained: bool = False
) -> tuple[list[Table], list[str]]:
    """Values, differences, labels, the split by criticality, the studies that changed most; and the notes."""
    rules = compared.measures.rules
    by_labels = [_labels(compared), _by_criticality(compared)] if rules.labels_fit else []
    texts = f"protocol {compared.measures.config.protocol}, labeler {rules.labeler}"
    studies = f"{len(compared.ids)} studies that all systems report"
    p = f"p by approximate randomisation, Holm-corrected over all {len(compared.tests)} tests"
    notes = [f"{texts}, {studies}; differences with 95 % paired bootstrap intervals; {p}"]
    notes += rules.tokens
    notes += [Variety.of(system.reports).line(system.name) for system in compared.systems]
    notes += compared.notes
    notes += [f"{name}: {line}" for name, lists in compared.lists.items() for line in notes_on(lists)]
    rows = compared.measures.rows
    notes += [f"{system.name}: {line}" for system in compared.systems for line in notes_on_labels(rows, system.cells)]
    notes += notes_on_lacking(rows, compared.reasons, explained=explained)
    return [_scores(compared), _differences(compared), *by_labels, *_changes(compared, changed, changed_by)], notes


def _scores(compared: Compared) -> Table:
    values, labels = (
        compared.values,
        {row.name: with_direction(row.label, row.better) for row in compared.measures.rows},
    )
    names = next(iter(values.values()))
    rows = [[labels[name], *(number(own[name]) for own in values.values())] for name in names]
    return Table("Scores", ["metric", *values], rows)


def _differences(compared: Compared) -> Table:
    values = {system.name: system.cells for system in compared.systems}
    rows = []
    for test in compared.tests:
        metric, d = test.metric, test.difference
        names = [with_direction(metric.label, metric.better), f"{test.second} - {test.first}"]
        shown = [number(metric.value(values[name])) for name in (test.first, test.second)]
        moved = [number(d.mean, signed=True), bounds(d.low, d.high, signed=True)]
        rows.append([*names, *shown, *moved, _p(test.p), _p(test.corrected), str(test.studies)])
    head = ["metric", "systems", "first", "second", "difference", "95 % interval", "p", "p (Holm)", "studies"]
    return Table("Differences", head, rows)


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _forest_rows(compared: Compared) -> list[Difference]:
    values = {system.name: system.cells for system in compared.systems}
    rows = []
    for test in compared.tests:
        metric, pair = test.metric, (test.first, test.second)
        label, bounded = with_direction(metric.label, metric.better), all(metric.within_one(values[n]) for n in pair)
        rows.append(Difference(label, *pair, test.difference, metric.better, bounded, _p(test.corrected)))
    return rows


def _labels(compared: Compared) -> Table:
    scores = [per_label_f1(system.cells["labels_rules"]) for system in compared.systems]
    labels = zip(compared.measures.labeler.labels, *scores, strict=True)
    rows = [[label, str(own[0][1]), *(number(f1) for f1, _ in own)] for label, *own in labels]
    return Table("F1 of each label", ["label (by rules)", "references", *(s.name for s in compared.systems)], rows)


def _by_criticality(compared: Compared) -> Table:
    groups = {"critical": np.flatnonzero(compared.critical), "normal": np.flatnonzero(~compared.critical)}
    rows = []
    for metric in available(compared.measures.rows, compared.systems[0].cells):
        pairs = itertools.product(groups.values(), compared.systems)
        rows.append([metric.label, *(number(metric.value(s.cells, i)) if len(i) else "-" for i, s in pairs)])
    head = [f"{s.name}, {name} ({len(indices)})" for name, indices in groups.items() for s in compared.systems]
    return Table("Critical and normal references (by rules)", ["metric", *head], rows)


def _changes(compared: Compared, changed: int, changed_by: str | None) -> list[Table]:
    """For each other system, the studies whose value moved most from the first system's, both ways."""
    metric, first = _changed_by(compared, changed_by), compared.systems[0]
    made = []
    for system in compared.systems[1:] if changed else ():
        a, b = first.cells[metric.cells], system.cells[metric.cells]
        gain = b - a if metric.better == "higher" else a - b
        known = np.flatnonzero(~np.isnan(gain))
        order = known[np.argsort(gain[known], kind="stable")]
        worse = [("worse", i) for i in order[:changed] if gain[i] < 0]
        better = [("better", i) for i in order[::-1][:changed] if gain[i] > 0]
        rows = [
            [compared.ids[i], way, number(a[i]), number(b[i]), number(b[i] - a[i], signed=True)]
            for way, i in (*better, *worse)
        ]
        head = ["study", f"with {system.name}", first.name, system.name, "difference"]
        made.append(Table(f"Studies that changed most, by {metric.label}", head, rows))
    return made


def write(compared: Compared, folder: Path, shown: Sequence[Table], notes: Sequence[str]) -> None:
    """Write comparison.txt, .md, .tex, .json and .svg, which the Markdown shows."""
    for ending, text in documents(shown, notes).items():
        picture = "\n![Differences with 95 % intervals](comparison.svg)\n" if ending == "md" else ""
        write_whole(folder / f"comparison.{ending}", text + picture)
    write_whole(folder / "comparison.svg", forest_plot(_forest_rows(compared)))
    rules = compared.measures.rules
    content = {
        "systems": [system.name for system in compared.systems],
        "studies": len(compared.ids),
        "labeler": rules.labeler,
        "critical": int(compared.critical.sum()) if rules.labels_fit else None,
        "values": compared.values,
        "tests": [test.row for test in compared.tests],
        "tables": [dataclasses.asdict(table) for table in shown],
        "left_out": compared.lists,
        "unavailable": dict(compared.reasons),
        "notes": list(notes),
    }
    write_json(folder / "comparison.json", content)
