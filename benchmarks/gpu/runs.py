"""Whole runs of train.py: one that is killed and resumed against one that is not, and the IU X-ray config."""

import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu.report import Bar, Report, Skipped, exactly
from gpu.runner import Setting
from safetensors.torch import load_file
from small_run import SIZES, options_of

from capo.journal import read_lines
from radflow import train

ROOT = Path(__file__).resolve().parents[2]
RL_STEPS, KILLED_AT = 6, 3
DEMO = options_of(
    {
        **SIZES,
        "data.num-train": 24,
        "data.num-test": 6,
        "data.workers": 0,
        "warmup.steps": 0,
        "sft.steps": 10,
        "rl.steps": RL_STEPS,
        "reward.workers": 1,
        "parallel.deterministic": True,
    }
)


def start(folder: Path, *options: str) -> multiprocessing.Process:
    """train.py in a copy of this process, which has imported everything and has not touched the card."""
    arguments = ["--run-dir", str(folder), *options]
    process = multiprocessing.get_context("fork").Process(target=_train, args=(arguments,))
    process.start()
    return process


def _train(arguments: list[str]) -> None:
    os.chdir(ROOT)
    train.main(arguments)


def finish(process: multiprocessing.Process) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(f"train.py ended with exit status {process.exitcode}; its output is above")


def kill_when(process: multiprocessing.Process, reached: Callable[[], bool]) -> None:
    """SIGKILL, as soon as it got that far."""
    while not reached():
        if not process.is_alive():
            raise RuntimeError(f"train.py ended with exit status {process.exitcode} before it could be killed")
        time.sleep(0.01)
    process.kill()
    process.join()


def resume(setting: Setting, report: Report) -> None:
    """The demo's method in miniature; the second run takes over what comes before RL from the first."""
    quiet, killed = setting.folder / "quiet", setting.folder / "killed"
    report.ran(
        f"the demo in miniature, {RL_STEPS} RL steps; again, killed (SIGKILL) after {KILLED_AT} of them and resumed"
    )
    finish(start(quiet, *DEMO, "--stages", "sft,explore,criticality,rl"))
    shutil.copytree(quiet, killed)
    shutil.rmtree(killed / "rl")
    metrics = killed / "rl" / "metrics.jsonl"
    again = [*DEMO, "--stages", "rl"]
    kill_when(start(killed, *again), lambda: len(read_lines(metrics)) >= KILLED_AT)
    finish(start(killed, *again))
    rows, expected = read_lines(metrics), read_lines(quiet / "rl" / "metrics.jsonl")
    report.figure("steps written down", len(rows), exactly(RL_STEPS))
    unlike = [row["step"] for row, wanted in zip(rows, expected, strict=False) if row["loss"] != wanted["loss"]]
    report.figure("steps with another loss", len(unlike))
    weights, wanted = (load_file(folder / "rl" / "model" / "model.safetensors") for folder in (killed, quiet))
    gap = max(float((weights[name].double() - wanted[name].double()).abs().max()) for name in wanted)
    report.figure("weights, largest difference", gap, exactly(0.0))
    begun = load_file(quiet / "sft" / "model" / "model.safetensors")
    moved = max(float((begun[name].double() - wanted[name].double()).abs().max()) for name in wanted)
    report.figure("weights, largest change by RL", moved, Bar(at_least=1e-6))


def iu_xray(setting: Setting, report: Report) -> None:
    """configs/iu_xray_tiny.yaml on some of its studies, ten steps per training stage."""
    source = Path(os.environ.get("RADFLOW_SHARED", ROOT.parent / "shared")) / "data" / "iu_xray"
    if not (source / "manifest.jsonl").exists():
        raise Skipped(f"the IU X-ray data is not there: {source} has no manifest.jsonl; set RADFLOW_SHARED")
    steps, train, held_out = (1, 16, 4) if setting.small else (10, 200, 40)
    manifest = setting.folder / "manifest.jsonl"
    counts = _cut(source / "manifest.jsonl", manifest, {"train": train, "val": held_out})
    report.ran(f"configs/iu_xray_tiny.yaml on {counts} studies: {steps} steps each of warm-up, SFT and RL")
    folder = setting.folder / "iu"
    options = {
        "config": "configs/iu_xray_tiny.yaml",
        "data.manifest": manifest,
        "data.image-root": source,
        "warmup.steps": steps,
        "sft.steps": steps,
        "rl.steps": steps,
        "stages": "warmup,sft,explore,criticality,rl",
    }
    if setting.small:
        lengths = {"rollout.max-new-tokens": 12, "evaluate.max-new-tokens": 12}
        batches = {"rl.studies-per-step": 4, "warmup.batch-size": 4, "sft.batch-size": 4}
        options |= {**lengths, **batches, "reward.workers": 1}
    began = time.monotonic()
    finish(start(folder, *options_of(options)))
    report.figure("seconds of all stages", time.monotonic() - began, unit="s")
    for stage in ("warmup", "sft", "rl"):
        losses = [float(row["loss"]) for row in read_lines(folder / stage / "metrics.jsonl")]
        report.figure(f"{stage}: steps", len(losses), exactly(steps))
        report.figure(f"{stage}: first and last loss", f"{losses[0]:.4f}, {losses[-1]:.4f}")
        finite = sum(torch.isfinite(torch.tensor(losses)).tolist())
        report.figure(f"{stage}: finite losses", finite, exactly(steps))
    rewards = [row["reward"] for row in read_lines(folder / "rl" / "metrics.jsonl") if row["reward"] is not None]
    report.figure("mean reward", statistics.fmean(rewards) if rewards else "none")
    for row in read_lines(folder / "timing.jsonl"):
        report.figure(f"seconds of {row['stage']}", row["seconds"], unit="s")


def _cut(source: Path, target: Path, wanted: dict[str, int]) -> str:
    """The first studies of each split."""
    taken: dict[str, list[str]] = {split: [] for split in wanted}
    for line in source.read_text(encoding="utf-8").splitlines():
        split = json.loads(line)["split"]
        if split in taken and len(taken[split]) < wanted[split]:
            taken[split].append(line)
    target.write_text("\n".join(line for lines in taken.values() for line in lines) + "\n", encoding="utf-8")
    return " + ".join(str(len(lines)) for lines in taken.values())
