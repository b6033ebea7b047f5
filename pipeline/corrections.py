"""Criticality labels that a person corrected, and who labels the rest."""

import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from radflow.rewards.rules.criticality import Criticality, Definition

_KEYS = {"id", "critical", "reason", "source"}


@dataclass(frozen=True)
class CriticalityConfig:
    """Who says which references are critical."""

    source: Literal["rules", "llm"] = "rules"
    """The labeler that reward.expert names, or the model of section judge."""
    definition: Definition = "paper"
    """`paper`: anything abnormal is critical. `acute`: only what is urgent or new; nothing old, chronic or mild."""
    corrected: Path | None = None
    """JSON-lines file of labels by a person: id, critical, and if wanted reason. They go before the source's."""
    part_size: int = 256
    """Studies per part file; a killed labelling repeats at most one part."""

    def __post_init__(self) -> None:
        if self.part_size < 1:
            raise ValueError(f"expected criticality.part_size of at least 1, got {self.part_size}")


def read_corrections(path: Path, known: Container[str]) -> dict[str, Criticality]:
    """Labels by study id; their source is `person`.

    Lines of criticality.jsonl with another `critical` are valid corrections; what they say of the source is not kept.
    ValueError, with file and line, if a line is no such object, or its id is not among the `known` or comes twice.
    """
    if not path.exists():
        raise ValueError(f"criticality.corrected: {path} does not exist; correct the path")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"criticality.corrected: {path}: expected JSON lines in UTF-8, got {error}") from error
    labels: dict[str, Criticality] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        study_id, label = _read_line(line, where=f"{path}:{number}")
        if study_id not in known:
            raise ValueError(f"{path}:{number}: no training study has the id {study_id!r}; correct it or drop the line")
        if study_id in labels:
            raise ValueError(f"{path}:{number}: study {study_id!r} has a label already; keep one of the two lines")
        labels[study_id] = label
    return labels


def _read_line(line: str, *, where: str) -> tuple[str, Criticality]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected a JSON object, got {line[:60]!r}") from error
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(row.get("critical"), bool):
        raise ValueError(f'{where}: expected {{"id": "s1", "critical": true}} or false, got {line[:60]!r}')
    if unknown := sorted(row.keys() - _KEYS):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; expected {', '.join(sorted(_KEYS))}")
    reason = row.get("reason", "corrected by a person")
    if not isinstance(reason, str):
        raise ValueError(f"{where}: expected a text as reason, got {reason!r}")
    return row["id"], Criticality(row["critical"], reason, "person")
