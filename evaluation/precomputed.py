"""Sub-scores and annotations that were computed elsewhere, from a JSON-lines file (docs/evaluate.md)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.model_cells import class_cells, graph_cells
from evaluation.table_metrics import CELLS, LABEL_CELLS, Cells
from rewards.chexbert import NUM_CLASSES

# Names of the sub-scores in tables and scripts -> ours.
ALIASES = {"radgraph": "radgraph_f1_rexrank", "semb": "sembscore", "semb_score": "sembscore", "bleu": "bleu2"}
VALUES = tuple(name for name in CELLS if name not in LABEL_CELLS)
ANNOTATIONS = ("entities", "chexbert")
SIDES = ("prediction", "reference")


@dataclass(frozen=True)
class Precomputed:
    """What a file says of each study."""

    path: Path
    rows: Mapping[str, Mapping[str, Any]]  # id -> name of cells or annotation -> value

    def cells(self, ids: Sequence[str]) -> Cells:
        """Cells of these studies.

        Raises:
            ValueError: something is given for some of them only: the rest would drop out of a mean in silence.
        """
        absent = [study_id for study_id in ids if study_id not in self.rows]
        if absent:
            raise ValueError(
                f"{self.path}: expected a line for each of the {len(ids)} studies that are scored, {len(absent)} have "
                f"none, such as {', '.join(absent[:3])}"
            )
        cells: Cells = {}
        for name in dict.fromkeys(name for study_id in ids for name in self.rows[study_id]):
            without = [study_id for study_id in ids if name not in self.rows[study_id]]
            if without:
                raise ValueError(
                    f"{self.path}: expected {name} for every study or for none, {len(without)} lack it, such as "
                    f"{', '.join(without[:3])}"
                )
            column = [self.rows[study_id][name] for study_id in ids]
            # A sub-score that is given goes before one that follows from annotations.
            cells = {**_cells(name, column), **cells} if name in ANNOTATIONS else {**cells, **_cells(name, column)}
        return cells


def _cells(name: str, column: list) -> Cells:
    if name == "entities":
        return graph_cells(*([row[side] for row in column] for side in SIDES))
    if name == "chexbert":
        return {"labels_chexbert": class_cells(*([row[side] for row in column] for side in SIDES))}
    return {name: np.array(column, dtype=np.float64)}


def read_precomputed(path: Path) -> Precomputed:
    """Read the file.

    Raises:
        ValueError: names the line of what is not as documented.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON lines in UTF-8, got {error}") from error
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            study_id, row = _row(line, f"{path}:{number}")
            if study_id in rows:
                raise ValueError(f"{path}:{number}: study {study_id} comes a second time; keep one line")
            rows[study_id] = row
    if not rows:
        raise ValueError(f"{path}: expected one study a line, got none")
    return Precomputed(path, rows)


def _row(line: str, place: str) -> tuple[str, dict[str, Any]]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: expected JSON, got {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("id"), str) or not content["id"]:
        raise ValueError(f"{place}: expected an object with the study under id, a text")
    row = {}
    for key, value in content.items():
        name = ALIASES.get(key, key)
        if key == "id":
            continue
        if name in row or name not in (*VALUES, *ANNOTATIONS):
            raise ValueError(f"{place}: expected the keys {', '.join((*VALUES, *ANNOTATIONS))}, each once, got {key!r}")
        row[name] = _checked(name, value, f"{place}: {key}")
    if not row:
        raise ValueError(f"{place}: expected sub-scores or annotations beside the id, got none")
    return content["id"], row


def _checked(name: str, value: Any, place: str) -> Any:
    if name not in ANNOTATIONS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"{place}: expected a finite number, got {value!r:.60}")
        return value
    if not isinstance(value, dict) or set(value) != set(SIDES):
        raise ValueError(f"{place}: expected an object with {' and '.join(SIDES)}")
    check = _check_graph if name == "entities" else _check_classes
    for side in SIDES:
        check(value[side], f"{place}.{side}")
    return value


def _check_graph(graph: Any, place: str) -> None:
    """Entities as the radgraph package has them: number -> tokens, label, relations [[type, number], ...]."""
    if not isinstance(graph, dict):
        raise ValueError(f"{place}: expected an object of entities by number, got {type(graph).__name__}")
    for number, entity in graph.items():
        sound = isinstance(entity, dict) and all(isinstance(entity.get(key), str) for key in ("tokens", "label"))
        if not sound or not isinstance(entity.get("relations"), list):
            raise ValueError(f"{place}: entity {number}: expected tokens, label and relations")
        for relation in entity["relations"]:
            if (
                not isinstance(relation, list)
                or len(relation) != 2
                or not all(isinstance(part, str) for part in relation)
                or relation[1] not in graph
            ):
                raise ValueError(
                    f"{place}: entity {number}: expected relations [type, number of an entity], got {relation!r:.60}"
                )


def _check_classes(classes: Any, place: str) -> None:
    """A class of each of the 14 labels: 0 blank, 1 positive, 2 negative, 3 uncertain."""
    sound = isinstance(classes, list) and len(classes) == len(NUM_CLASSES)
    if not sound or not all(type(c) is int and 0 <= c < most for c, most in zip(classes, NUM_CLASSES, strict=True)):
        raise ValueError(f"{place}: expected 14 classes of CheXbert, 0 to 3 (No Finding 0 or 1), got {classes!r:.60}")
