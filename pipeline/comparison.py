"""The table of a run: held-out studies scored by the reward's own metrics, two policies next to two baselines.

`train.py` writes it; `evaluate.py score` and `compare` score files of reports with every metric (docs/evaluate.md).
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from tqdm import tqdm

from radflow.dashboard.checks import LOWER
from radflow.data.integrity import count_words
from radflow.data.nearest import nearest_indices
from radflow.data.phantoms import state_labels
from radflow.data.studies import Study
from radflow.pipeline.finding_errors import MADE_UP, MISSED, finding_errors
from radflow.pipeline.tables import Table, with_direction
from radflow.rewards.faults import describe_faults
from radflow.rewards.hierarchy import HierarchicalReward, LabelF1
from radflow.rewards.registry import METRICS, label_of
from radflow.rewards.rules.negation import sentences
from radflow.rewards.statistics import bootstrap_mean, distinct_share, paired_bootstrap
from radflow.rewards.workers import RewardWorkers

T = TypeVar("T")
Reward = HierarchicalReward | RewardWorkers
Columns = dict[str, list[float | None]]  # metric -> one value per study; None: the reference does not define it

TRUTH = "label_f1_true_state"  # phantoms only: the Impression against the true state, which no reward sees
LABELS = {
    "total": "total reward",
    TRUTH: "label F1 of the Impression (true state)",
    MADE_UP: "made-up findings",
    MISSED: "missed findings",
}


def score_reports(
    reward: Reward, reports: Sequence[str], studies: Sequence[Study], *, may_fail: bool = True
) -> Columns:
    """The total reward, every metric of the reward, made-up and missed findings, for every study; on phantoms the true
    state's label F1 too. Unless it may, RewardError if a metric fails for more than `reward.max_failed`."""
    columns = _score(reward, reports, studies, may_fail=may_fail) | finding_errors(reward.labeler, reports, studies)
    truths = [state_labels(study.state) for study in studies if study.state is not None]
    if len(truths) == len(studies):
        impressions = reward.labeler([reward.parse(report).impression for report in reports])
        present = [{label for label in truth if truth[label]} for truth in truths]
        columns[TRUTH] = [LabelF1.agreement(a, b) for a, b in zip(impressions, present, strict=True)]
    return columns


def score_rows(reward: Reward, reports: Sequence[str], studies: Sequence[Study]) -> list[dict[str, object]]:
    """The same study by study: rows of id, report and every metric; RewardError if one fails for too many."""
    columns: dict[str, Sequence[object]] = {"id": [study.id for study in studies], "report": reports}
    columns |= score_reports(reward, reports, studies, may_fail=False)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _score(reward: Reward, reports: Sequence[str], studies: Sequence[Study], *, may_fail: bool = True) -> Columns:
    table = reward.table(reports, [study.report for study in studies])
    faults = ((studies[fault.report].id, fault) for fault in table.faults)
    config = replace(reward.config, max_failed=1.0) if may_fail else reward.config
    for line in describe_faults(faults, config, num_reports=len(reports)):
        print(f"warning: {line}", flush=True)
    return dict(table.columns)


