"""Where the time of one step goes: the step of rl_step.py with a stopwatch around its parts."""

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
from capo.trainer import Trainer
from models.qwen_vl import QwenVL


class Stopwatch:
    """Seconds by part; a part inside another is counted once, as itself."""

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


def name_of_trunk() -> str:
    return "training: trunk forward" if torch.is_grad_enabled() else "reference: trunk"


# Where each part begins and ends; a function names it where that depends on who calls.
PARTS: list[tuple[object, str, str | Callable[[], str]]] = [
    (rl_step, "prompt", "image processing and tokenizer"),
    (QwenVL, "features", "vision tower"),
    (capo.rollout, "_prefill", "prefill"),
    (capo.rollout._Decoder, "__call__", "decoding: trunk"),
    (capo.rollout, "_logits", "decoding: head"),
    (capo.rollout, "choose", "decoding: choice of the token"),
    (capo.trainer, "report_logps", name_of_trunk),
    (capo.packing, "linear_logps", name_of_head),
    (Trainer, "_backward", "training: loss and backward"),
    (Trainer, "step", "optimizer"),
]


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, attribute, name in PARTS:
            original = getattr(owner, attribute)

            def timed(*args, _original=original, _name=name, **kwargs):
                with watch.part(_name if isinstance(_name, str) else _name()):
                    return _original(*args, **kwargs)

            # A method stays a method; only `_backward` is static and gets no `self`.
            static = isinstance(vars(owner).get(attribute), staticmethod)
            stack.enter_context(mock.patch.object(owner, attribute, staticmethod(timed) if static else timed))
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
            with watched(watch), watch.part("everything else"):
                step()
            runs.append(watch.seconds)
    parts = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    write(
        "breakdown",
        {"setting": str(work), "rounds": options.rounds, "machine": machine(options.threads), "parts": parts},
    )
