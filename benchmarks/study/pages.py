"""The study's values as result files: cells to print, and the numbers of every seed behind them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from study.arms import Arm, Claim
from study.seeds import Comparison, Estimate, compare, estimate
from study.values import Seed, abnormal_share, cpu_seconds

from rewards.statistics import holm
from run_scores import TRUTH

Values = Mapping[str, Sequence[Seed | None]]  # arm -> one a seed, None where it is not done
BERTSCORE = "BERTScore (MiniLM)"  # not the published encoder, hence its own name
NAMES = {
    "total": "total reward",
    "bleu2": "BLEU-2",
    "bertscore": BERTSCORE,
    "entity_f1_rules": "entity F1 (rules)",
    "label_f1_rules": "label F1 (rules)",
    "keyword_f1_rules": "keyword F1 (rules)",
    TRUTH: "label F1 (true state)",
    "hallucinated": "made-up findings",
    "dropped": "missed findings",
    "wrong": "made up or missed",
    "distinct": "distinct reports",
}
# The reward, the part of it that is about labels, and what no hierarchical reward holds; of errors fewer is better.
TESTED = ("total", "label_f1_rules", TRUTH, "wrong", "hallucinated", "bertscore")


def rows_page(values: Values, arms: Sequence[Arm], setting: str) -> dict[str, object]:
    """A row an arm: mean over seeds and half the width of the 95 % interval of each metric."""
    shown = [name for name in NAMES if known(values, name)]
    rows = [
        [arm.title, str(len(done(values[arm.name]))), *(cell_or_dash(values[arm.name], name) for name in shown)]
        for arm in arms
    ]
    return {
        "setting": f"{setting}: mean over seeds ± half of the 95 % interval (Student's t)",
        "columns": ["row", "seeds", *(NAMES[name] for name in shown)],
        "rows": rows,
        "per_seed": values,
    }


def claims_page(values: Values, claims: Sequence[Claim], setting: str) -> dict[str, object]:
    """A row a claim: the paired difference of each tested metric with its interval, effect size and p."""
    tested = [name for name in TESTED if known(values, name)]
    claims = [claim for claim in claims if common(values, claim)]
    found = {name: [compared(values, claim, name) for claim in claims] for name in tested}
    corrected = {name: corrected_p(tests) for name, tests in found.items()}
    rows = [
        [claim.title, str(found["total"][i].seeds), *(test_cell(found[name][i], corrected[name][i]) for name in tested)]
        for i, claim in enumerate(claims)
    ]
    return {
        "setting": f"{setting}: difference ± half of its 95 % interval; d_z; p of the paired t-test, and after Holm",
        "columns": ["claim", "seeds", *(NAMES[name] for name in tested)],
        "rows": rows,
        "tests": {
            name: [{**asdict(test), "p_holm": p} for test, p in zip(found[name], corrected[name], strict=True)]
            for name in tested
        },
    }


def sensitivity_page(values: Values, arms: Sequence[Arm], folders: Sequence[Path], setting: str) -> dict[str, object]:
    """A row a setting: reward and label F1, over critical and normal studies apart, how far it moved, what it cost."""
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
        "per_seed": values,
    }


def known(values: Values, name: str) -> bool:
    """Every seed of every arm that is done has a value."""
    return all(seed.get(name) is not None for seeds in values.values() for seed in done(seeds))


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


def test_cell(test: Comparison, corrected: float | None = None) -> str:
    found = f"{test.difference.mean:+.3f}"
    if math.isnan(test.p):
        return found
    several = "" if corrected is None else f", {p_value(corrected)}"
    return f"{found} ± {test.difference.half:.3f}; {test.effect:+.1f}; {p_value(test.p)}{several}"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
