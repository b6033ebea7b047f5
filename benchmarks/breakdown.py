"""Seconds per part of one step, the one of rl_step.py."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import rl_step
import torch
from checkpoint import build
from harness import arguments, machine, write

import capo.packing
import capo.rollout
import capo.trainer
from capo.rollout import Engine
from capo.trainer import Trainer
from radflow.models.qwen_vl import QwenVL


class Stopwatch:
    """Seconds by part; time in a nested part counts for that part only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.running: list[str] = []
        self.since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._book()
        self.running.append(name)
        yield
        self._book()
        self.running.pop()

    def _book(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now


def name_of_head() -> str:
    return "training: head forward" if torch.is_grad_enabled() else "reference: head"


def name_of_decoder() -> str:
    return "training: decoder forward" if torch.is_grad_enabled() else "reference: decoder"


# The call that is timed and the name of its part; a function gives the name if it depends on the caller.
PARTS: list[tuple[object, str, str | Callable[[], str]]] = [
    (rl_step, "prompt", "image processing and tokenizer"),
    (QwenVL, "features", "vision tower"),
    (capo.rollout, "_prefill", "prefill"),
    (Engine, "_step", "decoding: decoder"),
    (Engine, "_choose", "decoding: head"),
    (capo.rollout, "choose", "decoding: choice of the token"),
    (capo.trainer, "report_logps", name_of_decoder),
    (capo.packing, "linear_logps", name_of_head),
    (capo.trainer, "_objective", "training: loss and backward"),
    (torch.autograd, "backward", "training: loss and backward"),
    (Trainer, "step", "optimizer"),
]


@contextmanager
def time_parts(watch: Stopwatch) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, attribute, name in PARTS:
            original = getattr(owner, attribute)

            def timed(*args, _original=original, _name=name, **kwargs):
                with watch.part(_name if isinstance(_name, str) else _name()):
                    return _original(*args, **kwargs)

            stack.enter_context(mock.patch.object(owner, attribute, timed))
        yield


if __name__ == "__main__":
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path, work = Path(folder) / "model", rl_step.Work()
        build(path)
        step = rl_step.ours(path, work, recompute=False)
        runs = []
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            watch = Stopwatch()
            with time_parts(watch), watch.part("everything else"):
                step()
            runs.append(watch.seconds)
    parts = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    write(
        "breakdown",
        {"setting": str(work), "rounds": options.rounds, "machine": machine(options.threads), "parts": parts},
    )
