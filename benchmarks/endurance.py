"""What a long run needs as it grows: memory, open files, files and the time of its dashboard, of the smallest model.

The run is a process of its own, one reward worker included. It is halted while it is measured. Its dashboard is built
twice here: with the metrics at hand, as the run builds it, and from the files alone, as `train.py dashboard` does.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import machine, write
from small_run import ROOT, options_of

from radflow.dashboard.build import build_dashboard
from radflow.dashboard.course import Course
from radflow.dashboard.live import Tail

AT = (1_000, 2_000, 5_000, 10_000, 20_000)
COLUMNS = ["steps", "main (MB)", "reward worker (MB)", "open files", "files", "run folder (MB)"]
COLUMNS += ["dashboard of the run (s)", "dashboard anew (s)"]
SMALLEST = {
    "data.num-train": 20,
    "data.num-test": 4,
    "data.image-size": 56,
    "model.tiny.hidden-size": 16,
    "model.tiny.heads": 2,
    "model.tiny.kv-heads": 1,
    "model.tiny.layers": 1,
    "model.tiny.vision-hidden": 64,
    "model.tiny.vision-depth": 1,
    "sft.steps": 4,
    "sft.batch-size": 4,
    "rl.studies-per-step": 2,
    "rl.group-size": 2,
    "rl.inner-epochs": 1,
    "rl.checkpoint-every": 250,
    "rollout.max-new-tokens": 8,
    "evaluate.max-new-tokens": 8,
    "evaluate.validate-every": 50,
    "evaluate.validate-studies": 2,
    "reward.workers": 1,
    "stages": "sft,explore,criticality,rl",
}


def measure(steps: int, folder: Path) -> Iterator[list[str]]:
    """A row at each of AT up to `steps`."""
    command = [sys.executable, str(ROOT / "train.py"), "--run-dir", str(folder), *options_of(SMALLEST)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([*command, "--rl.steps", str(steps)], env=environment, stdout=subprocess.DEVNULL)
    course, journal = Course(), Tail(folder / "rl" / "metrics.jsonl")
    try:
        for step in (step for step in AT if step <= steps):
            while course.num_steps < step - 1:  # the last of a run ends it
                if run.poll() is not None:
                    raise RuntimeError(f"train.py ended at step {course.num_steps} with exit code {run.returncode}")
                time.sleep(0.2)
                for row in journal.read()[1]:
                    course.add(row)
            run.send_signal(signal.SIGSTOP)
            yield [f"{step:,}", *measure_now(run.pid, folder, course)]
            run.send_signal(signal.SIGCONT)
    finally:
        run.kill()
        run.wait()


def measure_now(pid: int, folder: Path, course: Course) -> list[str]:
    """The cells after the step: a dashboard is built first, so that it is one of the files."""
    seconds = []
    for known in ({"courses": {"rl": course}, "found": ()}, {}):
        began = time.perf_counter()
        build_dashboard(folder, **known)
        seconds.append(f"{time.perf_counter() - began:.2f}")
    children = [int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in path.read_text().split()]
    files = [path for path in folder.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    return [
        f"{resident(pid):.1f}",
        f"{max(map(resident, children)):.1f}",  # the other child only waits to clean up after it
        str(len(os.listdir(f"/proc/{pid}/fd"))),
        str(len(files)),
        f"{sum(path.stat().st_size for path in files) / 2**20:.1f}",
        *seconds,
    ]


def resident(pid: int) -> float:
    """MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=AT[-1], help="of the run (default: %(default)s)")
    options = parser.parse_args()
    setting = "one run of the smallest model, 2 studies x 2 reports x 8 tokens per step, files without checkpoints"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(options.steps, Path(folder) / "run"):
            rows.append(row)
            write("endurance", {"setting": setting, "machine": machine(1), "columns": COLUMNS, "rows": rows})
