"""Metrics of a run -> charts: which there are, what they are called, and few enough points to draw."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from reporting.run_files import Row, reward_parts

MOST_POINTS = 500

LABELS = {
    "bleu2": "BLEU-2",
    "rouge_l": "ROUGE-L",
    "syntax": "Syntax (BLEU-2, ROUGE-L)",
    "entity_f1_rules": "Entity F1 (rules)",
    "consistency_rules": "Consistency (rules)",
    "label_f1_rules": "Label F1 of the Impression (rules)",
    "label_f1_true_state": "Label F1 against the true state",
    "radgraph_f1": "RadGraph F1",
    "bertscore": "BERTScore",
    "total": "Total reward",
}


def label(name: str) -> str:
    """A metric as people call it; an unknown one by its key."""
    return LABELS.get(name) or name.replace("_", " ").capitalize()


@dataclass(frozen=True)
class Series:
    """One line of a chart, with a band around it where its spread is known."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    band_x: Sequence[float] | None = None  # where the band is known at other steps than the line
    color: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """One picture of curves, bars or a histogram."""

    title: str
    unit: str  # of the vertical axis
    series: Sequence[Series]
    note: str = ""
    x_label: str = "step"
    kind: str = "lines"  # lines, area (stacked), bars
    rules: Sequence[tuple[float, str]] = ()  # vertical lines: x, what it is


