"""A disk that is full at some moment of a stage: one line, and on a larger disk the run goes on."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fault_processes import Tally, fork_run
from fault_runs import STAGES, Case, Quiet, check_same, command, stages_of

PAGE = 4096  # bytes; tmpfs counts whole pages
SIZES = 10
INSIDE = "RADFLOW_FAULTS_MOUNTS"  # set in the process that may mount


def enter_mount_namespace() -> None:
    """Start this program again where it may mount file systems, which go with it; without leave, return."""
    if INSIDE in os.environ:
        return
    enter = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") and subprocess.run([*enter, "true"], capture_output=True, check=False).returncode == 0:
        os.execvpe(enter[0], [*enter, sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})


def can_mount(folder: Path) -> bool:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False)
    return done.returncode == 0 and subprocess.run(["umount", str(folder)], check=False).returncode == 0


def full_disks(quiet: Quiet) -> Iterator[Case]:
    """Ten sizes between what a stage finds and what it leaves."""
    for stage in ("start", *STAGES):
        for number in range(SIZES):
            share = (number + 0.5) / SIZES
            work = partial(fill_and_enlarge, quiet, stage, share)
            yield Case(f"disk full in {stage}", f"{stage} with {share:.0%} of what it writes", work)


def fill_and_enlarge(quiet: Quiet, stage: str, share: float, folder: Path, chance: random.Random) -> Tally:
    least, most = bytes_around(quiet, stage)
    disk, log = folder / "disk", folder / "log"
    disk.mkdir()
    size = (least + int(share * (most - least))) // PAGE * PAGE
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(size, PAGE)}", "tmpfs", str(disk)], check=True)
    try:
        run = quiet.copy_before(stage, disk / "run")
        words = command(run, stages_of(stage), *quiet.options)
        ended = fork_run(words, log).wait()
        if any(ended.codes):
            ended.check_refused(str(run))
        subprocess.run(["mount", "-o", f"remount,size={size + (64 << 20)}", str(disk)], check=True)
        fork_run(words, log).wait().check_done()
        check_same(run, quiet.after(stage))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    return Tally()


def bytes_around(quiet: Quiet, stage: str) -> tuple[int, int]:
    """What the run folder takes before and after a stage."""
    begun = pages_of(quiet.after("start")) - pages_of(quiet.after("start") / STAGES[0])  # before the first stage
    before = quiet.before(stage)
    least = pages_of(before) if before else {"start": 0, STAGES[0]: begun}[stage]
    return least, begun if stage == "start" else pages_of(quiet.after(stage))


def pages_of(folder: Path) -> int:
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(-(-size // PAGE) * PAGE for size in sizes)
