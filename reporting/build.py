"""report.html: what a run folder holds, on one page that needs nothing else."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo.journal import write_whole
from reporting.cases import ROLLOUT_STEPS, STUDIES_A_STEP, hardest_cases, part_spreads, rollouts_to_browse
from reporting.curves import (
    MOST_POINTS,
    Chart,
    Series,
    held_out_charts,
    imitation_charts,
    label,
    other_charts,
    reward_charts,
    training_charts,
    used_keys,
)
from reporting.page import Page, flat, render
from reporting.run_files import Row, RunFiles
from reporting.status import ended
from reporting.studies import StudySource
from reporting.symptoms import symptoms_of

BINS = 40


@dataclass(frozen=True)
class Tile:
    """One number of the page's head."""

    name: str
    value: str
    note: str = ""


def write_report(folder: Path, source: StudySource | None = None) -> Path:
    """Build report.html from the files of a run.

    Args:
        source: of the studies; by default what the run's config names.

    Raises:
        ValueError: the folder holds no run, or one of its files is damaged.
    """
    run = RunFiles.read(folder)
    page = report_page(run, source or StudySource.of_config(run.config))
    path = folder / "report.html"
    write_whole(path, page)
    return path


def report_page(run: RunFiles, source: StudySource) -> str:
    """The page as HTML."""
    page = Page()
    rows, config = run.steps["rl"], run.config
    symptoms = symptoms_of(run.steps, config)
    rollouts = rollouts_to_browse(run, source)
    page.data["rollouts"] = rollouts
    charts = {
        "warmup": imitation_charts(run.steps["warmup"], unit="nats a label"),
        "sft": imitation_charts(run.steps["sft"], unit="nats a token"),
        "explore": _histogram(run),
        "reward": reward_charts(rows, part_spreads(run)) if rows else [],
        "held_out": held_out_charts(rows),
        "training": training_charts(
            rows, studies_per_step=_studies_per_step(run), inner_epochs=config["rl"]["inner_epochs"]
        ),
        "other": other_charts(rows, used_keys(rows)),
    }
    return render(
        "report.html.jinja",
        page,
        title=f"Run {run.name}",
        run=run,
        state=_state(run),
        tiles=_tiles(run, len([s for s in symptoms if s.until is None])),
        seconds=run.seconds(),
        config_sections=flat(config),
        symptoms=symptoms,
        charts={name: [page.add(chart) for chart in some] for name, some in charts.items()},
        thinned=_thinned(run),
        threshold=_threshold(run),
        hardest=hardest_cases(run, source),
        criticality=_criticality(run),
        evaluation=evaluation_rows(run.evaluation),
        notes=(run.evaluation or {}).get("notes", []),
        rollout_steps=len(run.rollout_steps()),
        shown_steps=len(rollouts["steps"]),
        most_steps=ROLLOUT_STEPS,
        most_studies=STUDIES_A_STEP,
        written=time.strftime("%Y-%m-%d %H:%M"),
        label=label,
    )


def _state(run: RunFiles) -> dict[str, str]:
    end = ended(run.folder)
    if end is None:
        stage = run.status["stage"] if run.status else ""
        return {"name": "running", "text": f"running: {stage}" if stage else "not finished"}
    detail = f": {end['detail']}" if end["detail"] else ""
    return {"name": end["state"], "text": end["state"] if end["state"] == "complete" else f"{end['state']}{detail}"}


