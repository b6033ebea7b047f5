"""Paired measurement: every variant does the same work in a process of its own, in turns, and medians are compared.

A machine that slows down for a minute slows every variant of that round. Peak memory is what a process needs above its
inputs, from the kernel's high-water mark, which is reset after the inputs are made.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """One variant."""

    seconds: float  # median over the rounds
    ratio: float  # median over the rounds of its seconds divided by the first variant's of that round
    peak_mb: float  # largest over the rounds, above the inputs
    checksum: float  # of the result, to see that all variants did the same work


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5, help="times that every variant runs (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: all, %(default)s)")
    return parser.parse_args()


def compare(
    name: str,
    variants: Mapping[str, Callable[[], Callable[[], float]]],
    *,
    setting: str,
    rounds: int,
    threads: int,
    facts: Mapping[str, float] | None = None,
) -> None:
    """Measure, print a table and write results/NAME.json.

    Args:
        variants: for each, a function of a module's top level that makes its inputs and returns the work; the work
            returns a checksum. The first variant is what the others are compared with.
        setting: what was measured, in words.
        facts: further figures for the JSON.
    """
    runs: dict[str, list[tuple[float, float, float]]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant, prepare in variants.items():
            print(f"round {number + 1} of {rounds}: {variant}", flush=True)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                runs[variant].append(pool.apply(_measure, (prepare, threads)))
    first = runs[next(iter(variants))]
    results = {
        variant: Result(
            seconds=statistics.median(seconds for seconds, _, _ in measured),
            ratio=statistics.median(mine[0] / base[0] for mine, base in zip(measured, first, strict=True)),
            peak_mb=max(peak for _, peak, _ in measured),
            checksum=measured[0][2],
        )
        for variant, measured in runs.items()
    }
    machine = {"processor": platform.machine(), "threads": threads, "torch": torch.__version__}
    content = {"setting": setting, "rounds": rounds, "machine": machine, **(facts or {})}
    content["variants"] = {variant: asdict(result) for variant, result in results.items()}
    print(f"\n{setting}\n\n{table(content)}\n\nchecksums: {[r.checksum for r in results.values()]}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")


def _measure(prepare: Callable[[], Callable[[], float]], threads: int) -> tuple[float, float, float]:
    torch.set_num_threads(threads)
    work = prepare()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
    before = _resident("VmRSS")
    began = time.perf_counter()
    checksum = work()
    return time.perf_counter() - began, _resident("VmHWM") - before, checksum


def _resident(field: str) -> float:
    """MB, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def table(content: Mapping) -> str:
    """A result file as the Markdown that is printed and that the documentation quotes."""
    lines = ["| variant | seconds | times the first | peak extra memory (MB) |", "| --- | --- | --- | --- |"]
    for name, row in content["variants"].items():
        lines.append(f"| {name} | {row['seconds']:.3f} | {row['ratio']:.2f} | {row['peak_mb']:.0f} |")
    return "\n".join(lines)
