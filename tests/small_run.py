"""The smallest run of train.py that goes through every stage, for tests and benchmarks."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from capo.journal import write_json, write_lines

ROOT = Path(__file__).parents[1]
SIZES = {
    "data.image-size": 56,
    "model.tiny.hidden-size": 64,
    "model.tiny.layers": 2,
    "model.tiny.vision-hidden": 64,
    "model.tiny.vision-depth": 1,
    "sft.batch-size": 8,
    "rl.checkpoint-every": 1,
    "rl.studies-per-step": 4,
    "rollout.max-new-tokens": 24,
    "evaluate.max-new-tokens": 24,
}


def options_of(values: Mapping[str, object]) -> list[str]:
    """Keys of the config and their values as words of the command line."""
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


SMALL = options_of(
    {
        **SIZES,
        "data.num-train": 20,
        "data.num-test": 6,
        "warmup.steps": 6,
        "sft.steps": 30,
        "sft.checkpoint-every": 5,
        "explore.part-size": 5,
        "explore.fraction": 0.5,
        "rl.steps": 4,
        "evaluate.baseline-sample": 5,
    }
)


def write_before_rl(folder: Path, model: Path, selected: Sequence[str], critical: Mapping[str, bool]) -> None:
    """What the RL stage reads of the stages before it: a model, the selected studies and which ones are critical."""
    shutil.copytree(model, folder / "sft" / "model")
    write_json(folder / "explore" / "selection.json", {"selected": selected})
    labels = [{"id": id, "critical": label, "reason": "", "source": "rules"} for id, label in critical.items()]
    write_lines(folder / "criticality.jsonl", labels)


def start_run(
    folder: Path, *options: str, ranks: int = 1, launcher: Sequence[str] = (), **changes: object
) -> subprocess.Popen:
    """train.py in a process of its own, one thread per rank.

    Args:
        launcher: options of torchrun, which starts several ranks.
        changes: of what `Popen` is given; by default standard output is dropped and errors can be read.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *launcher]
    program = [*(torchrun if ranks > 1 else []), str(ROOT / "train.py"), "--run-dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    given = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": environment, **changes}
    return subprocess.Popen([sys.executable, *program, *SMALL, *options], cwd=ROOT, **given)


def count_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0
