"""A run folder, read as it is at this moment: of a run that goes on, that ended, or that was killed."""

import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml

from capo.journal import iter_lines, read_json, write_json
from radflow.dashboard.archive import Archive, Member
from radflow.dashboard.course import Course, Row
from radflow.dashboard.shapes import SHAPES, check_shape

T = TypeVar("T")
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
    steps: Mapping[str, Course]  # stage -> its metrics.jsonl
    scores: Sequence[Row]
    selected: Sequence[str]  # ids of the hard studies
    criticality: Sequence[Row]
    evaluation: Mapping[str, Any] | None

    @classmethod
    def read(cls, folder: Path, courses: Mapping[str, Course] | None = None) -> "RunFiles":
        """All but the rollouts, which are read step by step.

        Args:
            courses: stage -> its steps, of stages whose metrics.jsonl need not be read again.

        Raises:
            ValueError: the folder holds no run, or a file of it is damaged beyond a torn last line.
        """
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"{folder}: expected the folder of a run with its config.yaml; give the run's own folder")
        return cls(
            folder=folder,
            config=_read_config(folder / "config.yaml"),
            environment=read_object(folder / "environment.json") or {},
            status=read_object(folder / "status.json"),
            timing=read_rows(folder / "timing.jsonl"),
            steps={stage: (courses or {}).get(stage) or _read_course(folder, stage) for stage in TRAINED},
            scores=_read_scores(folder / "explore" / "scores.jsonl", read_selected(folder)),
            selected=read_selected(folder),
            criticality=read_rows(folder / "criticality.jsonl"),
            evaluation=read_object(folder / "eval" / "table.json"),
        )

    def rl_steps(self) -> Iterator[Row]:
        """The metrics of every RL step, read anew."""
        return iter_lines(self.folder / "rl" / "metrics.jsonl")

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def seconds(self) -> dict[str, float]:
        """Of each stage, over all its starts."""
        total: Counter[str] = Counter()
        for row in self.timing:
            total[row["stage"]] += row["seconds"]
        return dict(total)

    @cached_property
    def rollouts(self) -> Mapping[int, Member]:
        """Step -> where its studies are, each with its G reports."""
        return Archive(self.folder / "rl" / "rollouts").members()

    def predictions(self) -> dict[str, str]:
        """The SFT policy's report of every training study explored so far."""
        parts = sorted((self.folder / "explore" / "predictions").glob("part_*.jsonl"))
        rows: list[dict[str, Any]] = [row for path in parts for row in read_rows(path, kind="predictions")]
        return {row["id"]: row["report"] for row in rows}

    def held_out(self) -> dict[str, tuple[str, str, str]]:
        """Reference, SFT and CAPO report of every held-out study; none before the evaluation."""
        files = [
            read_object(self.folder / "eval" / f"{name}.json", kind="reports") or {}
            for name in ("references", "sft", "capo")
        ]
        shared = [study_id for study_id in files[0] if all(study_id in file for file in files)]
        texts = {i: tuple(str(file[i].get("report") or "") for file in files) for i in shared}
        return cast(dict[str, tuple[str, str, str]], texts)


def read_object(path: Path, *, kind: str = "") -> dict[str, Any] | None:
    """A JSON object of a run; None if there is no such file.

    Args:
        kind: of SHAPES, by default the file's name.

    Raises:
        ValueError: it is something else; names the file.
    """
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path)
    check_shape(found, SHAPES[kind or path.name], path)
    return found


def read_rows(path: Path, *, kind: str = "") -> list[dict[str, Any]]:
    """Rows of a JSON-lines file of a run; the rest is as for `read_object`."""
    return list(iter_rows(path, kind=kind))


def iter_rows(path: Path, *, kind: str = "") -> Iterator[dict[str, Any]]:
    """`read_rows` row by row, for a file that is too long to hold."""
    (shape,) = SHAPES[kind or path.name]
    for number, row in enumerate(iter_lines(path), 1):
        check_shape(row, shape, path, str(number))
        yield row


def read_selected(folder: Path) -> Sequence[str]:
    """Ids of the hard studies; none before the exploration."""
    selection = read_object(folder / "explore" / "selection.json")
    return selection["selected"] if selection else ()


def read_yaml(path: Path) -> Any:
    """Content of a YAML file; ValueError in one line names one that is damaged."""
    try:
        return yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected YAML, got {' '.join(str(error).split())}; correct the file") from error


def _read_course(folder: Path, stage: str) -> Course:
    return Course(iter_rows(folder / stage / "metrics.jsonl", kind="rl metrics" if stage == "rl" else ""))


def _read_scores(path: Path, selected: Sequence[str]) -> list[dict[str, Any]]:
    """Scores of all training studies, which are written before studies are selected by them."""
    rows = read_rows(path)
    if missing := {*selected} - {row["id"] for row in rows}:
        raise ValueError(f"{path}: expected a score of study {min(missing)}, got none; the file is damaged: restore it")
    return rows


def _read_config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_yaml(path)
    check_shape(config, SHAPES[path.name], path)
    return config


def write_status(folder: Path, state: State, *, stage: str, detail: str = "") -> None:
    """Write status.json, by which another machine knows what the run does; `detail` is why it stopped or failed."""
    where = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    write_json(folder / "status.json", {"state": state, "stage": stage, "detail": detail, **where})


def read_end(folder: Path) -> dict[str, Any] | None:
    """How the run ended; None while it goes on. A run that was killed still says that it is running."""
    status = read_object(folder / "status.json")
    if status is not None:
        return None if status["state"] == "running" else status
    if (folder / "eval" / "table.md").is_file():  # a run before there was status.json
        return {"state": "complete", "stage": "evaluate", "detail": ""}
    return None


def keys_with(rows: Iterable[Row], prefix: str) -> list[str]:
    """Keys of the rows that begin with `prefix`, in the order in which they appear."""
    return [key for key in dict.fromkeys(chain.from_iterable(rows)) if key.startswith(prefix)]


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
