"""dashboard.html: what a run folder holds, on one page that needs nothing else."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capo.journal import write_whole
from radflow.dashboard import charts
from radflow.dashboard.charts import MOST_POINTS, Chart, Series
from radflow.dashboard.checks import RunWarning, check_criticality, find_warnings
from radflow.dashboard.course import Course
from radflow.dashboard.held_out import pick_held_out
from radflow.dashboard.render import flatten, render
from radflow.dashboard.run_files import RunFiles, read_end
from radflow.dashboard.studies import STUDIES_PER_STEP, StudySource, find_hardest, measure_spread, pick_rollouts

BINS = 40


def build_dashboard(
    folder: Path,
    source: StudySource | None = None,
    *,
    courses: Mapping[str, Course] | None = None,
    found: Sequence[RunWarning] | None = None,
) -> Path:
    """Write dashboard.html from the files of a run; returns its path.

    Args:
        source: of the studies; by default what the run's config names.
        courses: stage -> its steps, of stages whose metrics.jsonl need not be read again, which takes long in the end.
        found: the warnings of the RL stage; by default they are found in its metrics.jsonl.

    Raises:
        ValueError: the folder holds no run, or one of its files is damaged.
    """
    run = RunFiles.read(folder, courses)
    source = source or StudySource.of_config(run.config)
    warnings = list(find_warnings(run.rl_steps(), run.config) if found is None else found)
    rollouts = pick_rollouts(run, source)
    definition = run.config.get("criticality", {}).get("definition", "paper")
    if saturated := check_criticality(run.criticality, run.selected, definition):
        warnings.insert(0, saturated)
    sections = {key: flatten(value) for key, value in run.config.items() if isinstance(value, Mapping)}
    top_level = {key: value for key, value in run.config.items() if key not in sections}
    html = render(
        "dashboard.html.jinja",
        _draw_charts(run),
        data={"rollouts": rollouts},
        title=f"Run {run.name}",
        run=run,
        state=_describe_state(run),
        tiles=_list_tiles(run, sum(warning.until is None for warning in warnings)),
        config_sections={"run": top_level, **sections},
        warnings=warnings,
        thinned={stage: rows.num_steps for stage, rows in run.steps.items() if rows.num_steps > MOST_POINTS},
        threshold=_find_threshold(run),
        hardest=find_hardest(run, source),
        criticality=_count_critical(run),
        evaluation=list_metrics(run.evaluation),
        held_out=pick_held_out(run, source),
        shown_steps=len(rollouts["steps"]),
        most_studies=STUDIES_PER_STEP,
        written=time.strftime("%Y-%m-%d %H:%M"),
    )
    path = folder / "dashboard.html"
    write_whole(path, html)
    return path


def _draw_charts(run: RunFiles) -> dict[str, list[Chart]]:
    rows, rl = run.steps["rl"], run.config["rl"]
    studies = min(rl["studies_per_step"], len(run.selected) or rl["studies_per_step"])
    return {
        "warmup": charts.supervised_charts(run.steps["warmup"], unit="nats per label"),
        "sft": charts.supervised_charts(run.steps["sft"], unit="nats per token"),
        "explore": _draw_histogram(run),
        "reward": charts.reward_charts(rows, measure_spread(run)),
        "held_out": charts.held_out_charts(rows),
        "training": charts.training_charts(rows, studies_per_step=studies, inner_epochs=rl["inner_epochs"]),
        "other": charts.other_charts(rows),
    }


def _describe_state(run: RunFiles) -> dict[str, str]:
    end = read_end(run.folder)
    if end is None:
        return {"name": "running", "text": f"running: {run.status['stage']}" if run.status else "not finished"}
    detail = f": {end['detail']}" if end["detail"] and end["state"] != "complete" else ""
    return {"name": end["state"], "text": f"{end['state']}{detail}"}


def _list_tiles(run: RunFiles, warnings: int) -> list[tuple[str, str, str]]:
    """The numbers at the top of the page: name, value, note."""
    rows, tiles = run.steps["rl"], []
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    if rewards:
        few = max(1, len(rewards) // 10)
        first, last = sum(rewards[:few]) / few, sum(rewards[-few:]) / few
        tiles.append(("Reward in training", f"{first:.2f} → {last:.2f}", "mean of the first and last tenth"))
    for row in (run.evaluation or {}).get("rows", []):
        if row["metric"] == "total":
            d = row["difference"]
            interval = f"95 % interval {d['low']:+.2f} to {d['high']:+.2f}"
            tiles.append(("Held-out, CAPO minus SFT", f"{d['mean']:+.2f}", interval))
    tiles.append(("CAPO steps", f"{rows.num_steps:,}", f"of {run.config['rl']['steps']:,}"))
    if run.scores:
        tiles.append(("Hard studies", f"{len(run.selected):,}", f"of {len(run.scores):,} to train on"))
    tiles.append(("Time", format_duration(sum(run.seconds().values())), "in finished stages"))
    tiles.append(("Warnings", str(warnings), "lasting" if warnings else "none lasting"))
    return tiles


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _find_threshold(run: RunFiles) -> float | None:
    """The highest s_i that was kept, or the threshold of the config."""
    if not run.selected:
        return None
    asked = run.config["explore"]["threshold"]
    kept = set(run.selected)
    return asked if asked is not None else max(row["s"] for row in run.scores if row["id"] in kept)


def _draw_histogram(run: RunFiles) -> list[Chart]:
    """How s_i is spread over the training studies, and where those that are trained on end."""
    if not run.scores:
        return []
    values, kept = [row["s"] for row in run.scores], set(run.selected)
    low, high = min(values), max(values)
    width = (high - low) / BINS or 1.0
    edges = [low + width * i for i in range(BINS + 1)]
    bins = Counter((row["id"] in kept, min(BINS - 1, int((row["s"] - low) / width))) for row in run.scores)
    series = [
        Series(name, edges, [bins[chosen, i] for i in range(BINS)], color=color)
        for name, chosen, color in (("trained on", True, 1), ("left out", False, 0))
    ]
    threshold = _find_threshold(run)
    rules = [] if threshold is None else [(threshold, f"threshold {threshold:.3f}")]
    return [Chart("Composite score s", "studies", series, x_label="s (low: reported badly)", kind="bars", rules=rules)]


def _count_critical(run: RunFiles) -> dict[str, Any] | None:
    """Shares of critical studies among all and among the hard ones, and why they are."""
    if not run.criticality:
        return None
    critical, kept = [row for row in run.criticality if row["critical"]], set(run.selected)
    shares = [("all training studies", len(critical), len(run.criticality))]
    if kept:
        hard = [row for row in run.criticality if row["id"] in kept]
        shares.append(("hard studies", sum(bool(row["critical"]) for row in hard), len(hard)))
    reasons = Counter(row["reason"] for row in critical).most_common(8)
    sources = Counter(row["source"] for row in run.criticality)
    return {"shares": shares, "reasons": reasons, "sources": sources.most_common()}


def list_metrics(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Each metric of the evaluation with the ends of its interval, for the small drawing: positions in [-1, 1]."""
    rows = []
    for row in (evaluation or {}).get("rows", []):
        d = row["difference"]
        reach = max(abs(d["low"]), abs(d["high"]), 1e-9)
        fixed = {key: row[key] for key in ("metric", "studies", "first", "second", "difference")}
        positions = {key: d[key] / reach for key in ("low", "mean", "high")}
        verdict = "better" if d["low"] > 0 else "worse" if d["high"] < 0 else "no clear difference"
        baselines = {key: value for key, value in row.items() if key not in fixed}
        rows.append({**fixed, "positions": positions, "verdict": verdict, "baselines": baselines})
    return rows