def curve(
    rows: Sequence[Row], key: str, name: str = "", *, scale: float = 1.0, spread: str | None = None, **style: Any
) -> Series:
    """One metric over the steps, drawn with at most MOST_POINTS points.

    Rows without the key are left out (a metric logged every few steps); a missing value (None) is a gap.

    Args:
        spread: key of a standard deviation, drawn as the band mean +- it. Without it, where one point stands for
            several steps, the band is their lowest and highest.
    """
    known = [row for row in rows if key in row]
    points = [(row["step"] + 1, _scaled(row[key], scale), _scaled(row.get(spread), scale)) for row in known]
    groups = buckets(len(points))
    x, y, low, high = [], [], [], []
    for group in groups:
        part = [points[i] for i in group]
        values = [v for _, v, _ in part if v is not None]
        spreads = [s for _, v, s in part if v is not None and s is not None]
        mean = statistics.fmean(values) if values else None
        half = statistics.fmean(spreads) if spreads else None
        x.append(part[len(part) // 2][0])
        y.append(mean)
        low.append(None if mean is None else mean - half if half is not None else min(values))
        high.append(None if mean is None else mean + half if half is not None else max(values))
    banded = spread is not None or len(groups) < len(points)
    return Series(name or label(key), x, y, low if banded else None, high if banded else None, **style)


def buckets(count: int, most: int = MOST_POINTS) -> list[range]:
    """Consecutive indices that are drawn as one point: the first and the last alone, the others in even groups."""
    if count <= most:
        return [range(i, i + 1) for i in range(count)]
    edges = [1 + round(i * (count - 2) / (most - 2)) for i in range(most - 1)]
    return [range(0, 1), *(range(a, b) for a, b in pairwise(edges)), range(count - 1, count)]


def imitation_charts(rows: Sequence[Row], *, unit: str) -> list[Chart]:
    """Of a stage that learns from examples."""
    charts = [
        Chart("Loss", unit, [curve(rows, "loss", "loss")]),
        Chart("Gradient norm", "before clipping", [curve(rows, "grad_norm", "norm", color=1)]),
        Chart("Learning rate", "", [curve(rows, "learning_rate", "rate", color=2)]),
    ]
    return [chart for chart in charts if any(series.x for series in chart.series)]


def reward_charts(rows: Sequence[Row], spreads: Mapping[str, Series]) -> list[Chart]:
    """The total reward and each part of it: mean and spread over the step's reports.

    Args:
        spreads: part -> its mean and spread at some steps, from the rollouts themselves.
    """
    charts = [Chart("Reward", "total", [curve(rows, "reward", "reward", spread="reward_std")])]
    for number, part in enumerate(reward_parts(rows), 1):
        line = curve(rows, f"reward_{part}", label(part), color=number)
        if part in spreads:
            band = spreads[part]
            line = Series(line.name, line.x, line.y, band.low, band.high, band.x, color=number)
        charts.append(Chart(label(part), "score", [line]))
    return charts


def training_charts(rows: Sequence[Row], *, studies_per_step: int, inner_epochs: int) -> list[Chart]:
    """How the policy moves."""
    ratios = [("ratio_max", "largest", 1), ("ratio_mean", "mean", 0), ("ratio_min", "smallest", 2)]
    clips = [
        (f"clip_{side}_{kind}", f"{kind}, {'below' if side == 'low' else 'above'}", color, side == "low")
        for kind, color in (("critical", 1), ("normal", 0))
        for side in ("high", "low")
    ]
    rates = [
        {**row, "sampling": row["tokens"] / inner_epochs / row["seconds_rollout"],
         "training": row["tokens"] / row["seconds_update"]}
        for row in rows if row.get("seconds_rollout") and row.get("seconds_update")
    ]  # fmt: skip
    charts = [
        Chart(
            "KL to the SFT policy", "nats a token",
            [curve(rows, "kl_before", "before the update"), curve(rows, "kl", "during it", color=1, dashed=True)],
        ),
        Chart("Entropy", "nats a token", [curve(rows, "entropy", "entropy", color=2)]),
        Chart(
            "Clipped tokens", "% of tokens",
            [curve(rows, key, name, scale=100, color=color, dashed=dashed) for key, name, color, dashed in clips],
        ),
        Chart("Importance ratio", "ratio", [curve(rows, key, name, color=color) for key, name, color in ratios]),
        Chart(
            "Groups without spread", "% of studies",
            [curve(rows, "zero_std_groups", "all reports scored the same", scale=100 / studies_per_step, color=3)],
        ),
        Chart("Report length", "tokens", [curve(rows, "length", "mean", color=4)]),
        Chart("Cut at the token limit", "% of reports", [curve(rows, "truncated", "cut", scale=100, color=1)]),
        Chart("Missing rewards", "reports", _missing(rows)),
        Chart("Gradient norm", "before clipping", [curve(rows, "grad_norm", "norm", color=1)]),
        Chart(
            "Speed", "tokens a second",
            [curve(rates, "sampling", "sampling"), curve(rates, "training", "training", color=1)],
        ),
        *_time(rows),
    ]  # fmt: skip
    return [chart for chart in charts if any(series.x for series in chart.series)]


def held_out_charts(rows: Sequence[Row]) -> list[Chart]:
    """Metrics of held-out studies, where the run logged them."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("held_out_"))
    names = {key: label(key.removeprefix("held_out_")) for key in keys}
    return [
        Chart(name, "held-out mean", [curve(rows, key, name, color=number)])
        for number, (key, name) in enumerate(names.items())
    ]


def other_charts(rows: Sequence[Row], used: Iterable[str]) -> list[Chart]:
    """Whatever else the rows hold, so that nothing that is logged is hidden."""
    known = {"step", *used}
    keys = dict.fromkeys(key for row in rows for key in row if key not in known)
    return [Chart(key, "", [curve(rows, key, key)]) for key in keys if any(_is_number(row.get(key)) for row in rows)]


USED = {
    "reward", "reward_std", "kl", "kl_before", "entropy", "ratio_max", "ratio_mean", "ratio_min", "zero_std_groups",
    "length", "truncated", "missing_rewards", "grad_norm", "clip_low_critical", "clip_high_critical",
    "clip_low_normal", "clip_high_normal",
}  # fmt: skip


def used_keys(rows: Sequence[Row]) -> set[str]:
    """Keys that the charts above draw, those with a name that depends on the run included."""
    prefixes = ("reward_", "held_out_", "seconds_")
    return USED | {key for row in rows for key in row if key.startswith(prefixes)}


def _missing(rows: Sequence[Row]) -> list[Series]:
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("reward_missing_"))
    named = {"missing_rewards": "whole reward", **{k: label(k.removeprefix("reward_missing_")) for k in keys}}
    return [curve(rows, key, name, color=number) for number, (key, name) in enumerate(named.items(), 1)]


def _time(rows: Sequence[Row]) -> list[Chart]:
    """The three phases one after the other; what runs beside them in reward workers apart, because it overlaps."""
    phases = {"rollout": "sampling", "reward": "waiting for rewards", "update": "update"}
    keys = dict.fromkeys(key.removeprefix("seconds_") for row in rows for key in row if key.startswith("seconds_"))
    stacked = [curve(rows, f"seconds_{k}", name, color=i) for i, (k, name) in enumerate(phases.items()) if k in keys]
    beside = [curve(rows, f"seconds_{k}", k, color=i) for i, k in enumerate(k for k in keys if k not in phases)]
    return [
        Chart("Time of a step, by phase", "seconds", stacked, kind="area"),
        Chart("Time inside other parts", "seconds", beside, "runs beside the phases, so it does not add to them"),
    ]


def _scaled(value: Any, scale: float) -> float | None:
    return value * scale if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
