"""Studies as a page shows them: texts, small images as data URIs, the hardest ones, and the rollouts of some steps."""

import base64
import io
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from radflow.dashboard.charts import Series, label
from radflow.dashboard.course import Row
from radflow.dashboard.run_files import RunFiles, evenly
from radflow.data.phantoms import draw_phantom
from radflow.data.readers.manifest import read_manifest
from radflow.data.studies import Study, load_image
from radflow.rewards.memory import remember

MOST_IMAGES = 2  # per study: frontal and lateral
LONGEST_TEXT = 3000
HARDEST, HARDEST_SIDE = 12, 320
ROLLOUT_STEPS, STUDIES_PER_STEP, REPORTS_PER_STUDY, SPREAD_STEPS = 32, 16, 16, 400
IMAGE_BYTES = 2_500_000  # of the rollout browser; more studies get smaller images, and the last ones none
TEXT_BYTES = 6_000_000  # of the rollout browser; with very long reports fewer studies are shown


class StudySource:
    """Finds a study by its id.

    Args:
        find: raises ValueError or KeyError for a study that it does not know.
    """

    def __init__(self, find: Callable[[str], Study]) -> None:
        self.find = find
        # A run writes its page again and again, of mostly the same studies; all of a corpus would fill the memory.
        self.images = remember(self._images, most_bytes=2 * IMAGE_BYTES)

    @classmethod
    def of_studies(cls, studies: Sequence[Study]) -> "StudySource":
        return cls({study.id: study for study in studies}.__getitem__)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "StudySource":
        """From the resolved config of a run. A manifest that is not on this machine gives no study."""
        data = config["data"]
        if data["source"] == "phantoms":
            return cls(lambda study_id: draw_phantom(study_id, seed=config["seed"], size=data["image_size"]))
        manifest, root = data["manifest"], data["image_root"]
        try:
            studies = read_manifest(Path(manifest), image_root=None if root is None else Path(root)) if manifest else []
        except ValueError:
            studies = []
        return cls.of_studies(studies)

    def reference(self, study_id: str) -> str | None:
        """The reference report, as `shorten` leaves it; None for a study that is not found."""
        try:
            return shorten(self.find(study_id).report)
        except (ValueError, KeyError):
            return None

    def _images(self, study_id: str, side: int) -> list[str]:
        """Data URIs of a study's images, at most `side` pixels wide and high; none if they are not found."""
        try:
            sources = self.find(study_id).images[:MOST_IMAGES]
            return [data_uri(load_image(source, study_id=study_id, size=side)) for source in sources]
        except (ValueError, KeyError):  # the page shows a placeholder: a moved image is no reason to show nothing
            return []


def data_uri(image: Image.Image) -> str:
    """An image as JPEG in a data URI; a grey one takes a third of the bytes."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and (pixels[..., :1] == pixels).all():
        image = image.convert("L")
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=72, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def shorten(text: str, most: int = LONGEST_TEXT) -> str:
    """A report as a page may show it: cut visibly if it is huge."""
    return text if len(text) <= most else f"{text[:most]} … [cut here: {len(text) - most:,} more characters]"


def find_hardest(run: RunFiles, source: StudySource) -> list[dict[str, Any]]:
    """The studies with the lowest s_i, lowest first, as the template reads them."""
    worst = sorted(run.scores, key=lambda row: row["s"])[:HARDEST]
    predictions = run.predictions() if worst else {}
    critical = {row["id"]: bool(row["critical"]) for row in run.criticality}
    return [
        {
            "id": row["id"],
            "score": row["s"],
            "metrics": {key: value for key, value in row.items() if key not in ("id", "s")},
            "critical": critical.get(row["id"]),
            "reference": source.reference(row["id"]),
            "prediction": shorten(predictions.get(row["id"], "")),
            "images": source.images(row["id"], HARDEST_SIDE),
        }
        for row in worst
    ]


def pick_rollouts(run: RunFiles, source: StudySource) -> dict[str, Any]:
    """The rollouts of evenly spaced steps, the first and the last among them, as the page's script reads them."""
    parts: dict[str, int] = {}
    steps: list[dict[str, Any]] = []
    for step in evenly(list(run.rollouts), ROLLOUT_STEPS):
        rows = run.rollouts[step].read()
        shown: list[dict[str, Any]] = []
        left = TEXT_BYTES / ROLLOUT_STEPS
        for row in evenly(rows, STUDIES_PER_STEP):
            study = _describe_study(row, parts)
            left -= sum(len(report["text"]) for report in study["reports"])
            if left < 0 and shown:
                break
            shown.append(study)
        steps.append({"step": step + 1, "of": len(rows), "studies": shown})
    ids = list(dict.fromkeys(study["id"] for step in steps for study in step["studies"]))
    return {"labels": [label(name) for name in parts], "steps": steps, "images": _draw_small(ids, source)}


def _describe_study(row: Row, parts: dict[str, int]) -> dict[str, Any]:
    for report in row["reports"]:
        for name in report["parts"]:
            parts.setdefault(name, len(parts))
    reports = [
        {
            "number": number + 1,
            "text": shorten(report["report"]),
            **{key: report[key] for key in ("tokens", "truncated", "total")},
            "parts": [report["parts"].get(name) for name in parts],
            "advantage": report["advantage"],
            "edited": report.get("edited"),  # what was changed, if the policy did not write it as it is
        }
        for number, report in enumerate(row["reports"][:REPORTS_PER_STUDY])
    ]
    study = {"id": str(row["id"]), "critical": bool(row["critical"]), "eps": row["eps"]}
    return {**study, "reference": shorten(row["reference"]), "of": len(row["reports"]), "reports": reports}


def _draw_small(ids: Sequence[str], source: StudySource) -> dict[str, list[str]]:
    side = 256 if len(ids) <= 150 else 160
    found, left = {}, IMAGE_BYTES
    for study_id in ids:
        uris = source.images(study_id, side)
        left -= sum(map(len, uris))
        if left < 0:
            break
        found[study_id] = uris
    return found


def measure_spread(run: RunFiles) -> dict[str, Series]:
    """Mean and standard deviation of each part of the reward over the policy's own reports of evenly spaced steps."""
    columns: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for step in evenly(list(run.rollouts), SPREAD_STEPS):
        values: dict[str, list[float]] = defaultdict(list)
        reports = [report for row in run.rollouts[step].read() for report in row["reports"] if not report.get("edited")]
        for name, value in (item for report in reports for item in report["parts"].items()):
            if value is not None:
                values[name].append(value)
        for name, known in values.items():
            columns[name].append((step + 1, statistics.fmean(known), statistics.pstdev(known)))
    spreads = {}
    for name, points in columns.items():
        low, high = [mean - std for _, mean, std in points], [mean + std for _, mean, std in points]
        spreads[name] = Series(name, [x for x, _, _ in points], [mean for _, mean, _ in points], low, high)
    return spreads
