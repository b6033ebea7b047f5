"""Kill a run at 20 random moments and see that its results are those of a quiet run.

    python tests/kill_often.py --kills 20 --seed 0        (make kills)

Each start is killed with SIGKILL, launcher and workers, after a random time. A run that ends in spite of it is
compared and begun anew, so that kills hit every stage.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from small_run import count_lines, start_run
from test_train_faults import assert_same

STAGES = ("warmup", "sft", "explore", "criticality", "rl", "eval")
LONGER = ["--data.num-train", "40", "--sft.steps", "60", "--rl.steps", "8"]


def start(folder: Path, ranks: int) -> subprocess.Popen:
    return start_run(folder, *LONGER, ranks=ranks, start_new_session=True)


def stage_of(folder: Path) -> str:
    """The last stage that has written anything."""
    present = [s for s in STAGES if (folder / s).exists() or (folder / f"{s}.jsonl").exists()]
    return present[-1] if present else "start"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="processes of the run (default: %(default)s)")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as base:
        quiet, killed = Path(base) / "quiet", Path(base) / "killed"
        began = time.monotonic()
        assert start(quiet, options.ranks).wait() == 0
        whole = time.monotonic() - began
        print(f"quiet run: {whole:.1f} s")
        met: dict[str, int] = {}
        while sum(met.values()) < options.kills:
            process = start(killed, options.ranks)
            until = time.monotonic() + chance.uniform(0.3, 0.9) * whole
            while time.monotonic() < until and process.poll() is None:
                time.sleep(0.01)
            if process.poll() is not None:
                assert process.returncode == 0, process.stderr.read()[-3000:]
                assert_same(quiet, killed)
                subprocess.run(["rm", "-rf", str(killed)], check=True)
                print("the run ended before it was killed, with the same results; it begins anew", flush=True)
                continue
            os.killpg(process.pid, signal.SIGKILL)
            subprocess.run(["pkill", "-9", "-f", str(killed)], check=False)
            process.wait()
            stage = stage_of(killed)
            met[stage] = met.get(stage, 0) + 1
            steps = {name: count_lines(killed / name / "metrics.jsonl") for name in ("warmup", "sft", "rl")}
            print(f"kill {sum(met.values())}, in {stage}; lines of metrics: {steps}", flush=True)
        process = start(killed, options.ranks)
        assert process.wait() == 0, process.stderr.read()[-3000:]
        assert_same(quiet, killed)
        print(f"{options.kills} kills ({met}): parameters, metrics and tables equal the quiet run's bit for bit")


if __name__ == "__main__":
    main()
