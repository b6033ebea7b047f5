"""Bandwidth of a copy and rate of a matrix product: the bounds for other sections."""

from collections.abc import Callable

import torch
from gpu import work
from gpu.report import Report
from gpu.runner import Setting

REPEATS = 20


def seconds_of(do: Callable[[], object], device: torch.device, *, repeats: int = REPEATS) -> float:
    """Of one call, the mean over `repeats` after three that are not counted."""
    for _ in range(3):
        do()
    if device.type != "cuda":
        return _on_cpu(do, repeats)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        do()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / repeats


def _on_cpu(do: Callable[[], object], repeats: int) -> float:
    import time

    began = time.perf_counter()
    for _ in range(repeats):
        do()
    return (time.perf_counter() - began) / repeats


def bandwidth(device: torch.device, *, size: int) -> float:
    """Bytes per second, read and written, of a copy of `size` bytes on the device."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source), device)


def product_rate(device: torch.device, *, side: int) -> float:
    """FLOPs per second of a square matrix product in bfloat16, on random numbers (zeros draw less power)."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device)


def measure(setting: Setting, report: Report) -> None:
    device = work.start(setting)
    size, side = (2**20, 128) if setting.small else (4 * 2**30, 8192)
    report.ran(f"copy of {size / 2**20:.0f} MiB, product of {side} x {side} matrices in bfloat16")
    report.figure("copy, bytes read and written", bandwidth(device, size=size) / 1e12, unit="TB/s")
    report.figure("matrix product", product_rate(device, side=side) / 1e12, unit="TFLOP/s")
