"""A rollout of the demo's model next to a program that keeps one core busy, with threads that spin while they wait and
with passive ones (OMP_WAIT_POLICY), which `train.py` chooses if others run at its start."""

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from demo_step import CORPUS, rollout
from harness import arguments, compare

from radflow.data.phantoms import make_studies
from radflow.models.tiny import TinyConfig, build_tiny

ENDLESS = "while True: pass"


def serve(folder: Path, threads: int) -> None:
    """Roll out for each line of the input; the environment of a process decides how its threads wait."""
    torch.set_num_threads(threads)
    work = rollout(folder)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(work(), flush=True)


def start(folder: Path, threads: int, *, passive: bool, busy: bool) -> Callable[[], float]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE"} if passive else {}
    program = [sys.executable, __file__, "--serve", str(folder), str(threads)]
    served = subprocess.Popen(program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert served.stdin is not None and served.stdout is not None
    if served.stdout.readline() != "ready\n":
        raise RuntimeError("the rollout did not start; what it printed is above")
    started = [served, *([subprocess.Popen([sys.executable, "-c", ENDLESS])] if busy else [])]

    def work() -> float:
        assert served.stdin is not None and served.stdout is not None
        try:
            print(file=served.stdin, flush=True)
            return float(served.stdout.readline())
        finally:
            for process in started:
                process.kill()

    return work


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
        sys.exit()
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        build_tiny(path, [study.report for study in make_studies("chest", **CORPUS)], TinyConfig(), seed=0)
        variants, against = {}, {}
        for busy, company in ((False, "alone"), (True, "next to a busy program")):
            for passive, way in ((False, "spinning"), (True, "passive")):
                name = f"{company}, {way}"
                variants[name] = functools.partial(start, path, options.threads, passive=passive, busy=busy)
                against[name] = f"{company}, spinning"
        compare(
            "busy",
            variants,
            setting="one rollout of the demo's model; time ratio to threads that spin",
            rounds=options.rounds,
            threads=options.threads,
            against=against,
            unit="tokens",
        )
