"""Effect of CAPO on critical cases: distance from SFT, cases that get worse, false findings, at the gain in reward.

GRPO and CAPO on the same studies, along their training: `rl/held_out` of a run has the greedy reports of some held-out
studies every few steps, so that both are seen at equal mean reward and not only at their ends.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from study.pages import test_cells
from study.runs import read_result
from study.seeds import compare

from capo.journal import read_lines
from radflow.dashboard.archive import Archive
from radflow.pipeline.comparison import TRUTH
from radflow.pipeline.finding_errors import MADE_UP, MISSED

Point = Mapping[str, float]
QUANTITIES = {
    "kl": "KL to SFT, critical",
    "worse": "critical studies worse than SFT",
    MADE_UP: "made-up findings per critical study",
    MISSED: "missed findings per critical study",
    TRUTH: "label F1 (true state), critical",
}


def course(folder: Path, arm: str) -> list[Point]:
    """A point for each time that held-out studies were reported, and one for the end: mean total reward over all of
    them, and over the critical ones what `QUANTITIES` names.

    Raises:
        ValueError: the run has none; `evaluate.validate_every` was 0.
    """
    steps = read_lines(folder / arm / "rl" / "metrics.jsonl")
    members = Archive(folder / arm / "rl" / "held_out").members()
    if not members:
        raise ValueError(f"{folder / arm}: expected held-out reports of the RL stage; set evaluate.validate_every")
    followed = {step: member.read() for step, member in members.items()}
    ids = [row["id"] for row in followed[0]]
    end = {row["id"]: row for row in read_result(folder, arm)}
    followed[len(steps)] = [end[study_id] for study_id in ids]
    critical = {row["id"] for row in read_result(folder, "sft") if row["critical"]} & set(ids)
    before = {row["id"]: float(row["total"]) for row in followed[0]}
    points = []
    for step, reports in followed.items():
        rows = [row for row in reports if row["id"] in critical]
        points.append(
            {
                "step": step,
                "total": statistics.fmean(float(row["total"]) for row in reports),
                "kl": recent(steps, step, "kl_critical"),
                "worse": statistics.fmean(float(row["total"]) < before[row["id"]] - 1e-9 for row in rows),
                **{name: statistics.fmean(float(row[name]) for row in rows) for name in (MADE_UP, MISSED)},
                **({TRUTH: statistics.fmean(float(row[TRUTH]) for row in rows)} if TRUTH in rows[0] else {}),
            }
        )
    return points


def recent(steps: Sequence[Mapping[str, float]], step: int, name: str, over: int = 5) -> float:
    """Mean over the few steps before `step`; 0 before the first, where the policy is the SFT policy."""
    values = [float(row[name]) for row in steps if step - over <= int(row["step"]) < step]
    return statistics.fmean(values) if values else 0.0


def at_reward(points: Sequence[Point], reward: float) -> Point:
    """Every quantity where the course first reaches a mean reward, on the straight line between two points.

    Raises:
        ValueError: it never does.
    """
    for before, after in pairwise(points):
        if before["total"] <= reward <= after["total"]:
            span = after["total"] - before["total"]
            share = (reward - before["total"]) / span if span else 0.0
            return {name: before[name] + share * (after[name] - before[name]) for name in before}
    raise ValueError(f"expected a course that reaches {reward:.3f}, its best is {max(p['total'] for p in points):.3f}")


def at_equal_reward(first: Sequence[Point], second: Sequence[Point]) -> tuple[Point, Point] | None:
    """Both courses at the highest mean reward that both reach; None where one never rises above its start."""
    level = min(max(point["total"] for point in points) for points in (first, second))
    if level <= max(first[0]["total"], second[0]["total"]):
        return None
    return at_reward(first, level), at_reward(second, level)


def purpose_page(courses: Mapping[str, Sequence[Sequence[Point]]], setting: str) -> dict[str, object]:
    """GRPO against CAPO: at the end of training, and at equal mean reward; paired over seeds.

    Args:
        courses: of "grpo" and "ours", one course per seed.
    """
    grpo, capo = courses["grpo"], courses["ours"]
    ends = [(a[-1], b[-1]) for a, b in zip(grpo, capo, strict=True)]
    equal = [pair for a, b in zip(grpo, capo, strict=True) if (pair := at_equal_reward(a, b)) is not None]
    rows = []
    for when, pairs in (("at the end", ends), (f"at equal reward ({len(equal)} of {len(ends)} seeds)", equal)):
        for name, title in {"total": "total reward", **QUANTITIES}.items():
            if not pairs or name not in pairs[0][0]:
                continue
            a, b = [pair[0][name] for pair in pairs], [pair[1][name] for pair in pairs]
            means = [f"{statistics.fmean(values):.3f}" for values in (a, b)]
            rows.append([title, when, *means, *test_cells(compare(a, b))])
    return {
        "setting": f"{setting}: GRPO and CAPO on the same studies; difference ± half of its 95 % interval; d_z; p",
        "columns": ["quantity", "when", "GRPO", "CAPO", "CAPO - GRPO", "d_z", "p"],
        "rows": rows,
    }


def courses_page(courses: Mapping[str, Sequence[Sequence[Point]]], setting: str) -> dict[str, object]:
    """One row per point of a course: the numbers of the figure."""
    names = list(courses["ours"][0][0])
    rows = [
        [arm, str(number), *(f"{point[name]:.6g}" for name in names)]
        for arm, runs in courses.items()
        for number, points in enumerate(runs)
        for point in points
    ]
    return {"setting": f"{setting}: courses", "columns": ["objective", "seed", *names], "rows": rows}