def _tiles(run: RunFiles, warnings: int) -> list[Tile]:
    rows, tiles = run.steps["rl"], []
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    if rewards:
        few = max(1, len(rewards) // 10)
        first, last = sum(rewards[:few]) / few, sum(rewards[-few:]) / few
        tiles.append(Tile("Reward in training", f"{first:.2f} → {last:.2f}", "mean of the first and last tenth"))
    for row in (run.evaluation or {}).get("rows", []):
        if row["metric"] == "total":
            d = row["difference"]
            interval = f"95 % interval {d['low']:+.2f} to {d['high']:+.2f}"
            tiles.append(Tile("Held-out, CAPO minus SFT", f"{d['mean']:+.2f}", interval))
    tiles.append(Tile("CAPO steps", f"{len(rows):,}", f"of {run.config['rl']['steps']:,}"))
    if run.scores:
        tiles.append(Tile("Hard studies", f"{len(run.selected):,}", f"of {len(run.scores):,} to train on"))
    tiles.append(Tile("Time", duration(sum(run.seconds().values())), "in finished stages"))
    tiles.append(Tile("Warnings", str(warnings), "lasting" if warnings else "none lasting"))
    return tiles


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _thinned(run: RunFiles) -> dict[str, int]:
    """Stages whose curves are drawn with fewer points than steps."""
    return {stage: len(rows) for stage, rows in run.steps.items() if len(rows) > MOST_POINTS}


def _studies_per_step(run: RunFiles) -> int:
    asked = run.config["rl"]["studies_per_step"]
    return min(asked, len(run.selected)) if run.selected else asked


def _threshold(run: RunFiles) -> float | None:
    """The highest s_i that was kept, or the threshold of the config."""
    if not run.selected:
        return None
    asked = run.config["explore"]["threshold"]
    kept = set(run.selected)
    return asked if asked is not None else max(row["s"] for row in run.scores if row["id"] in kept)


def _histogram(run: RunFiles) -> list[Chart]:
    """How s_i is spread over the training studies, and where those that are trained on end."""
    if not run.scores:
        return []
    values, kept = [row["s"] for row in run.scores], set(run.selected)
    low, high = min(values), max(values)
    width = (high - low) / BINS or 1.0
    edges = [low + width * i for i in range(BINS + 1)]
    counts = {True: Counter(), False: Counter()}
    for row in run.scores:
        counts[row["id"] in kept][min(BINS - 1, int((row["s"] - low) / width))] += 1
    series = [
        Series(name, edges, [counts[chosen][i] for i in range(BINS)], color=color)
        for name, chosen, color in (("trained on", True, 1), ("left out", False, 0))
    ]
    threshold = _threshold(run)
    rules = [] if threshold is None else [(threshold, f"threshold {threshold:.3f}")]
    return [Chart("Composite score s", "studies", series, x_label="s (low: reported badly)", kind="bars", rules=rules)]


def _criticality(run: RunFiles) -> dict[str, Any] | None:
    """Shares of critical studies among all and among the hard ones, and why they are."""
    if not run.criticality:
        return None
    kept = set(run.selected)
    groups: dict[str, Sequence[Row]] = {"all training studies": run.criticality}
    if kept:
        groups["hard studies"] = [row for row in run.criticality if row["id"] in kept]
    reasons = Counter(row["reason"] for row in run.criticality if row["critical"])
    return {
        "shares": [
            {"name": name, "critical": sum(bool(row["critical"]) for row in rows), "of": len(rows)}
            for name, rows in groups.items()
        ],
        "reasons": reasons.most_common(8),
        "sources": Counter(row["source"] for row in run.criticality).most_common(),
    }


def evaluation_rows(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Each metric of the evaluation with where its interval lies, for the small drawing: positions in [-1, 1]."""
    rows = []
    for row in (evaluation or {}).get("rows", []):
        d = row["difference"]
        reach = max(abs(d["low"]), abs(d["high"]), 1e-9)
        fixed = ("metric", "studies", "first", "second", "difference")
        rows.append(
            {
                **{key: row[key] for key in fixed},
                "places": {key: d[key] / reach for key in ("low", "mean", "high")},
                "verdict": "better" if d["low"] > 0 else "worse" if d["high"] < 0 else "no clear difference",
                "baselines": {key: value for key, value in row.items() if key not in fixed},
            }
        )
    return rows
