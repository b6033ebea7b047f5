"""GRPO and CAPO along their training, as a plot."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from study.arms import Arm
from study.purpose import QUANTITIES, Point
from study.values import Seed

Values = Mapping[str, Sequence[Seed | None]]
COLOURS = {"grpo": ("GRPO", "#b5482a"), "ours": ("CAPO", "#1f5f8b")}


def read_courses(path: Path) -> dict[str, list[list[Point]]]:
    """Courses by objective, one per seed, from the file that `purpose.courses_page` became."""
    courses: dict[str, dict[str, list[Point]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            objective, seed = row.pop("objective"), row.pop("seed")
            point = {name: float(value) for name, value in row.items()}
            courses.setdefault(objective, {}).setdefault(seed, []).append(point)
    return {objective: list(seeds.values()) for objective, seeds in courses.items()}


def draw(courses: Mapping[str, Sequence[Sequence[Point]]], path: Path) -> None:
    """One panel per quantity, over the gain in held-out reward: thin lines are seeds, the thick one is their mean."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "radflow"  # the same file from the same numbers
    shown = [name for name in QUANTITIES if name in courses["ours"][0][0]]
    figure, panels = pyplot.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.2), layout="constrained")
    for panel, name in zip(panels, shown, strict=True):
        for arm, (label, colour) in COLOURS.items():
            for points in courses[arm]:
                panel.plot(*series(points, name), color=colour, alpha=0.25, linewidth=0.8)
            panel.plot(*series(mean_course(courses[arm]), name), color=colour, linewidth=2, marker="o", label=label)
        panel.set(xlabel="gain in total reward, all held-out studies", title=QUANTITIES[name])
        panel.title.set_fontsize(9)
    panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def series(points: Sequence[Point], name: str) -> tuple[list[float], list[float]]:
    """What was gained over the SFT policy, where every course begins, and the quantity."""
    return [point["total"] - points[0]["total"] for point in points], [point[name] for point in points]


def mean_course(courses: Sequence[Sequence[Point]]) -> list[Point]:
    """Mean over seeds, step by step."""
    return [
        {name: statistics.fmean(point[name] for point in points) for name in points[0]}
        for points in zip(*courses, strict=True)
    ]


def draw_errors(values: Values, arms: Sequence[Arm], path: Path) -> None:
    """Missed against made-up findings per study: small points are seeds, large ones their means; lines lead from the
    first row to the others of the same seed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "radflow"
    figure, panel = pyplot.subplots(figsize=(5.2, 4), layout="constrained")
    first, *others = points = [
        [seed and (seed["made_up_findings"], seed["missed_findings"]) for seed in values[arm.name]] for arm in arms
    ]
    for pair in chain.from_iterable(zip(first, other, strict=True) for other in others):
        if None not in pair:
            panel.plot(*zip(*pair, strict=True), color="0.8", linewidth=0.7, zorder=1)
    for arm, seeds in zip(arms, points, strict=True):
        columns = [*zip(*filter(None, seeds), strict=True)]
        (dots,) = panel.plot(*columns, "o", alpha=0.5, markersize=4)
        panel.plot(*map(statistics.fmean, columns), "o", color=dots.get_color(), markersize=9, label=arm.title)
    panel.set(xlabel="made-up findings per study", ylabel="missed findings per study")
    panel.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
