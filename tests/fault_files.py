"""Damaged files of a run folder: each is noticed with one line by the stages that read it, or changes nothing."""

import os
import random
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fault_processes import Tally, fork_run
from fault_runs import STAGES, Case, Quiet, check_same, command, stages_of
from small_run import count_lines

OPTIONS = ("--reward.workers", "0")  # faster, with the same results
HALF = {"sft": 5, "rl": 2}  # stages that are left unfinished after some steps


def flip(data: bytes, chance: random.Random) -> bytes:
    """One bit is another."""
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


DAMAGE = {
    "flipped": flip,
    "cut": lambda data, chance: data[: len(data) // 2],
    "emptied": lambda data, chance: b"",
}


def record_unfinished(quiet: Quiet, stage: str) -> Path:
    """A run folder in the middle of a stage."""
    run = quiet.copy_before(stage, quiet.folder / f"within_{stage}")
    process = fork_run(command(run, stages_of(stage), *quiet.options), quiet.folder / f"log_{stage}")
    process.wait_until(lambda: count_lines(run / stage / "metrics.jsonl") >= HALF[stage])
    os.kill(process.ids[0], signal.SIGTERM)
    process.wait().check_done()
    assert not (run / stage / "model").exists(), f"{stage} was over too early"
    return run


def record_whole(quiet: Quiet) -> None:
    """The end of a run by the command of the damaged ones, of which an exported model's card tells."""
    run = quiet.copy_before(STAGES[-1], quiet.folder / "whole")
    fork_run(command(run, STAGES, *quiet.options, *OPTIONS), quiet.folder / "log_whole").wait().check_done()


def damaged_files(quiet: Quiet) -> Iterator[Case]:
    """Each file of the run after the stage that made it, and in the middle of stages."""
    known: set[Path] = set()
    for stage in STAGES:
        if stage in HALF:
            yield from _cases(quiet, quiet.folder / f"within_{stage}", known, f"within {stage}")
        after = quiet.folder / "whole" if stage == STAGES[-1] else quiet.after(stage)
        yield from _cases(quiet, after, known, f"after {stage}")
        known |= files_of(after)


def _cases(quiet: Quiet, folder: Path, known: set[Path], when: str) -> Iterator[Case]:
    for name in sorted(files_of(folder) - known):
        for kind in DAMAGE:
            if (folder / name).stat().st_size:
                yield Case(
                    f"file {kind}", f"{name} {kind} {when}", partial(damage_and_resume, quiet, folder, name, kind)
                )


def files_of(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def damage_and_resume(quiet: Quiet, before: Path, name: Path, kind: str, folder: Path, chance: random.Random) -> Tally:
    run = folder / "run"
    shutil.copytree(before, run)
    path = run / name
    whole = path.read_bytes()
    damaged = DAMAGE[kind](whole, chance)
    path.write_bytes(damaged)
    words = command(run, STAGES, *quiet.options, *OPTIONS)
    ended = fork_run(words, folder / "log").wait()
    if any(ended.codes):
        ended.check_refused(str(path), str(path.parent), path.name)
        path.write_bytes(whole)  # from the user's copy
        ended = fork_run(words, folder / "log").wait()
    ended.check_done()
    untouched = path.exists() and path.read_bytes() == damaged
    check_same(run, quiet.folder / "whole", but=str(name) if untouched else "")
    return Tally()
