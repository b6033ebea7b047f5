"""Kills: runs are stopped by every signal in every stage, go on, and end as a quiet run does, bit for bit."""

import os
import random
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fault_processes import Process, Tally, children_of, fork_run, launch_run
from fault_runs import STAGES, Case, Quiet, check_same, command, stages_of

MOMENTS = ("start", *STAGES)
SIGNALS = ("KILL", "TERM", "INT", "HUP")
START_S = 6.0  # from a command with torchrun to its first stage
TWICE_S = 0.3  # between two Ctrl-C
TRIES = 4  # of a moment that a run outruns


def launched_kills(quiet: Quiet) -> Iterator[Case]:
    """Every signal in every stage through torchrun; with several ranks one worker alone is killed too."""
    ways = (*SIGNALS, "INT INT", *(["one worker"] if quiet.ranks > 1 else []))
    ranks = f"{quiet.ranks} rank{'s' if quiet.ranks > 1 else ''}"
    for how in ways:
        for stage in MOMENTS if how != "INT INT" else ("sft", "rl"):
            work = partial(kill_and_resume, quiet, stage, how, launched=True)
            yield Case(f"{how}, torchrun, {ranks}", f"{stage} {how}, torchrun, {ranks}", work)


def random_kills(quiet: Quiet, count: int, *, where: str) -> Iterator[Case]:
    """Signals in turn to runs without torchrun, each at a random moment of the stages in turn."""
    for number in range(count):
        how, stage = SIGNALS[number % 4], STAGES[number // 4 % 7]
        work = partial(kill_and_resume, quiet, stage, how, launched=False)
        yield Case(f"{how}, {where}", f"{stage} {how}, {where}, {number}", work)


def kill_and_resume(
    quiet: Quiet, stage: str, how: str, folder: Path, chance: random.Random, *, launched: bool
) -> Tally:
    """Disturb a run in a stage, give the same command again, and compare."""
    run, log = folder / "run", folder / "log"
    words = command(run, stages_of(stage), *quiet.options)
    share = chance.random()
    for _ in range(TRIES):
        quiet.copy_before(stage, run)
        start = partial(launch_run, ranks=quiet.ranks) if launched else partial(fork_run, threads=quiet.threads)
        process = start(words, log)
        met = wait_for_moment(process, stage, share * (START_S if stage == "start" else quiet.seconds[stage]))
        if met:
            disturb(process, how, chance)
        ended = process.wait().check_quiet()
        if met:
            break
        ended.check_done()
        share /= 3
    if ended.codes == (0,) and not re.search("go on|resume", ended.output):
        check_same(run, quiet.after(stage))  # the stage was over before the signal was looked at
    fork_run(words, log, ranks=quiet.ranks, threads=quiet.threads).wait().check_done()
    check_same(run, quiet.after(stage))
    return Tally(other_tracebacks=ended.other_tracebacks)


def wait_for_moment(process: Process, stage: str, seconds: float) -> bool:
    """Whether the run was still there some seconds after it had entered the stage."""
    if stage != "start" and not process.wait_until(lambda: f"== {stage}" in process.output()):
        return False
    until = time.monotonic() + seconds
    return process.wait_until(lambda: time.monotonic() >= until)


def disturb(process: Process, how: str, chance: random.Random) -> None:
    """A scheduler's TERM goes to the program that was started; what a terminal sends, to its whole process group."""
    first = process.ids[0]
    if how == "KILL":
        process.kill()
    elif how == "one worker":
        if process.wait_until(lambda: bool(children_of(first))):
            os.kill(chance.choice(children_of(first)), signal.SIGKILL)
    elif how == "TERM":
        os.kill(first, signal.SIGTERM)
    else:
        for number, name in enumerate(how.split()):
            time.sleep(TWICE_S * number)
            os.killpg(first, signal.Signals[f"SIG{name}"])
