"""The table of a run: held-out studies scored by the reward's own metrics, two policies beside two baselines.

`train.py` writes it; `evaluate.py score` and `compare` score files of reports with every metric (docs/evaluate.md).
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from data.phantoms import state_labels
from data.sections import parse_sections
from data.studies import Study
from evaluation.nearest import nearest_places
from reports_by_policy import EvaluateConfig
from rewards.catalogue import CATALOGUE, label_of
from rewards.hierarchy import HierarchicalReward
from rewards.statistics import bootstrap_mean, distinct_share, paired_bootstrap

Columns = dict[str, list[float | None]]  # metric -> one value a study; None: the reference does not define it

TRUTH = "label_f1_true_state"  # phantoms only: the Impression against the true state, which no reward sees
LABELS = {"total": "total reward", TRUTH: "label F1 of the Impression (true state)"}


def score_reports(reward: HierarchicalReward, reports: Sequence[str], studies: Sequence[Study]) -> Columns:
    """The total reward and every metric of the reward, for every study; on phantoms the true state's label F1 too."""
    columns = _scored(reward, reports, studies)
    if all(study.state is not None for study in studies):
        impressions = reward.expert.labeler([parse_sections(report).impression for report in reports])
        truths = [{label for label, present in state_labels(study.state).items() if present} for study in studies]
        columns[TRUTH] = [reward.expert.agreement(a, b) for a, b in zip(impressions, truths, strict=True)]
    return columns


def scored_rows(
    reward: HierarchicalReward, reports: Sequence[str], studies: Sequence[Study]
) -> list[dict[str, object]]:
    """The same study by study: rows of id, report and every metric."""
    columns = score_reports(reward, reports, studies)
    return [
        {"id": study.id, "report": report, **{name: values[i] for name, values in columns.items()}}
        for i, (study, report) in enumerate(zip(studies, reports, strict=True))
    ]


def _scored(reward: HierarchicalReward, reports: Sequence[str], studies: Sequence[Study]) -> Columns:
    """Total and metrics, these on the texts as written (the reward itself reads them without line breaks).

    A metric that skips a study because the *report* lacks the Impression is 0 here: such a report agrees with the
    reference's on nothing. Where the *reference* lacks it, the study has no value for any system; nor has it where the
    metric could not be computed.
    """
    references = [study.report for study in studies]
    columns: Columns = {"total": [score.total for score in reward(reports, references)]}
    measured = reward.metrics(reports, references)
    for name, values in measured.values.items():
        columns[name] = values
        if name in CATALOGUE and CATALOGUE[name].reads == "impression":
            cells = zip(values, studies, strict=True)
            columns[name] = [(value or 0.0) if study.impression else None for value, study in cells]
    return columns


def label_of_column(name: str) -> str:
    """How tables name a column."""
    return LABELS[name] if name in LABELS else label_of(name)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def constant_report(reward: HierarchicalReward, train: Sequence[Study], sample: int) -> dict[str, str]:
    """For each metric, the training report that scores best when given for every training study.

    Tried on an even sample of the training set: all pairs would be quadratic in its size.
    """
    stride = max(1, len(train) // sample)
    studies = [study for study in train[::stride] if study.impression][:sample]
    candidates = list(dict.fromkeys(study.report for study in studies))
    best: dict[str, tuple[float, str]] = {}
    for candidate in tqdm(candidates, "constant baseline", unit="report", disable=None, leave=False):
        for name, values in _scored(reward, [candidate] * len(studies), studies).items():
            mean = statistics.fmean(_known(values)) if _known(values) else -math.inf
            if name not in best or mean > best[name][0]:
                best[name] = (mean, candidate)
    return {name: report for name, (_, report) in best.items()}


def nearest_reports(train: Sequence[Study], test: Sequence[Study], side: int = 32) -> list[str]:
    """Report of the training study whose first image is most alike: cosine of `side` x `side` standardised pixels."""
    return [train[place].report for place in nearest_places(train, test, side)]


def with_other_images(studies: Sequence[Study]) -> list[Study]:
    """The same studies, each with the images of another: a policy that scores the same on them does not look."""
    half = len(studies) // 2
    others = [*studies[half:], *studies[:half]]
    return [
        dataclasses.replace(study, images=other.images, prior_images=other.prior_images, views=other.views)
        for study, other in zip(studies, others, strict=True)
    ]


def baseline_columns(
    reward: HierarchicalReward, train: Sequence[Study], test: Sequence[Study], config: EvaluateConfig
) -> dict[str, Columns]:
    """What two systems that see nothing, or only copy, score on the test studies."""
    constants = constant_report(reward, train, config.baseline_sample)
    scored = {report: score_reports(reward, [report] * len(test), test) for report in dict.fromkeys(constants.values())}
    constant = {name: scored[report][name] for name, report in constants.items()}
    chosen = scored[constants["label_f1_rules" if "label_f1_rules" in constants else "total"]]
    constant |= {TRUTH: chosen[TRUTH]} if TRUTH in chosen else {}
    nearest = score_reports(reward, nearest_reports(train, test), test)
    return {"best constant": constant, "nearest neighbour": nearest}


def comparison_rows(
    first: Columns, second: Columns, baselines: Mapping[str, Columns] | None = None
) -> list[dict[str, object]]:
    """One row a metric: both means with their intervals, the paired difference with its own, and the baselines; None
    for all of them where no study has a value."""
    rows = []
    for name in first:
        pairs = [(a, b) for a, b in zip(first[name], second[name], strict=True) if a is not None and b is not None]
        a, b = [p[0] for p in pairs], [p[1] for p in pairs]
        row: dict[str, object] = {"metric": name, "studies": len(pairs)}
        if pairs:
            intervals = {
                "first": bootstrap_mean(a), "second": bootstrap_mean(b), "difference": paired_bootstrap(a, b)
            }  # fmt: skip
            row |= {key: dataclasses.asdict(interval) for key, interval in intervals.items()}
        for baseline, columns in (baselines or {}).items():
            known = _known(columns[name])
            row[baseline] = statistics.fmean(known) if known else None
        rows.append(row)
    return rows


def render_table(rows: Sequence[Mapping], names: tuple[str, str], notes: Sequence[str]) -> str:
    """The comparison as Markdown, readable on a terminal."""
    baselines = [k for k in rows[0] if k not in ("metric", "studies", "first", "second", "difference")]
    head = ["metric", names[0], names[1], "difference (95 % paired)", *baselines]
    body = []
    for row in rows:
        cells = [label_of_column(row["metric"]), *["unavailable"] * 3]
        if row["studies"]:
            d = row["difference"]
            cells[1:3] = f"{row['first']['mean']:.3f}", f"{row['second']['mean']:.3f}"
            cells[3] = f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        body.append([*cells, *("unavailable" if row[b] is None else f"{row[b]:.3f}" for b in baselines)])
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in [head, *body]]
    lines.insert(1, "-|-".join("-" * w for w in widths))
    return "\n".join([*(f"| {line} |" for line in lines), "", *notes]) + "\n"


def describe(name: str, reports: Sequence[str]) -> str:
    """How varied the reports are: a number above means little when they are all the same one."""
    words = statistics.fmean(len(report.split()) for report in reports)
    return f"{name}: {100 * distinct_share(reports):.1f} % distinct reports, {words:.1f} words on average"


def rexrank(studies: Sequence[Study], reports: Sequence[str]) -> dict[str, dict[str, str]]:
    """Reports by study id, as ReXrank's JSON has them."""
    return {study.id: {"report": report} for study, report in zip(studies, reports, strict=True)}
