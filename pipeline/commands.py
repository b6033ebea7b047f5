"""The commands of `train.py`; their parameters are the options. What needs torch is imported when it runs."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from radflow.pipeline.command_line import show_help


def annotate(words: Sequence[str]) -> None:
    """Label every training reference as critical or normal, once.

        python train.py annotate --config configs/my.yaml       labels by rules -> criticality.jsonl
        ... --criticality.source llm --judge.model gpt-4o       by a language model (docs/judge.md)
        ... --criticality.corrected labels.jsonl                labels of a person replace them

    Options are those of train.py. It prints the share of critical studies and ten examples of each kind. Rerun the
    same command to resume after a kill or unanswered questions; what was answered is not asked again.
    """
    if not show_help(words, annotate.__doc__):
        from radflow.pipeline import criticality, run_config

        criticality.annotate_references(run_config.parse_config(words))


def plan(words: Sequence[str]) -> None:
    """Print the GPU memory that a config needs, without starting a run.

        python train.py plan --config configs/my.yaml

    Options are those of train.py.
    """
    if not show_help(words, plan.__doc__):
        from radflow.pipeline import memory_plan, run_config

        print(memory_plan.plan_memory(run_config.parse_config(words)))


def export(
    run: Positional[Path],
    stage: Literal["rl", "sft"] = "rl",
    out: Path | None = None,
    what: Literal["adapter", "merged", "both"] | None = None,
    dtype: Literal["bfloat16", "float32"] | None = None,
) -> None:
    """Write an adapter and a merged model of a run, each with a model card, for others to load.

    Args:
        run: Folder of the run.
        stage: Stage that trained the policy.
        out: Folder to write, new or empty; by default RUN/export/STAGE.
        what: By default both, or merged if the run trained all weights.
        dtype: Of the weights; by default as trained.
    """
    from radflow.pipeline.export import export_policy

    out = out or run / "export" / stage
    kinds = export_policy(run, stage, out, what=what, dtype=dtype)
    print(f"{' and '.join(kinds)} of stage {stage} in {out}")


def dashboard(run: Positional[Path]) -> None:
    """Build dashboard.html of a run again from its files.

    Args:
        run: Folder of the run.
    """
    from radflow.dashboard.build import build_dashboard

    print(build_dashboard(run))


def compare(runs: Positional[tuple[Path, ...]], out: Path = Path("compare.html")) -> None:
    """Lay the curves of runs over one another, with what differs in their configs.

    Args:
        runs: Folders of the runs.
        out: The page to write.
    """
    from radflow.dashboard.compare import compare_runs

    print(compare_runs(runs, out), out, sep="\n")


def watch(run: Positional[Path], once: bool = False, every: float = 2.0) -> None:
    """Follow a running job from its files until it ends or Ctrl-C is pressed.

    Args:
        run: Folder of the run, on this machine or a shared file system.
        once: Say how far the run is, and exit.
        every: Seconds between looks.
    """
    from radflow.dashboard import live

    if not 0 < every < threading.TIMEOUT_MAX:
        raise ValueError(f"expected every above 0 and finite, got {every}")
    with suppress(KeyboardInterrupt):
        live.watch(run, once=once, every_s=every, say=partial(print, flush=True))
