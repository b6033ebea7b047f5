"""One RL step of the 3B architecture, ours and TRL's; `benchmarks/gpu_trl.py` is the program."""

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import rl_step
import torch
from checkpoint import SIZE, VOCABULARY, build, published_3b
from gpu import work
from gpu.report import Bar, Report, Skipped
from gpu.runner import Setting
from transformers import PretrainedConfig

from radflow.models.tiny import architecture

ROUNDS = 3
FASTER = Bar(at_least=1.0, goal=True)


def radflow(setting: Setting, report: Report) -> None:
    measure(setting, report, "radflow", lambda path, one: rl_step.ours(path, one, recompute=False))


def radflow_recomputed(setting: Setting, report: Report) -> None:
    measure(setting, report, "radflow_recomputed", lambda path, one: rl_step.ours(path, one, recompute=True))


def trl(setting: Setting, report: Report) -> None:
    measure(setting, report, "trl", lambda path, one: rl_step.trl(path, one, checkpointing=False))


def trl_recomputed(setting: Setting, report: Report) -> None:
    measure(setting, report, "trl_recomputed", lambda path, one: rl_step.trl(path, one, checkpointing=True))


def measure(setting: Setting, report: Report, name: str, prepare: Callable[[Path, rl_step.Work], Callable]) -> None:
    """Seconds and memory of one step, after one in which kernels are compiled and recorded."""
    if name.startswith("trl") and importlib.util.find_spec("trl") is None:
        raise Skipped("trl is not installed here")
    device = work.start(setting)
    small = rl_step.Work(studies=1, group=2, tokens=8, pixels=56)
    one = small if setting.small else rl_step.Work(studies=1, group=4, tokens=256, pixels=1036)
    report.ran(f"{one}, images of {one.pixels} x {one.pixels}; median of {ROUNDS} after one that is not counted")
    step = prepare(model_folder(setting, one), one)
    step()
    held, seconds = work.reset_peak(device), []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        step()
        work.wait(device)
        seconds.append(time.perf_counter() - began)
    report.figure("seconds of a step", statistics.median(seconds), unit="s")
    report.figure("peak above what is held between steps", work.peak(device) - held, unit="GB")
    report.figure("peak", work.peak(device), unit="GB")
    (setting.folder / name).write_text(str(statistics.median(seconds)))
    ours = setting.folder / name.replace("trl", "radflow")
    if name.startswith("trl") and ours.exists():
        report.figure("seconds to RadFlow's", statistics.median(seconds) / float(ours.read_text()), FASTER)


def model_folder(setting: Setting, one: rl_step.Work) -> Path:
    """The checkpoint that all variants load: random weights, written by the first of them."""
    path = setting.folder / "model"
    if not path.exists():
        sizes, vocabulary = (tiny, SIZE.vocab_size) if setting.small else (published_3b, VOCABULARY)
        build(path, sizes=sizes, vocabulary=vocabulary, device=str(one.device), dtype=one.dtype)
        if one.device.type == "cuda":
            torch.cuda.empty_cache()
    return path


def tiny(tokenizer: object) -> PretrainedConfig:
    return architecture(work.TINY, tokenizer)
