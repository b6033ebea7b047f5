"""A run folder, read as it is at this moment: of a run that goes on, that ended, or that was killed."""

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml

from capo.journal import read_lines, write_json

T = TypeVar("T")
Row = Mapping[str, Any]
State = Literal["running", "complete", "stopped", "failed"]
TRAINED = ("warmup", "sft", "rl")  # the stages that write metrics.jsonl


@dataclass(frozen=True)
class RunFiles:
    """What a run wrote so far. What it has not reached is empty, or None."""

    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    status: Mapping[str, Any] | None  # None: of a run before there was status.json
    timing: Sequence[Row]  # one line for each time that a stage ran to its end
    steps: Mapping[str, Sequence[Row]]  # stage -> its metrics.jsonl
    scores: Sequence[Row]
    selected: Sequence[str]  # ids of the hard studies
    criticality: Sequence[Row]
    evaluation: Mapping[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> "RunFiles":
        """All but the rollouts, which are read step by step.

        Raises:
            ValueError: the folder holds no run, or a file of it is damaged beyond a torn last line.
        """
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"{folder}: expected the folder of a run with its config.yaml; give the run's own folder")
        selection = read_json(folder / "explore" / "selection.json")
        return cls(
            folder=folder,
            config=yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
            environment=read_json(folder / "environment.json") or {},
            status=read_json(folder / "status.json"),
            timing=read_lines(folder / "timing.jsonl"),
            steps={stage: read_lines(folder / stage / "metrics.jsonl") for stage in TRAINED},
            scores=read_lines(folder / "explore" / "scores.jsonl"),
            selected=selection["selected"] if selection else (),
            criticality=read_lines(folder / "criticality.jsonl"),
            evaluation=read_json(folder / "eval" / "table.json"),
        )

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def seconds(self) -> dict[str, float]:
        """Of each stage, over all its starts."""
        total: Counter[str] = Counter()
        for row in self.timing:
            total[row["stage"]] += row["seconds"]
        return dict(total)

    def rollout_steps(self) -> list[int]:
        """Steps whose reports are there."""
        files = (self.folder / "rl" / "rollouts").glob("step_*.jsonl")
        return sorted(int(path.stem.removeprefix("step_")) for path in files)

    def rollouts(self, step: int) -> list[dict[str, Any]]:
        """The studies of one step, each with its G reports."""
        return read_lines(self.folder / "rl" / "rollouts" / f"step_{step:06d}.jsonl")

    def predictions(self) -> dict[str, str]:
        """The SFT policy's report of every training study explored so far."""
        parts = sorted((self.folder / "explore" / "predictions").glob("part_*.jsonl"))
        rows: list[dict[str, Any]] = [row for path in parts for row in read_lines(path)]
        return {row["id"]: row["report"] for row in rows}

    def held_out(self) -> dict[str, tuple[str, str, str]]:
        """Reference, SFT and CAPO report of every held-out study; none before the evaluation."""
        files = [read_json(self.folder / "eval" / f"{name}.json") or {} for name in ("references", "sft", "capo")]
        shared = [study_id for study_id in files[0] if all(study_id in file for file in files)]
        texts = {i: tuple(str(file[i].get("report") or "") for file in files) for i in shared}
        return cast(dict[str, tuple[str, str, str]], texts)


def read_json(path: Path) -> Any:
    """Content of a JSON file; None if there is none.

    Raises:
        ValueError: it is not JSON; names the file.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got {error}; remove the file") from error


def write_status(folder: Path, state: State, *, stage: str, detail: str = "") -> None:
    """Write status.json, by which another machine knows what the run does; `detail` is why it stopped or failed."""
    where = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    write_json(folder / "status.json", {"state": state, "stage": stage, "detail": detail, **where})


def read_end(folder: Path) -> dict[str, Any] | None:
    """How the run ended; None while it goes on. A run that was killed still says that it is running."""
    status = read_json(folder / "status.json")
    if status is not None:
        return None if status["state"] == "running" else status
    if (folder / "eval" / "table.md").is_file():  # a run before there was status.json
        return {"state": "complete", "stage": "evaluate", "detail": ""}
    return None


def keys_with(rows: Iterable[Row], prefix: str) -> list[str]:
    """Keys of the rows that begin with `prefix`, in the order in which they appear."""
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith(prefix)))


def reward_parts(rows: Sequence[Row]) -> list[str]:
    """Names of the parts of the reward, as the rows have them: which there are depends on the run."""
    names = [key for key in keys_with(rows, "reward_") if key != "reward_std" and "reward_missing_" not in key]
    return [name.removeprefix("reward_") for name in names]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items: the first, the last, and evenly spaced ones between them."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
