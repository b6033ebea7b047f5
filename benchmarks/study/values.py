"""From the rows of an arm, one per held-out study, to one value per metric and seed."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from study.arms import Arm
from study.runs import read_result

from capo.journal import read_lines
from radflow.rewards.statistics import distinct_share

Rows = Sequence[Mapping[str, object]]
NOT_METRICS = ("id", "report", "critical")


def mean(rows: Rows, name: str) -> float | None:
    """Over the studies that have a value."""
    known = [float(row[name]) for row in rows if row[name] is not None]
    return statistics.fmean(known) if known else None


def distinct_of_300(reports: Sequence[str]) -> float:
    """Share of distinct reports, mean over parts of 300: in more reports fewer are the first of their kind."""
    starts = range(0, max(1, len(reports) - 299), 300)
    return statistics.fmean(distinct_share(reports[i : i + 300]) for i in starts)


def summary(rows: Rows, sft: Rows) -> dict[str, float | None]:
    """Every metric over all studies, the critical and the normal; how many are worse or better than under SFT."""
    values: dict[str, float | None] = {}
    before = {row["id"]: row for row in sft}
    kinds: dict[str, Callable[[Mapping[str, object]], bool]] = {
        "": lambda row: True,
        " critical": lambda row: bool(row["critical"]),
        " normal": lambda row: not row["critical"],
    }
    for kind, belongs in kinds.items():
        chosen = [row for row in rows if belongs(row)]
        values["distinct" + kind] = distinct_of_300([str(row["report"]) for row in chosen])
        for name in rows[0]:
            if name not in NOT_METRICS:
                values[name + kind] = mean(chosen, name)
        moved = [float(row["total"]) - float(before[row["id"]]["total"]) for row in chosen]
        values["worse" + kind] = statistics.fmean(change < -1e-9 for change in moved)
        values["better" + kind] = statistics.fmean(change > 1e-9 for change in moved)
    return values


def training(folder: Path) -> dict[str, float | None]:
    """From the RL stage's own metrics, means over steps: the largest |r - 1| of a step, the share of clipped tokens."""
    rows = read_lines(folder / "rl" / "metrics.jsonl")
    if not rows:
        return {}
    found: dict[str, float | None] = {}
    for kind in ("critical", "normal"):
        found[f"gap {kind}"] = statistics.fmean(row[f"ratio_gap_max_{kind}"] for row in rows)
        found[f"clipped {kind}"] = statistics.fmean(row[f"clip_low_{kind}"] + row[f"clip_high_{kind}"] for row in rows)
    return found


Seed = Mapping[str, float | None]  # metric -> value


def per_seed(folders: Iterable[Path], arms: Sequence[Arm]) -> dict[str, list[Seed | None]]:
    """Arm -> the values of each seed, in the order of the seeds' folders; None where the arm is not done yet."""
    table: dict[str, list[Seed | None]] = {arm.name: [] for arm in arms}
    for folder in folders:
        sft = read_result(folder, "sft")
        for arm in arms:
            done = (folder / arm.name / "result.jsonl").exists()
            values = summary(read_result(folder, arm.name), sft) if done else None
            table[arm.name].append(values and {**values, **training(folder / arm.name)})
    return {name: seeds for name, seeds in table.items() if any(seeds)}


def cpu_seconds(folders: Sequence[Path], arm: str) -> float:
    """CPU seconds that training the arm took, mean over seeds; 0 for one that trains nothing."""
    done = [folder / arm / "cost.json" for folder in folders if (folder / arm / "result.jsonl").exists()]
    costs = (json.loads(path.read_text(encoding="utf-8"))["train"] for path in done)
    return 0.0 if arm == "sft" else statistics.fmean(costs)


def abnormal_share(folders: Sequence[Path], arm: str) -> float | None:
    """Share of critical references among the studies that the arm trained on, mean over seeds."""
    shares = []
    for folder in folders:
        path = folder / arm / "explore" / "selection.json"
        if not path.exists():
            continue
        critical = {str(row["id"]): bool(row["critical"]) for row in read_lines(folder / "base" / "criticality.jsonl")}
        selected = json.loads(path.read_text(encoding="utf-8"))["selected"]
        shares.append(statistics.fmean(critical[study_id] for study_id in selected))
    return statistics.fmean(shares) if shares else None
