"""The smallest runs of train.py for a campaign of faults: a quiet one, kept before each stage, to compare with."""

import json
import random
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fault_processes import NotSurvived, Tally, fork_run
from small_run import SIZES, options_of

from radflow.pipeline.run_config import STAGES

TINY = options_of(
    {
        **SIZES,
        "model.tiny.hidden-size": 32,
        "model.tiny.layers": 1,
        "data.num-train": 8,
        "data.num-test": 4,
        "warmup.steps": 6,
        "sft.steps": 12,
        "sft.batch-size": 4,
        "sft.checkpoint-every": 2,
        "sft.optimizer.lr": 0.02,
        "sft.optimizer.warmup-steps": 0,
        "explore.part-size": 3,
        "explore.fraction": 0.5,
        "rl.steps": 4,
        "rl.studies-per-step": 2,
        "rl.group-size": 2,
        "rollout.max-new-tokens": 16,
        "evaluate.max-new-tokens": 8,
        "evaluate.baseline-sample": 4,
        "evaluate.part-size": 2,
    }
)
# What differs between two runs of the same results: times, paths, versions, and checkpoints of other moments.
VOLATILE = (
    "config.yaml",
    "environment.json",
    "dashboard.html",
    "status.json",
    "timing.jsonl",
    "warnings.jsonl",
    "lock",
)


def command(folder: Path, stages: Sequence[str] = STAGES, *options: str) -> list[str]:
    """Words of a run of some stages."""
    return ["--run-dir", str(folder), "--stages", ",".join(stages), *TINY, *options]


def results(folder: Path) -> dict[str, bytes]:
    """What must not depend on what a run went through, by file."""
    found: dict[str, bytes] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if ".tmp" not in name and (name in VOLATILE or {"checkpoints", "tensorboard"} & {*name.split("/")}):
            continue
        if path.name == "metrics.jsonl":
            found[name] = re.sub(rb'"seconds\w*": [^,}]*', b"", path.read_bytes())
        else:
            found[name] = path.read_bytes()
    return found


def check_same(folder: Path, quiet: Path, *, but: str = "") -> None:
    """Compare the results of two runs, apart from the file `but`."""
    mine, wanted = results(folder), results(quiet)
    differing = [name for name in {**mine, **wanted} if name != but and mine.get(name) != wanted.get(name)]
    if differing:
        some = f"{len(differing)} files are not those of the quiet run: {', '.join(differing[:3])}"
        raise NotSurvived(some + f"; missing: {[n for n in differing if n not in mine][:3]}")


@dataclass(frozen=True)
class Quiet:
    """An undisturbed run, of which a copy was kept before each stage.

    Attributes:
        seconds: that each stage took.
    """

    folder: Path
    ranks: int
    threads: int
    options: tuple[str, ...]
    seconds: Mapping[str, float]

    @classmethod
    def record(cls, folder: Path, *options: str, ranks: int = 1, threads: int = 1, stages: Sequence[str] = STAGES):
        """Run stage by stage and copy the run folder after each."""
        work = folder / "work"
        work.mkdir(parents=True)
        for stage in stages:
            words = command(work, [stage], *options)
            fork_run(words, folder / "log", ranks=ranks, threads=threads).wait().check_done()
            shutil.copytree(work, folder / f"after_{stage}")
        timing = [json.loads(line) for line in (work / "timing.jsonl").read_text().splitlines()]
        seconds = {row["stage"]: row["seconds"] for row in timing}
        return cls(folder, ranks, threads, options, seconds)

    def before(self, stage: str) -> Path | None:
        """The run folder before a stage; None for the first."""
        number = ("start", *STAGES).index(stage)
        return self.after(STAGES[number - 2]) if number > 1 else None

    def after(self, stage: str) -> Path:
        return self.folder / f"after_{STAGES[0] if stage == 'start' else stage}"

    def copy_before(self, stage: str, folder: Path) -> Path:
        """A fresh run folder in which `stage` comes next."""
        shutil.rmtree(folder, ignore_errors=True)
        before = self.before(stage)
        if before is None:
            folder.mkdir(parents=True)
        else:
            shutil.copytree(before, folder)
        return folder


def stages_of(stage: str) -> list[str]:
    """What is run so that `stage` happens; `start` is all that comes before the first one."""
    return [STAGES[0] if stage == "start" else stage]


@dataclass(frozen=True)
class Case:
    """One experiment of the campaign.

    Attributes:
        test: the row of the table in which it counts.
        name: unique in its test.
        work: disturbs a run in an empty folder; `NotSurvived` says what went wrong.
    """

    test: str
    name: str
    work: Callable[[Path, random.Random], Tally]


def chance_of(seed: int, name: str) -> random.Random:
    """Random numbers of a case, the same in every campaign of this seed."""
    return random.Random(f"{seed} {name}")
