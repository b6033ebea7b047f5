"""Trackers: programs that a run sends its metrics to, in addition to its own files. Numbers only, never a report.

A tracker that fails is named once and dropped; training goes on.
"""

import hashlib
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from radflow.dashboard.course import Row


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is shown while it goes on. None of this changes a result."""

    dashboard: bool = True
    """Write dashboard.html at checkpoints, at the end of a stage and at the end of the run."""
    keep_steps: int = 0
    """Latest steps whose reports stay in rl/rollouts and rl/held_out, which lose files of 1,000 steps; 0 keeps all."""
    tensorboard: bool = False
    """Write event files to the folder tensorboard/ of the run (needs the extra `tensorboard`)."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases: offline writes to the folder wandb/ of the run, online sends the numbers to its servers (needs
    the extra `wandb`)."""
    wandb_project: str = "radflow"
    """Project that Weights & Biases files the run under."""

    def __post_init__(self) -> None:
        if self.keep_steps < 0:
            raise ValueError(f"expected tracking.keep_steps of at least 0, got {self.keep_steps}")


class TensorBoardTracker:
    """Event files, one folder per stage. A resumed stage hides the steps that it repeats."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.writers = folder, dict[str, Any]()

    def log(self, stage: str, step: int, row: Row) -> None:
        if stage not in self.writers:
            from torch.utils.tensorboard import SummaryWriter  # loads torch and protobuf

            self.writers[stage] = SummaryWriter(str(self.folder / stage), purge_step=step)
        for key, value in keep_numbers(row).items():
            self.writers[stage].add_scalar(key, value, step)
        self.writers[stage].flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class WandbTracker:
    """Weights & Biases; a run that is started again continues the same run there."""

    def __init__(self, folder: Path, tracking: TrackingConfig, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline means that nothing is sent at all
        import wandb  # heavy

        path = folder.resolve()
        # Of the machine, the command and the packages nothing is sent either: paths may name patients.
        private = {"host": "", "x_disable_meta": True, "x_disable_machine_info": True, "x_save_requirements": False}
        quiet = {"console": "off", "silent": True, "disable_code": True, "disable_git": True, "x_disable_stats": True}
        self.run = wandb.init(
            project=tracking.wandb_project,
            name=path.name,
            mode=tracking.wandb,
            dir=str(folder),
            id=hashlib.sha256(str(path).encode()).hexdigest()[:16],
            resume="allow",
            config=numbers_in(config),
            settings=wandb.Settings(**private, **quiet),
        )
        self.known: set[str] = set()

    def log(self, stage: str, step: int, row: Row) -> None:
        if stage not in self.known:  # each stage counts its own steps
            self.run.define_metric(f"{stage}/step")
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self.known.add(stage)
        self.run.log({f"{stage}/step": step, **{f"{stage}/{key}": value for key, value in keep_numbers(row).items()}})

    def close(self) -> None:
        self.run.finish()


Tracker = TensorBoardTracker | WandbTracker


class Trackers:
    """All trackers of a run.

    Args:
        makers: name -> what builds the tracker, at the first step: a run that only skips opens none.
        say: prints a line.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tracker]], say: Callable[[str], None]) -> None:
        self.makers, self.say, self.open = dict(makers), say, dict[str, Tracker]()

    @classmethod
    def of(
        cls, folder: Path, tracking: TrackingConfig, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> "Trackers":
        """Those that the config asks for.

        Raises:
            ValueError: the package of one is not installed.
        """
        makers: dict[str, Callable[[], Tracker]] = {}
        if tracking.tensorboard:
            makers["tensorboard"] = lambda: TensorBoardTracker(folder / "tensorboard")
        if tracking.wandb != "off":
            makers["wandb"] = lambda: WandbTracker(folder, tracking, config)
        for name in makers:
            if importlib.util.find_spec(name) is None:
                raise ValueError(
                    f"tracking.{name} needs the package {name}, which is not installed; run: "
                    f"pip install -c constraints.txt -e '.[train,{name}]', or switch it off"
                )
        return cls(makers, say)

    def log(self, stage: str, step: int, row: Row) -> None:
        for name in list(self.makers):
            self._attempt(name, lambda tracker: tracker.log(stage, step, row))

    def close(self) -> None:
        for name in list(self.open):
            self._attempt(name, lambda tracker: tracker.close())
        self.open.clear()

    def _attempt(self, name: str, do: Callable[[Tracker], None]) -> None:
        # Whatever goes wrong in another program - disk, network, version - must not end days of training.
        try:
            if name not in self.open:
                self.open[name] = self.makers[name]()
            do(self.open[name])
        except Exception as error:
            self.say(f"warning: tracker {name} failed ({type(error).__name__}: {error}); training goes on without it")
            self.makers.pop(name, None)
            self.open.pop(name, None)


def numbers_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and switches of a nested config: its texts hold paths, prompts and addresses."""
    kept = {key: numbers_in(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    return {key: value for key, value in kept.items() if isinstance(value, int | float | dict)}


def keep_numbers(row: Row) -> dict[str, float]:
    """The finite numbers of a row, without the step."""
    numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}
    numbers.pop("step", None)
    return numbers
