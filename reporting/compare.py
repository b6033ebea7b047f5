"""`train.py compare`: runs over one another: what was configured differently, how they trained, what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from capo.journal import write_whole
from reporting.build import duration, evaluation_rows
from reporting.curves import Chart, Series, curve, label
from reporting.lines import DASH
from reporting.page import Page, number, render
from reporting.run_files import RunFiles, reward_parts

NEVER_COMPARED = ("run_dir", "stages", "tracking")  # none changes a result
ALWAYS_FIRST = (
    ("reward", "Reward", "total"), ("kl_before", "KL to the SFT policy", "nats a token"),
    ("entropy", "Entropy", "nats a token"), ("length", "Report length", "tokens"),
    ("truncated", "Cut at the token limit", "share of reports"),
    ("zero_std_groups", "Groups without spread", "studies"),
    ("clip_low_critical", "Clipped below, critical", "share of tokens"),
    ("clip_high_critical", "Clipped above, critical", "share of tokens"),
    ("clip_low_normal", "Clipped below, normal", "share of tokens"),
    ("clip_high_normal", "Clipped above, normal", "share of tokens"),
    ("ratio_gap_max", "Largest distance of the ratio from 1", "ratio"),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("missing_rewards", "Missing rewards", "reports"), ("seconds_rollout", "Time of sampling", "seconds"),
    ("seconds_update", "Time of the update", "seconds"),
)  # fmt: skip


def compare_runs(folders: Sequence[Path], out: Path) -> str:
    """Write the comparison as a page; returns it as a table for the terminal.

    Raises:
        ValueError: fewer than two folders, or one of them holds no run.
    """
    if len(folders) < 2:
        raise ValueError(f"expected at least two run folders to compare, got {len(folders)}")
    runs = [RunFiles.read(folder) for folder in folders]
    names = distinct_names(folders)
    page = Page()
    differences = config_differences([run.config for run in runs])
    html = render(
        "compare.html.jinja",
        page,
        title=f"Comparison of {', '.join(names)}",
        names=names,
        runs=runs,
        times=[duration(sum(run.seconds().values())) for run in runs],
        differences=differences,
        outcomes=outcomes(runs),
        charts={
            "rl": [page.add(chart) for chart in overlaid(runs, names)],
            "sft": [page.add(chart) for chart in _of_imitation(runs, names)],
        },
        label=label,
    )
    write_whole(out, html)
    return terminal_table(names, differences, outcomes(runs))


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many as tell the runs apart."""
    paths = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, 1)]


def config_differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Dotted key -> its value in each run, for the keys that are not the same in all; None where a run lacks it."""
    flattened = [_flatten(config) for config in configs]
    keys = dict.fromkeys(key for one in flattened for key in one)
    found = {key: [one.get(key) for one in flattened] for key in keys if key.split(".")[0] not in NEVER_COMPARED}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in node.items():
        found |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def outcomes(runs: Sequence[RunFiles]) -> dict[str, list[Mapping[str, Any] | None]]:
    """Held-out metric -> its row of each run's evaluation; None where a run has not come to it."""
    tables = [{row["metric"]: row for row in evaluation_rows(run.evaluation)} for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: [table.get(key) for table in tables] for key in keys}


def overlaid(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Chart]:
    """One chart a metric of the RL stage, one line a run."""
    rows = [run.steps["rl"] for run in runs]
    parts = dict.fromkeys(part for some in rows for part in reward_parts(some))
    held_out = dict.fromkeys(key for some in rows for row in some for key in row if key.startswith("held_out_"))
    wanted = [
        ALWAYS_FIRST[0],
        *((f"reward_{part}", label(part), "mean score") for part in parts),
        *((key, label(key.removeprefix("held_out_")), "held-out mean") for key in held_out),
        *ALWAYS_FIRST[1:],
    ]
    charts = [_overlay(rows, names, *each) for each in wanted]
    return [chart for chart in charts if chart.series]


def _of_imitation(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Chart]:
    charts = [
        _overlay([run.steps[stage] for run in runs], names, "loss", f"Loss of {title}", unit)
        for stage, title, unit in (("sft", "SFT", "nats a token"), ("warmup", "the warm-up", "nats a label"))
    ]
    return [chart for chart in charts if chart.series]


def _overlay(rows: Sequence[Sequence[Mapping]], names: Sequence[str], key: str, title: str, unit: str) -> Chart:
    lines: list[Series] = [
        replace(curve(some, key, name, color=place), low=None, high=None, dashed=place >= 7)
        for place, (some, name) in enumerate(zip(rows, names, strict=True))
    ]
    return Chart(title, unit, [line for line in lines if line.x])


def terminal_table(
    names: Sequence[str], differences: Mapping[str, Sequence[Any]], found: Mapping[str, Sequence[Mapping | None]]
) -> str:
    """What differs in the configs, and CAPO's held-out means, as aligned text."""
    lines = [["", *names], *([key, *map(str, values)] for key, values in differences.items())]
    if not differences:
        lines.append(["configs", *("same" for _ in names)])
    for metric, rows in found.items():
        cells = [
            DASH
            if row is None
            else f"{number(row['second']['mean'])} ({number(row['difference']['mean'], signed=True)})"
            for row in rows
        ]
        lines.append([label(metric), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(names) + 1)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    note = "held-out metrics: mean after CAPO (and its difference to the run's own SFT policy)" if found else ""
    return "\n".join([*table, *([note] if note else [])])
