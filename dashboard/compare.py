"""`train.py compare`: runs over one another: what was configured differently, how they trained, what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from capo.journal import write_whole
from radflow.dashboard.build import format_duration, list_metrics
from radflow.dashboard.charts import TABLES, Chart, curve, drop_empty, label
from radflow.dashboard.render import DASH, flatten, number, render
from radflow.dashboard.run_files import RunFiles, keys_with, reward_parts

NEVER_COMPARED = ("run_dir", "stages", "tracking")  # none changes a result
Outcomes = Mapping[str, Sequence[Mapping[str, Any] | None]]


def compare_runs(folders: Sequence[Path], out: Path) -> str:
    """Write the comparison as a page; returns it as a table for the terminal.

    Raises:
        ValueError: fewer than two folders, or one of them holds no run.
    """
    if len(folders) < 2:
        raise ValueError(f"expected at least two run folders to compare, got {len(folders)}")
    runs = [RunFiles.read(folder) for folder in folders]
    names = distinct_names(folders)
    differences, outcomes = find_differences([run.config for run in runs]), align_outcomes(runs)
    losses = [
        _overlay(runs, names, "sft", "loss", "Loss of SFT", "nats per token"),
        _overlay(runs, names, "warmup", "loss", "Loss of the warm-up", "nats per label"),
    ]
    html = render(
        "compare.html.jinja",
        {"rl": _overlay_rl(runs, names), "sft": drop_empty(losses)},
        data={},
        title=f"Comparison of {', '.join(names)}",
        names=names,
        runs=runs,
        times=[format_duration(sum(run.seconds().values())) for run in runs],
        differences=differences,
        outcomes=outcomes,
    )
    write_whole(out, html)
    return format_table(names, differences, outcomes)


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many as tell the runs apart."""
    paths = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, 1)]


def find_differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Dotted key -> its value in each run, for the keys that are not the same in all; None if a run lacks it."""
    flattened = [{key: value for key, value in flatten(config).items() if value != {}} for config in configs]
    keys = dict.fromkeys(key for each in flattened for key in each)
    found = {key: [each.get(key) for each in flattened] for key in keys if key.split(".")[0] not in NEVER_COMPARED}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def align_outcomes(runs: Sequence[RunFiles]) -> Outcomes:
    """Held-out metric -> its row of each run's evaluation; None if a run has none yet."""
    tables = [{row["metric"]: row for row in list_metrics(run.evaluation)} for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: [table.get(key) for table in tables] for key in keys}


def _overlay_rl(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Chart]:
    """One chart per metric of the RL stage, one line per run."""
    parts = dict.fromkeys(part for run in runs for part in reward_parts(run.steps["rl"]))
    held_out = keys_with([row for run in runs for row in run.steps["rl"]], "held_out_")
    reward, *others = ((each["key"], each["title"], each["unit"]) for each in TABLES["comparison"])
    charts = [
        reward,
        *((f"reward_{part}", label(part), "mean score") for part in parts),
        *((key, label(key.removeprefix("held_out_")), "held-out mean") for key in held_out),
        *others,
    ]
    return drop_empty(_overlay(runs, names, "rl", *chart) for chart in charts)


def _overlay(runs: Sequence[RunFiles], names: Sequence[str], stage: str, key: str, title: str, unit: str) -> Chart:
    lines = [
        replace(curve(run.steps[stage], key, name, color=index), low=None, high=None, dashed=index >= 7)
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    return Chart(title, unit, [line for line in lines if line.x])


def format_table(names: Sequence[str], differences: Mapping[str, Sequence[Any]], outcomes: Outcomes) -> str:
    """What differs in the configs, and CAPO's held-out means, as aligned text."""
    lines = [["", *names], *([key, *map(str, values)] for key, values in differences.items())]
    if not differences:
        lines.append(["configs", *("same" for _ in names)])
    lines += [[label(metric), *map(_format_outcome, rows)] for metric, rows in outcomes.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names) + 1)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if outcomes:
        table.append("held-out metrics: mean after CAPO (and its difference to the run's own SFT policy)")
    return "\n".join(table)


def _format_outcome(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return DASH
    return f"{number(row['second']['mean'])} ({number(row['difference']['mean'], signed=True)})"
