"""Studies to look at: the hardest of the exploration, and the rollouts of some steps."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reporting.curves import Series, label
from reporting.run_files import RunFiles, evenly
from reporting.studies import StudySource

HARDEST = 12
HARDEST_SIDE = 320
ROLLOUT_STEPS = 32
STUDIES_A_STEP = 16
REPORTS_A_STUDY = 16
LONGEST_TEXT = 3000
SPREAD_STEPS = 400
IMAGE_BYTES = 2_500_000  # of the rollout browser; more studies get smaller images, and the last ones none
TEXT_BYTES = 6_000_000  # of the rollout browser; with very long reports fewer steps are shown


@dataclass(frozen=True)
class HardCase:
    """A study that the SFT policy reported badly."""

    id: str
    score: float  # s_i
    metrics: Mapping[str, float | None]
    critical: bool | None
    reference: str | None
    prediction: str
    images: Sequence[str]


def shown_text(text: str, most: int = LONGEST_TEXT) -> str:
    """A report as a page may show it: cut visibly when it is huge."""
    return text if len(text) <= most else f"{text[:most]} … [cut here: {len(text) - most:,} more characters]"


def hardest_cases(run: RunFiles, source: StudySource) -> list[HardCase]:
    """The studies with the lowest s_i, lowest first."""
    worst = sorted(run.scores, key=lambda row: row["s"])[:HARDEST]
    predictions = run.predictions() if worst else {}
    critical = {row["id"]: bool(row["critical"]) for row in run.criticality}
    return [
        HardCase(
            id=row["id"],
            score=row["s"],
            metrics={key: value for key, value in row.items() if key not in ("id", "s")},
            critical=critical.get(row["id"]),
            reference=None if (reference := source.reference(row["id"])) is None else shown_text(reference),
            prediction=shown_text(predictions.get(row["id"], "")),
            images=source.images(row["id"], HARDEST_SIDE),
        )
        for row in worst
    ]


def rollouts_to_browse(run: RunFiles, source: StudySource) -> dict[str, Any]:
    """The rollouts of evenly spaced steps, the first and the last among them, as the page's script reads them."""
    parts: dict[str, int] = {}
    steps, budget = [], TEXT_BYTES / ROLLOUT_STEPS
    for step in evenly(run.rollout_steps(), ROLLOUT_STEPS):
        rows = run.rollouts(step)
        shown, room = [], budget
        for row in evenly(rows, STUDIES_A_STEP):
            study = _study(row, parts)
            room -= sum(len(report["text"]) for report in study["reports"])
            if room < 0 and shown:
                break
            shown.append(study)
        steps.append({"step": step + 1, "of": len(rows), "studies": shown})
    ids = list(dict.fromkeys(study["id"] for step in steps for study in step["studies"]))
    return {"labels": [label(name) for name in parts], "steps": steps, "images": _small_images(ids, source)}


def _study(row: Mapping[str, Any], parts: dict[str, int]) -> dict[str, Any]:
    for report in row["reports"]:
        for name in report["parts"]:
            parts.setdefault(name, len(parts))
    reports = [
        {
            "number": number + 1,
            "text": shown_text(report["report"]),
            "tokens": report["tokens"],
            "truncated": report["truncated"],
            "total": report["total"],
            "parts": [report["parts"].get(name) for name in parts],
            "advantage": report["advantage"],
        }
        for number, report in enumerate(row["reports"][:REPORTS_A_STUDY])
    ]
    return {
        "id": str(row["id"]),
        "critical": bool(row["critical"]),
        "eps": row["eps"],
        "reference": shown_text(row["reference"]),
        "of": len(row["reports"]),
        "reports": reports,
    }


def _small_images(ids: Sequence[str], source: StudySource) -> dict[str, list[str]]:
    side = 256 if len(ids) <= 150 else 160
    found, room = {}, IMAGE_BYTES
    for study_id in ids:
        uris = source.images(study_id, side)
        room -= sum(map(len, uris))
        if room < 0:
            break
        found[study_id] = uris
    return found


def part_spreads(run: RunFiles) -> dict[str, Series]:
    """Mean and standard deviation of each part of the reward over the reports of evenly spaced steps."""
    steps = evenly(run.rollout_steps(), SPREAD_STEPS)
    columns: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for step in steps:
        values: dict[str, list[float]] = defaultdict(list)
        for row in run.rollouts(step):
            for report in row["reports"]:
                for name, value in report["parts"].items():
                    if value is not None:
                        values[name].append(value)
        for name, known in values.items():
            columns[name].append((step + 1, statistics.fmean(known), statistics.pstdev(known)))
    return {
        name: Series(
            name,
            [x for x, _, _ in points],
            [mean for _, mean, _ in points],
            low=[mean - std for _, mean, std in points],
            high=[mean + std for _, mean, std in points],
        )
        for name, points in columns.items()
    }
