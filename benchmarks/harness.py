"""Paired measurement: every variant does the same work in a process of its own, in turns, and medians are compared.

A machine that slows down for a minute slows every variant of that round. Peak memory is what a process needs above its
inputs: of its own memory, from the kernel's high-water mark, which is reset after the inputs are made, or, where there
is a GPU, of the GPU's, from torch's allocator. Each table is a file results/NAME.csv; docs/ shows some of its columns.
"""

import argparse
import csv
import datetime
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
LOAD = os.getloadavg()[0]  # processes that wanted to run in the minute before
TABLE = {"setting", "rounds", "machine", "unit", "variants", "parts", "columns", "rows"}  # what `write` puts in a table
# Searched last: benchmarks of `rewards` and `evaluate` have their names, and python searches a program's folder first.
sys.path.sort(key=lambda folder: folder == str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "tests"))  # some programs use helpers of the tests

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
    gflop: float | None = None  # of the work, if it is known


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
    gflop: Mapping[str, float] | None = None,
) -> None:
    """Measure, print a table and write results/NAME.csv.

    Args:
        variants: for each, a function of a module's top level that makes its inputs and returns the work; the work
            returns a checksum.
        setting: what was measured, in words.
        facts: further figures to print.
        unit: what the checksum counts; the table then has a column for the rate per second.
        against: the variant that one is compared with; by default the first of all.
        gflop: operations of the work of each variant; the table then has their rate and its share of what a large
            float32 matrix product reaches in the same run.
    """
    peak = matmul_rate(threads) if gflop else None
    runs: dict[str, list[Run]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant, prepare in variants.items():
            print(f"round {number + 1} of {rounds}: {variant}", flush=True)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                runs[variant].append(pool.apply(_measure, (prepare, threads)))
    first = next(iter(variants))
    results = {}
    for variant, measured in runs.items():
        result = summary(measured, runs[(against or {}).get(variant, first)])
        results[variant] = replace(result, gflop=(gflop or {}).get(variant))
    content = {"setting": setting, "rounds": rounds, "machine": machine(threads), "unit": unit, **(facts or {})}
    content |= {"peak": peak} if peak else {}
    content["variants"] = {variant: asdict(result) for variant, result in results.items()}
    print(f"checksums: {[r.checksum for r in results.values()]}")
    write(name, content)


def summary(mine: Sequence[Run], other: Sequence[Run]) -> Result:
    """The runs of a variant, round by round, next to those of the one it is compared with."""
    return Result(
        seconds=statistics.median(seconds for seconds, *_ in mine),
        ratio=statistics.median(a[0] / b[0] for a, b in zip(mine, other, strict=True)),
        peak_mb=max(peak for _, peak, _, _ in mine),
        resident_mb=max(resident for _, _, resident, _ in mine),
        checksum=mine[0][3],
        per_second=statistics.median(checksum / seconds for seconds, _, _, checksum in mine),
    )


def matmul_rate(threads: int, size: int = 2048) -> float:
    """GFLOP/s of a large float32 matrix product, the fastest of thirty: other programs slow some of them down."""
    torch.set_num_threads(threads)
    left, right, seconds = torch.randn(size, size), torch.randn(size, size), []
    for _ in range(30):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds) / 1e9


def machine(threads: int) -> str:
    """Processor, threads, the load before anything ran (of a busy machine no figure is worth keeping), torch, date."""
    processor = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    when = datetime.date.today().isoformat()
    return f"{processor}, {threads} of {os.cpu_count()} threads, load {LOAD:.1f}, torch {torch.__version__}, {when}"


def _processor() -> str:
    """Model of the CPU as the kernel has it; clouds shorten the name, so that family and model tell more."""
    known = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    name, family, model = (
        known.get(f"{key}\t", known.get(f"{key}\t\t", "?")).strip() for key in ("model name", "cpu family", "model")
    )
    return f"{name} (family {family}, model {model})"


def write(name: str, content: Mapping) -> None:
    """Print the table and write results/NAME.csv; a measurement's last column says on what it was made.

    Args:
        content: the table as `columns` and `rows`, as `variants` (of `Result`s) or as `parts` (seconds of each), with
            `setting`, and `rounds` and `machine` of a measurement. Everything else is only printed.
    """
    columns, rows = cells(content)
    print(f"\n{content['setting']}\n\n{table(content)}\n")
    for key in content.keys() - TABLE:
        print(f"{key}: {content[key]}")
    if "machine" in content:
        made = f"{content['machine']}, {content.get('rounds', 1)} rounds"
        if "peak" in content:
            made += f", a large float32 product {content['peak']:.0f} GFLOP/s"
        columns, rows = [*columns, "measured on"], [[*row, made] for row in rows]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
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
    for process in _processes():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            (process / "clear_refs").write_text("5")
    return _resident("VmRSS")


def peak_memory() -> float:
    """MB at the high-water mark."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _resident("VmHWM")


def _resident(field: str) -> float:
    """MB of this process and those that it started, from the kernel."""
    lines = [line for process in _processes() for line in _read(process / "status").splitlines()]
    found = [int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")]
    if not found:
        raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")
    return sum(found)


def _processes() -> list[Path]:
    children = [_read(file).split() for file in Path("/proc/self/task").glob("*/children")]
    return [Path("/proc/self"), *(Path("/proc") / pid for pids in children for pid in pids)]


def _read(file: Path) -> str:
    """What the kernel says of a thread or process; nothing if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return file.read_text()
    return ""


def table(content: Mapping) -> str:
    """The table of `write` as Markdown."""
    columns, rows = cells(content)
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def cells(content: Mapping) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of what `write` takes."""
    if "parts" in content:
        return ["part", "seconds", "%"], _shares(content["parts"])
    if "rows" in content:
        return list(content["columns"]), [list(row) for row in content["rows"]]
    unit = content["unit"]
    columns = ["variant", "seconds", "time ratio", "peak above inputs (MB)", "peak resident (MB)"]
    formats = {"seconds": ".3f", "ratio": ".2f", "peak_mb": ".0f", "resident_mb": ".0f"}
    if unit:
        columns, formats = [*columns, f"{unit}/s"], {**formats, "per_second": ".0f"}
    rows = [
        [name, *(format(row[field], style) for field, style in formats.items())]
        for name, row in content["variants"].items()
    ]
    if "peak" in content:
        columns += ["GFLOP/s", "% of a large product"]
        results = content["variants"].values()
        rows = [[*row, *_rates(result, content["peak"])] for row, result in zip(rows, results, strict=True)]
    return columns, rows


def _rates(result: Mapping, peak: float) -> list[str]:
    if result["gflop"] is None:
        return ["", ""]
    rate = result["gflop"] / result["seconds"]
    return [f"{rate:.0f}", f"{100 * rate / peak:.0f}"]


def _shares(parts: Mapping[str, float]) -> list[list[str]]:
    whole = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    rows = [[name, f"{seconds:.3f}", f"{100 * seconds / whole:.1f}"] for name, seconds in ordered]
    return [*rows, ["all", f"{whole:.3f}", "100.0"]]
