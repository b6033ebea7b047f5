"""Metrics of a run -> charts: which there are, what they are called, and few enough points to draw."""

import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from radflow.dashboard.course import MOST_ROWS, Row, ends_of, is_number
from radflow.dashboard.run_files import keys_with, reward_parts

TABLES = tomllib.loads((Path(__file__).parent / "metrics.toml").read_text(encoding="utf-8"))
MOST_POINTS = MOST_ROWS // 2


def label(name: str) -> str:
    """A metric as people call it; an unknown one by its key."""
    return TABLES["labels"].get(name) or name.replace("_", " ").capitalize()


@dataclass(frozen=True)
class Series:
    """One line of a chart, with a band around it if its spread is known."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    band_x: Sequence[float] | None = None  # if the band is known at other steps than the line
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


def curve(rows: Sequence[Row], key: str, name: str, *, scale: float = 1.0, spread: str = "", **style: Any) -> Series:
    """One metric over the steps, drawn with at most MOST_POINTS points.

    Rows without the key are left out (a metric logged every few steps); a missing value (None) is a gap.

    Args:
        spread: key of a standard deviation, drawn as the band mean +- it. Without it, if one point stands for
            several steps, the band is their lowest and highest.
    """
    known = [row for row in rows if key in row]
    groups = buckets(len(known))
    x, y, low, high = [], [], [], []
    for group in groups:
        scaled = [(_scaled(known[i][key], scale), _scaled(known[i].get(spread), scale)) for i in group]
        values = [v for v, _ in scaled if v is not None]
        spreads = [s for v, s in scaled if v is not None and s is not None]
        ends = (_scaled(end, scale) for i in group for end in ends_of(known[i], key))
        extremes = [v for v in ends if v is not None]
        mean = statistics.fmean(values) if values else None
        half = statistics.fmean(spreads) if spreads else None
        x.append(known[group[len(group) // 2]]["step"] + 1)
        y.append(mean)
        low.append(None if mean is None else mean - half if half is not None else min(extremes))
        high.append(None if mean is None else mean + half if half is not None else max(extremes))
    banded = spread or len(groups) < len(known)
    return Series(name, x, y, low if banded else None, high if banded else None, **style)


def buckets(count: int) -> list[range]:
    """Consecutive indices that are drawn as one point: the first and the last alone, the others in even groups."""
    if count <= MOST_POINTS:
        return [range(i, i + 1) for i in range(count)]
    edges = [1 + round(i * (count - 2) / (MOST_POINTS - 2)) for i in range(MOST_POINTS - 1)]
    return [range(0, 1), *(range(a, b) for a, b in pairwise(edges)), range(count - 1, count)]


def supervised_charts(rows: Sequence[Row], *, unit: str) -> list[Chart]:
    """Charts of a stage that learns from examples; `unit` is that of its loss."""
    return drop_empty([Chart("Loss", unit, [curve(rows, "loss", "loss")]), *_draw("supervised", rows)])


def reward_charts(rows: Sequence[Row], spreads: Mapping[str, Series]) -> list[Chart]:
    """The total reward and each part of it: mean and spread over the step's reports.

    Args:
        spreads: part -> its mean and spread at some steps, from the rollouts themselves.
    """
    charts = [Chart("Reward", "total", [curve(rows, "reward", "reward", spread="reward_std")])] if rows else []
    for number, part in enumerate(reward_parts(rows), 1):
        line = curve(rows, f"reward_{part}", label(part), color=number)
        if part in spreads:
            band = spreads[part]
            line = Series(line.name, line.x, line.y, band.low, band.high, band.x, color=number)
        charts.append(Chart(label(part), "score", [line]))
    return charts


def training_charts(rows: Sequence[Row], *, studies_per_step: int, inner_epochs: int) -> list[Chart]:
    """How the policy moves, and how long its steps take."""
    rows = [_with_rates(row, studies_per_step, inner_epochs) for row in rows]
    shares = Chart("Share of each part in the variance within groups", "", _by_part(rows, "variance_share_"))
    lines = [curve(rows, "missing_rewards", "whole reward", color=1), *_by_part(rows, "reward_missing_", first=2)]
    missing = Chart("Missing rewards", "reports", lines)
    return drop_empty([shares, *_draw("policy", rows), missing, *_draw("update", rows), *_draw_time(rows)])


def _by_part(rows: Sequence[Row], prefix: str, *, first: int = 0) -> list[Series]:
    """One line per part of the reward, for metrics named by a prefix and the part; colours count from `first`."""
    keys = enumerate(keys_with(rows, prefix), first)
    return [curve(rows, key, label(key.removeprefix(prefix)), color=number) for number, key in keys]


def held_out_charts(rows: Sequence[Row]) -> list[Chart]:
    """Metrics of held-out studies, if the run logged them."""
    names = {key: label(key.removeprefix("held_out_")) for key in keys_with(rows, "held_out_")}
    return [
        Chart(name, "held-out mean", [curve(rows, key, name, color=number)])
        for number, (key, name) in enumerate(names.items())
    ]


def other_charts(rows: Sequence[Row]) -> list[Chart]:
    """Whatever the charts above leave out, so that nothing that is logged is hidden."""
    drawn = {line["key"] for table in ("policy", "update") for chart in TABLES[table] for line in chart["lines"]}
    drawn |= {"step", "zero_std_groups", "missing_rewards"}
    prefixes = ("reward", "held_out_", "seconds_", "variance_share_")
    drawn |= {key for prefix in prefixes for key in keys_with(rows, prefix)}
    others = [key for key in keys_with(rows, "") if key not in drawn]
    numeric = [key for key in others if any(_scaled(row.get(key)) is not None for row in rows)]
    return [Chart(key, "", [curve(rows, key, key)]) for key in numeric]


def drop_empty(charts: Iterable[Chart]) -> list[Chart]:
    """The charts in which something is drawn."""
    return [chart for chart in charts if any(series.x for series in chart.series)]


def _draw(table: str, rows: Sequence[Row]) -> list[Chart]:
    """The charts that metrics.toml lists under `table`."""
    return [Chart(c["title"], c["unit"], [curve(rows, **line) for line in c["lines"]]) for c in TABLES[table]]


def _with_rates(row: Row, studies_per_step: int, inner_epochs: int) -> Row:
    """The row with what is computed from several of its numbers."""
    more = {}
    if "zero_std_groups" in row:
        more["percent_without_spread"] = _scaled(row["zero_std_groups"], 100 / studies_per_step)
    if row.get("seconds_rollout") and row.get("seconds_update"):
        more["sampling_speed"] = row["tokens"] / inner_epochs / row["seconds_rollout"]
        more["training_speed"] = row["tokens"] / row["seconds_update"]
    extended: Any = copy(row)  # with the extremes of its steps, if they are several
    extended.update(more)
    return cast(Row, extended)


def _draw_time(rows: Sequence[Row]) -> list[Chart]:
    """The three phases one after the other; apart from them what reward workers do meanwhile, because it overlaps."""
    phases, keys = TABLES["phases"], [key.removeprefix("seconds_") for key in keys_with(rows, "seconds_")]
    stacked = [curve(rows, f"seconds_{k}", name, color=i) for i, (k, name) in enumerate(phases.items()) if k in keys]
    inside = [curve(rows, f"seconds_{k}", k, color=i) for i, k in enumerate(k for k in keys if k not in phases)]
    return [
        Chart("Time of a step, by phase", "seconds", stacked, kind="area"),
        Chart("Time inside other parts", "seconds", inside, "overlaps the phases, so it does not add to them"),
    ]


def _scaled(value: Any, scale: float = 1) -> float | None:
    return value * scale if is_number(value) else None
