"""Paired measurement: every variant does the same work in a process of its own, in turns, and medians are compared.

A machine that slows down for a minute slows every variant of that round. Peak memory is what a process needs above its
inputs: of its own memory, from the kernel's high-water mark, which is reset after the inputs are made, or, where there
is a GPU, of the GPU's, from torch's allocator.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
# Searched last: benchmarks of `rewards` and `evaluate` have their names, and python searches a program's folder first.
sys.path.sort(key=lambda folder: folder == str(Path(__file__).parent))

Run = tuple[float, float, float, float]  # seconds, MB above the inputs, MB in all, checksum


@dataclass(frozen=True)
class Result:
    """One variant."""

    seconds: float  # median over the rounds
    ratio: float  # median over the rounds of its seconds divided by those of the variant it is compared with
    peak_mb: float  # largest over the rounds, above the inputs
    resident_mb: float  # largest over the rounds, all that the process held
    checksum: float  # of the result, to see that all variants did the same work
    per_second: float  # median over the rounds of the checksum, where it counts something, by the seconds


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
    against: Mapping[str, str] | None = None,
    unit: str | None = None,
) -> None:
    """Measure, print a table and write results/NAME.json.

    Args:
        variants: for each, a function of a module's top level that makes its inputs and returns the work; the work
            returns a checksum.
        setting: what was measured, in words.
        facts: further figures for the JSON.
        unit: what the checksum counts; the table then has a column for how many of it a second.
        against: the variant that one is compared with; by default the first of all.
    """
    runs: dict[str, list[Run]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant, prepare in variants.items():
            print(f"round {number + 1} of {rounds}: {variant}", flush=True)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                runs[variant].append(pool.apply(_measure, (prepare, threads)))
    first = next(iter(variants))
    results = {}
    for variant, measured in runs.items():
        results[variant] = summary(measured, runs[(against or {}).get(variant, first)])
    content = {"setting": setting, "rounds": rounds, "machine": machine(threads), "unit": unit, **(facts or {})}
    content["variants"] = {variant: asdict(result) for variant, result in results.items()}
    print(f"checksums: {[r.checksum for r in results.values()]}")
    write(name, content)


def summary(mine: Sequence[Run], other: Sequence[Run]) -> Result:
    """The runs of a variant, round by round, beside those of the one it is compared with."""
    return Result(
        seconds=statistics.median(seconds for seconds, *_ in mine),
        ratio=statistics.median(a[0] / b[0] for a, b in zip(mine, other, strict=True)),
        peak_mb=max(peak for _, peak, _, _ in mine),
        resident_mb=max(resident for _, _, resident, _ in mine),
        checksum=mine[0][3],
        per_second=statistics.median(checksum / seconds for seconds, _, _, checksum in mine),
    )


def machine(threads: int) -> dict[str, object]:
    processor = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"processor": processor, "threads": threads, "torch": torch.__version__}


def write(name: str, content: Mapping) -> None:
    """Print the table and write results/NAME.json."""
    print(f"\n{content['setting']}\n\n{table(content)}\n")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")


def _measure(prepare: Callable[[], Callable[[], float]], threads: int) -> Run:
    torch.set_num_threads(threads)
    work = prepare()
    before = start_watching_memory()
    began = time.perf_counter()
    checksum = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds, peak = time.perf_counter() - began, peak_memory()
    return seconds, peak - before, peak, checksum


def start_watching_memory() -> float:
    """MB held now; the high-water mark starts again from there."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def peak_memory() -> float:
    """MB at the high-water mark."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _resident("VmHWM")


def _resident(field: str) -> float:
    """MB, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def table(content: Mapping) -> str:
    """A result file as the Markdown that is printed and that the documentation quotes."""
    if "parts" in content:
        return _shares(content["parts"])
    if "rows" in content:
        columns = content["columns"]
        lines = [columns, ["---"] * len(columns), *content["rows"]]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    unit = content["unit"]
    columns = ["variant", "seconds", "time ratio", "peak above inputs (MB)", "peak resident (MB)"]
    columns += [f"{unit}/s"] if unit else []
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for name, row in content["variants"].items():
        cells = [
            name,
            f"{row['seconds']:.3f}",
            f"{row['ratio']:.2f}",
            f"{row['peak_mb']:.0f}",
            f"{row['resident_mb']:.0f}",
        ]
        cells += [f"{row['per_second']:.0f}"] if unit else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shares(parts: Mapping[str, float]) -> str:
    whole = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    rows = [f"| {name} | {seconds:.3f} | {100 * seconds / whole:.1f} |" for name, seconds in ordered]
    return "\n".join(["| part | seconds | % |", "| --- | --- | --- |", *rows, f"| all | {whole:.3f} | 100.0 |"])
