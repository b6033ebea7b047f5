"""The study's values as tables: the cells of the result files (benchmarks/results)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from study.arms import SFT, Arm, Claim
from study.seeds import Comparison, Estimate, compare, estimate
from study.values import Seed, abnormal_share, cpu_seconds

from radflow.pipeline.comparison import TRUTH
from radflow.rewards.statistics import holm

Values = Mapping[str, Sequence[Seed | None]]  # arm -> one per seed, None if it is not done
BERTSCORE = "BERTScore (MiniLM)"  # not the published encoder, hence its own name
NAMES = {
    "total": "total reward",
    "bleu2": "BLEU-2",
    "bertscore": BERTSCORE,
    "entity_f1_rules": "entity F1 (rules)",
    "label_f1_rules": "label F1 (rules)",
    "keyword_f1_rules": "keyword F1 (rules)",
    TRUTH: "label F1 (true state)",
    "made_up_findings": "made-up findings",
    "missed_findings": "missed findings",
    "wrong": "made up or missed",
    "distinct": "distinct reports",
    "kl critical": "KL to SFT, critical",
    "worse critical": "critical studies worse than SFT",
    "made_up_findings critical": "made-up findings, critical",
    "missed_findings critical": "missed findings, critical",
    "label_f1_rules critical": "label F1 (rules), critical",
}
SHOWN = tuple(name for name in NAMES if " " not in name)
# The reward, the part of it that is about labels, and what no hierarchical reward holds; of errors fewer is better.
TESTED = ("total", "label_f1_rules", TRUTH, "wrong", "made_up_findings", "bertscore")
# What is to get better, what a reader cares about besides, and for CAPO against GRPO the critical studies.
OUTCOMES = (TRUTH, "made_up_findings", "missed_findings")
READER = ("wrong", "label_f1_rules", "bleu2", "entity_f1_rules", "distinct")
OF_CRITICAL = tuple(name for name in NAMES if name.endswith(" critical"))


def rows_page(values: Values, arms: Sequence[Arm], setting: str, *, apart: bool = False) -> dict[str, object]:
    """One row per arm: mean over seeds and half the width of the 95 % interval of each metric.

    Args:
        apart: then the same rows over the studies with findings only, which are the critical ones.
    """
    shown = [name for name in SHOWN if known(values, name)]
    kinds = {"": "", " critical": ", studies with findings"} if apart else {"": ""}
    rows = [
        [arm.title + note, str(len(done(values[arm.name]))), *(cell_or_dash(values[arm.name], n + kind) for n in shown)]
        for kind, note in kinds.items()
        for arm in arms
    ]
    return {
        "setting": f"{setting}: mean over seeds ± half of the 95 % interval (Student's t)",
        "columns": ["row", "seeds", *(NAMES[name] for name in shown)],
        "rows": rows,
    }


def claims_page(values: Values, claims: Sequence[Claim], setting: str) -> dict[str, object]:
    """One row per claim and tested metric: the paired difference with its interval, effect size and p, corrected over
    the claims of a metric."""
    claims = [claim for claim in claims if common(values, claim)]
    families = [[(claim, name) for claim in claims] for name in TESTED if known(values, name)]
    return tests_page(values, families, setting)


def reader_page(values: Values, claims: Sequence[Claim], setting: str) -> dict[str, object]:
    """The same on what a reader cares about; for each claim corrected over what is to get better, and over the rest."""
    claims = [claim for claim in claims if common(values, claim)]
    families = []
    for claim in claims:
        # SFT is never worse than itself: against it this would be no test
        untested = "worse critical" if claim.first is SFT else None
        for names in (OUTCOMES, (*READER, *OF_CRITICAL)):
            families.append([(claim, name) for name in names if name != untested and has(values, claim, name)])
    return tests_page(values, families, setting)


def tests_page(values: Values, families: Sequence[Sequence[tuple[Claim, str]]], setting: str) -> dict[str, object]:
    """One row per claim and metric; p is corrected within a family."""
    rows = []
    for family in families:
        tests = [compared(values, claim, name) for claim, name in family]
        for (claim, name), test, holm_p in zip(family, tests, corrected_p(tests), strict=True):
            rows.append([claim.title, NAMES[name], str(test.seeds), *test_cells(test), p_value(holm_p)])
    return {
        "setting": f"{setting}: difference ± half of its 95 % interval; d_z; p of the paired t-test, and after Holm",
        "columns": ["claim", "metric", "seeds", "difference", "d_z", "p", "p (Holm)"],
        "rows": rows,
    }


def sensitivity_page(values: Values, arms: Sequence[Arm], folders: Sequence[Path], setting: str) -> dict[str, object]:
    """One row per setting: reward and label F1, also of critical and normal studies, distance to SFT, cost."""
    label = TRUTH if known(values, TRUTH) else "label_f1_rules"
    columns = {
        "total": "total reward",
        "total critical": "critical",
        "total normal": "normal",
        label: NAMES[label],
        "worse normal": "normal studies worse than SFT",
        "kl critical": "KL critical",
        "kl normal": "KL normal",
        "distinct": "distinct reports",
    }
    full, rows = cpu_seconds(folders, "ours"), []
    for arm in arms:
        cells = [cell_or_dash(values[arm.name], name) for name in columns]
        cost = cpu_seconds(folders, arm.name)
        rows.append(
            [
                arm.title,
                str(len(done(values[arm.name]))),
                *cells,
                share(abnormal_share(folders, arm.name)),
                f"{cost / full:.2f}" if cost else "-",
            ]
        )
    return {
        "setting": f"{setting}: mean over seeds ± half of the 95 % interval; cost in CPU time, the full method's = 1",
        "columns": ["setting", "seeds", *columns.values(), "abnormal among the selected", "cost"],
        "rows": rows,
    }


def known(values: Values, name: str) -> bool:
    """Every seed of every arm that is done has a value."""
    return all(seed.get(name) is not None for seeds in values.values() for seed in done(seeds))


def has(values: Values, claim: Claim, name: str) -> bool:
    """Both rows of a claim have a value on every seed."""
    return all(seed.get(name) is not None for pair in common(values, claim) for seed in pair)


def done(seeds: Sequence[Seed | None]) -> list[Seed]:
    return [seed for seed in seeds if seed is not None]


def compared(values: Values, claim: Claim, name: str) -> Comparison:
    both = common(values, claim)
    return compare([first[name] for first, _ in both], [second[name] for _, second in both])


def common(values: Values, claim: Claim) -> list[tuple[Seed, Seed]]:
    """Both rows of a claim, on the seeds for which both are done."""
    pairs = zip(values[claim.first.name], values[claim.second.name], strict=True)
    return [(first, second) for first, second in pairs if first is not None and second is not None]


def corrected_p(tests: Sequence[Comparison]) -> list[float]:
    """Holm's p; a claim that has one seed only is not tested, and counts for nothing."""
    tested = iter(holm([test.p for test in tests if not math.isnan(test.p)]))
    return [math.nan if math.isnan(test.p) else next(tested) for test in tests]


def cell(value: Estimate) -> str:
    return f"{value.mean:.3f}" if math.isnan(value.half) else f"{value.mean:.3f} ± {value.half:.3f}"


def cell_or_dash(seeds: Sequence[Seed | None], name: str) -> str:
    values = [seed.get(name) for seed in done(seeds)]
    return "-" if None in values else cell(estimate([float(value) for value in values]))


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def test_cells(test: Comparison) -> list[str]:
    """Difference ± half of its 95 % interval, d_z and p; the last two are dashes with a single seed."""
    difference = f"{test.difference.mean:+.3f}"
    if math.isnan(test.p):
        return [difference, "-", "-"]
    return [f"{difference} ± {test.difference.half:.3f}", f"{test.effect:+.1f}", p_value(test.p)]


def p_value(p: float) -> str:
    if math.isnan(p):
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"
