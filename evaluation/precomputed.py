"""Sub-scores and annotations that were computed elsewhere, from a JSON-lines file (docs/evaluate.md)."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from radflow.data.readers.tables import escape_control
from radflow.evaluation.table_metrics import PER_REPORT, Cells, label_cells
from radflow.rewards.metrics.chexbert import NUM_CLASSES, positive_labels
from radflow.rewards.radgraph.f1 import LEVELS

# Names of the sub-scores in tables and scripts -> ours.
ALIASES = {"radgraph": "radgraph_f1_rexrank", "semb": "sembscore", "semb_score": "sembscore", "bleu": "bleu2"}
ANNOTATIONS = ("entities", "chexbert")
KEYS = (*PER_REPORT, *ANNOTATIONS)
SIDES = ("prediction", "reference")


Rows = Mapping[str, Mapping[str, Any]]  # study id -> name of cells or annotation -> value


def precomputed_cells(rows: Rows, ids: Sequence[str], path: Path) -> Cells:
    """Cells of these studies.

    Raises:
        ValueError: something is given for some of them only: the rest would drop out of a mean in silence.
    """
    if absent := [study_id for study_id in ids if study_id not in rows]:
        some = f"{len(absent)} have none, such as {', '.join(absent[:3])}"
        raise ValueError(f"{path}: expected a line for each of the {len(ids)} studies that are scored, {some}")
    cells: Cells = {}
    for name in dict.fromkeys(name for study_id in ids for name in rows[study_id]):
        if without := [study_id for study_id in ids if name not in rows[study_id]]:
            some = f"{len(without)} lack it, such as {', '.join(without[:3])}"
            raise ValueError(f"{path}: expected {name} for every study or for none, {some}")
        new = _cells(name, [rows[study_id][name] for study_id in ids])
        cells = new | cells if name in ANNOTATIONS else cells | new  # a sub-score goes before what annotations give
    return cells


def _cells(name: str, column: list[Any]) -> Cells:
    if name == "entities":
        pairs = [(row["prediction"], row["reference"]) for row in column]
        levels = {level: [LEVELS[level](*pair) for pair in pairs] for level in ("rexrank", "partial")}
        return {f"radgraph_f1_{level}": np.array(values, dtype=np.float64) for level, values in levels.items()}
    if name == "chexbert":
        return {"labels_chexbert": label_cells(*([positive_labels(row[side]) for row in column] for side in SIDES))}
    return {name: np.array(column, dtype=np.float64)}


def read_precomputed(path: Path) -> Rows:
    """Read the file; ValueError names the line of what is not as documented."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON lines in UTF-8, got {error}") from error
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            study_id, row = _row(line, f"{path}:{number}")
            if study_id in rows:
                name = escape_control(study_id)
                raise ValueError(f"{path}:{number}: study {name} comes a second time; keep one line")
            rows[study_id] = row
    if not rows:
        raise ValueError(f"{path}: expected one study per line, got none")
    return rows


def _row(line: str, where: str) -> tuple[str, dict[str, Any]]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("id"), str) or not content["id"]:
        raise ValueError(f"{where}: expected an object with the study under id, a text")
    study_id, row = content.pop("id"), {}
    for key, value in content.items():
        name = ALIASES.get(key, key)
        if name in row or name not in KEYS:
            raise ValueError(f"{where}: expected the keys {', '.join(KEYS)}, each once, got {key!r}")
        row[name] = _checked(name, value, f"{where}: {key}")
    if not row:
        raise ValueError(f"{where}: expected sub-scores or annotations next to the id, got none")
    return study_id, row


def _checked(name: str, value: Any, where: str) -> Any:
    if name not in ANNOTATIONS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"{where}: expected a finite number, got {value!r:.60}")
        return value
    if not isinstance(value, dict) or set(value) != set(SIDES):
        raise ValueError(f"{where}: expected an object with {' and '.join(SIDES)}")
    check = _check_graph if name == "entities" else _check_classes
    for side in SIDES:
        check(value[side], f"{where}.{side}")
    return value


def _check_graph(graph: Any, where: str) -> None:
    """Entities as the radgraph package has them: number -> tokens, label, relations [[type, number], ...]."""
    if not isinstance(graph, dict):
        raise ValueError(f"{where}: expected an object of entities by number, got {type(graph).__name__}")
    for number, entity in graph.items():
        sound = isinstance(entity, dict) and all(isinstance(entity.get(key), str) for key in ("tokens", "label"))
        if not sound or not isinstance(entity.get("relations"), list):
            raise ValueError(f"{where}: entity {number}: expected tokens, label and relations")
        for relation in entity["relations"]:
            of_texts = isinstance(relation, list) and all(isinstance(part, str) for part in relation)
            if not of_texts or len(relation) != 2 or relation[1] not in graph:
                got = f"expected relations [type, number of an entity], got {relation!r:.60}"
                raise ValueError(f"{where}: entity {number}: {got}")


def _check_classes(classes: Any, where: str) -> None:
    """A class of each of the 14 labels: 0 blank, 1 positive, 2 negative, 3 uncertain."""
    sound = isinstance(classes, list) and len(classes) == len(NUM_CLASSES)
    if not sound or not all(type(c) is int and 0 <= c < most for c, most in zip(classes, NUM_CLASSES, strict=True)):
        raise ValueError(f"{where}: expected 14 classes of CheXbert, 0 to 3 (No Finding 0 or 1), got {classes!r:.60}")