def even_sample(items: Sequence[T], size: int, *, keep: Callable[[T], object] = lambda _: True) -> list[T]:
    """At most `size` of the items, at even distances: to try all against all would be quadratic in their number."""
    return [item for item in items[:: max(1, len(items) // size)] if keep(item)][:size]


def best_constants(
    candidates: Iterable[tuple[str, Mapping[str, float | None]]], *, lower: Collection[str]
) -> dict[str, str]:
    """For each metric the report with the best value, the first of equal ones; of metrics in `lower` less is better.

    Each candidate is a report with the values of the metrics if every study gets it; None is the worst.
    """
    best: dict[str, tuple[float, str]] = {}
    for report, values in candidates:
        for name, value in values.items():
            merit = -math.inf if value is None else -value if name in lower else value
            if name not in best or merit > best[name][0]:
                best[name] = (merit, report)
    return {name: report for name, (_, report) in best.items()}


def constant_reports(reward: Reward, train: Sequence[Study], sample: int) -> dict[str, str]:
    """For each metric, the training report that scores best when given for each study of a training sample."""
    studies = even_sample(train, sample, keep=lambda study: study.impression)
    reports = list(dict.fromkeys(study.report for study in studies))
    bar = tqdm(reports, "constant baseline", unit="report", disable=None, leave=False)
    scored = ((report, _score(reward, [report] * len(studies), studies)) for report in bar)
    candidates = ((report, {name: _mean(values) for name, values in columns.items()}) for report, columns in scored)
    return best_constants(candidates, lower=LOWER)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def nearest_reports(train: Sequence[Study], test: Sequence[Study], side: int = 32) -> list[str]:
    """Report of the training study whose first image is most similar: cosine of `side` x `side` standardised pixels."""
    return [train[i].report for i in nearest_indices(train, test, side)]


def with_other_images(studies: Sequence[Study]) -> list[Study]:
    """The same studies, each with the images of another: a policy that scores the same on them does not look."""
    half = len(studies) // 2
    pairs = zip(studies, [*studies[half:], *studies[:half]], strict=True)
    return [replace(own, images=new.images, prior_images=new.prior_images, views=new.views) for own, new in pairs]


def baseline_columns(
    reward: Reward, train: Sequence[Study], test: Sequence[Study], *, sample: int
) -> dict[str, Columns]:
    """What two systems that see nothing, or only copy, score on the test studies; `sample` training reports are tried
    as constant, each on as many training studies."""
    constants = constant_reports(reward, train, sample)
    scored = {report: score_reports(reward, [report] * len(test), test) for report in dict.fromkeys(constants.values())}
    constant = {name: scored[report][name] for name, report in constants.items()}
    chosen = scored[constants["label_f1_rules" if "label_f1_rules" in constants else "total"]]
    constant |= {name: chosen[name] for name in (TRUTH, MADE_UP, MISSED) if name in chosen}
    nearest = score_reports(reward, nearest_reports(train, test), test)
    return {"best constant": constant, "nearest neighbour": nearest}


def comparison_rows(
    first: Columns, second: Columns, baselines: Mapping[str, Columns] | None = None
) -> list[dict[str, object]]:
    """One row per metric: both means with their intervals, the paired difference with its own, and the baselines; None
    for all of them if no study has a value."""
    rows = []
    for name in first:
        pairs = [(a, b) for a, b in zip(first[name], second[name], strict=True) if a is not None and b is not None]
        a, b = [p[0] for p in pairs], [p[1] for p in pairs]
        row: dict[str, object] = {"metric": name, "studies": len(pairs)}
        if pairs:
            intervals = {"first": bootstrap_mean(a), "second": bootstrap_mean(b), "difference": paired_bootstrap(a, b)}
            row |= {key: asdict(interval) for key, interval in intervals.items()}
        rows.append({**row, **{baseline: _mean(columns[name]) for baseline, columns in (baselines or {}).items()}})
    return rows


def render_table(
    rows: Sequence[Mapping], names: tuple[str, str], notes: Sequence[str], *, by_character: bool = False
) -> str:
    """The comparison as Markdown, readable on a terminal."""
    baselines = [k for k in rows[0] if k not in ("metric", "studies", "first", "second", "difference")]
    body = []
    for row in rows:
        shown = ["unavailable"] * 3
        if row["studies"]:
            d, means = row["difference"], [f"{row[system]['mean']:.3f}" for system in ("first", "second")]
            shown = [*means, f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"]
        metric = row["metric"]
        label = label_of(metric, by_character=by_character) if metric in METRICS else LABELS.get(metric, metric)
        name = with_direction(label, "lower" if metric in LOWER else "higher")
        body.append([name, *shown, *("unavailable" if row[b] is None else f"{row[b]:.3f}" for b in baselines)])
    table = Table("", ["metric", *names, "difference (95 % paired)", *baselines], body)
    return "\n".join([table.markdown(), "", *notes]) + "\n"


@dataclass(frozen=True)
class Variety:
    """How varied the reports of a system are: a score means little when all reports are the same one."""

    distinct: float  # share of different reports, in (0, 1]
    most_common: float  # share of the report that occurs most
    words: float  # mean number, a letter of a script without blanks counts as one
    repeated: float  # share of sentences that occur in their report a second time

    @classmethod
    def of(cls, reports: Sequence[str]) -> "Variety":
        counts = Counter(reports)
        written = {report: [s.lower() for s in sentences(report)] for report in counts}
        total = sum(len(found) * counts[report] for report, found in written.items())
        again = sum((len(found) - len(set(found))) * counts[report] for report, found in written.items())
        most, words = counts.most_common(1)[0][1], sum(map(count_words, reports))
        repeated = again / total if total else 0.0
        return cls(distinct_share(reports), most / len(reports), words / len(reports), repeated)

    def line(self, name: str) -> str:
        distinct, most = f"{100 * self.distinct:.1f} % distinct reports", f"{100 * self.most_common:.1f} % of studies"
        repeated = f"{100 * self.repeated:.1f} % of sentences repeated"
        return f"{name}: {distinct}, the most common one in {most}, {self.words:.1f} words on average, {repeated}"


def describe(name: str, reports: Sequence[str]) -> str:
    """The note on a system below the table of a run."""
    found = Variety.of(reports)
    return f"{name}: {100 * found.distinct:.1f} % distinct reports, {found.words:.1f} words on average"


def rexrank(studies: Sequence[Study], reports: Sequence[str]) -> dict[str, dict[str, str]]:
    """Reports by study id, as ReXrank's JSON has them."""
    return {study.id: {"report": report} for study, report in zip(studies, reports, strict=True)}
