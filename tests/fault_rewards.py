"""Rewards and judges that fail in real runs: a report at fault is named, a run never hangs, nothing is lost."""

import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fault_processes import NotSurvived, Tally, fork_run
from fault_runs import Case, Quiet, check_same, command
from judge_server import JudgeServer, cut, reset, says, slow, status

LIMIT_S = 150.0
STOP_S = 30.0  # from a signal to the end of a run that waits for a reward or an answer
# The first report that it is asked about has the fault from then on, in other processes too.
PLUGIN = """
import os, pathlib, signal, time

fault, memory = os.environ.get("RADFLOW_FAULT"), pathlib.Path(os.environ.get("RADFLOW_FAULT_MEMORY", "unset"))
if fault == "hangs when it is imported":
    memory.touch()
    time.sleep(3600)

class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)

def faulty_score(candidates, references):
    values = [len(set(text)) / 50 for text in candidates]
    if not fault:
        return values
    first = not memory.exists()
    if first:
        memory.write_text(candidates[0])
    if memory.read_text() not in candidates or (fault == "dies once" and not first):
        return values
    if fault == "hangs":
        time.sleep(3600)
    if fault.startswith("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "raises":
        raise RuntimeError("no score for this report")
    if fault == "raises what cannot be unpickled":
        raise Unpicklable(1, 2)
    nothing = [float("nan")] * len(values)
    return {"gives NaN": nothing, "gives too few": values[1:], "gives text": ["?"] * len(values)}[fault]
"""
IN_WORKERS = ("dies once", "dies")
ANYWHERE = ("hangs", "raises", "raises what cannot be unpickled", "gives NaN", "gives too few", "gives text")
WITH_PLUGIN = ("--reward.plugin", "faulty:faulty_score")
JUDGED = (
    "--criticality.source",
    "llm",
    "--judge.model",
    "tiny-judge",
    "--judge.retries",
    "2",
    "--judge.backoff-s",
    "0.01",
)
SERVER_FAULTS = {
    "500": status(500, "Internal Server Error"),
    "429": status(429),
    "reset connection": reset,
    "body cut short": cut,
    "another schema": status(200, {"error": {"message": "overloaded"}}),
    "nested too deep": status(200, "[" * 100_000),
    "prose": says("No."),
    "refusal": says(None, refusal="I can't help with that."),
    "401": status(401),
    "404": status(404),
}


def install_plugin(folder: Path) -> None:
    """A reward that fails as environment variables ask it to, where runs of this process find it."""
    folder.mkdir()
    (folder / "faulty.py").write_text(PLUGIN)
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(folder)])


def reward_faults(quiet: Quiet) -> Iterator[Case]:
    for workers, faults in ((1, (*IN_WORKERS, *ANYWHERE)), (0, ANYWHERE)):
        for fault in faults:
            work = partial(fail_and_resume, quiet, fault, workers=workers)
            yield Case("reward faults", f"a plug-in that {fault}, in RL with {workers} workers", work)
    for fault in ANYWHERE:
        work = partial(fail_and_resume, quiet, fault, stage="evaluate", workers=1)
        yield Case("reward faults", f"a plug-in that {fault}, in evaluation", work)
    for name in ("TERM", "INT"):
        for fault in ("hangs", "hangs when it is imported"):
            work = partial(stop_while_waiting, quiet, fault, name)
            yield Case("reward faults", f"{name} while a plug-in {fault}", work)


def fail_and_resume(
    quiet: Quiet, fault: str, folder: Path, chance: random.Random, *, stage: str = "rl", workers: int
) -> Tally:
    """The run names the plug-in and ends, with or without an error; without the fault it is as a quiet one."""
    run = quiet.copy_before(stage, folder / "run")
    env = {"RADFLOW_FAULT": fault, "RADFLOW_FAULT_MEMORY": str(folder / "memory")}
    words = command(run, [stage], *quiet.options, "--reward.workers", str(workers))
    limit = ("--reward.timeout-s", "2") if fault == "hangs" else ()
    process = fork_run([*words, *limit], folder / "log", env=env)
    process.limit_s = LIMIT_S
    ended = process.wait().check_quiet()
    if not any(ended.codes):
        if fault != "dies once" and not re.search("faulty|plug-in", ended.output):
            raise NotSurvived("the fault went by without a word")
        if fault != "dies once":
            return Tally()
    else:
        ended.check_refused("faulty", "plug-in")
    fork_run(words, folder / "log").wait().check_done()
    check_same(run, quiet.after(stage))
    return Tally()


def stop_while_waiting(quiet: Quiet, fault: str, name: str, folder: Path, chance: random.Random) -> Tally:
    run, memory = quiet.copy_before("rl", folder / "run"), folder / "memory"
    env = {"RADFLOW_FAULT": fault, "RADFLOW_FAULT_MEMORY": str(memory)}
    words = command(run, ["rl"], *quiet.options, "--reward.workers", "1")
    process = fork_run(words, folder / "log", env=env)
    process.limit_s = LIMIT_S
    process.wait_until(memory.exists)
    stop_in_time(process, name)
    fork_run(words, folder / "log").wait().check_done()
    check_same(run, quiet.after("rl"))
    return Tally()


def stop_in_time(process, name: str) -> None:
    process.limit_s = time.monotonic() - process.began + STOP_S
    os.killpg(process.ids[0], signal.Signals[f"SIG{name}"])
    process.wait().check_quiet()


def judge_faults(quiet: Quiet) -> Iterator[Case]:
    for fault in SERVER_FAULTS:
        for stays in (False, True):
            name = f"{fault}{', which stays' if stays else ', twice'}"
            yield Case("judge faults", f"the judge answers: {name}", partial(judge_and_resume, quiet, fault, stays))
    for name in ("TERM", "INT"):
        yield Case("judge faults", f"{name} while the judge is silent", partial(stop_while_judged, quiet, name))


def judge_and_resume(quiet: Quiet, fault: str, stays: bool, folder: Path, chance: random.Random) -> Tally:
    """Two faults change nothing; one that stays is an error, and the next run asks the rest."""
    run = folder / "run"
    script = () if stays else (SERVER_FAULTS[fault],) * 2
    with serve(script=script, always=SERVER_FAULTS[fault] if stays else None) as url:
        ended = fork_run(judged(run, url), folder / "log").wait().check_quiet()
    if stays or any(ended.codes):
        ended.check_refused("criticality", "judge")
        with serve() as url:
            fork_run(judged(run, url), folder / "log").wait().check_done()
    check_same(run, quiet.after("criticality"))
    return Tally()


def stop_while_judged(quiet: Quiet, name: str, folder: Path, chance: random.Random) -> Tally:
    run = folder / "run"
    with serve(always=slow(600.0)) as url:
        process = fork_run(judged(run, url), folder / "log")
        process.wait_until(lambda: "== criticality" in process.output())
        time.sleep(chance.uniform(0.5, 2))
        stop_in_time(process, name)
    with serve() as url:
        fork_run(judged(run, url), folder / "log").wait().check_done()
    check_same(run, quiet.after("criticality"))
    return Tally()


def judged(run: Path, url: str) -> list[str]:
    return command(run, ["criticality"], *JUDGED, "--judge.url", url, "--judge.cache", str(run.parent / "c.sqlite"))


def record_judged(folder: Path) -> Quiet:
    """The criticality stage with a judge that answers."""
    with serve() as url:
        options = (*JUDGED, "--judge.url", url, "--judge.cache", str(folder / "answers.sqlite"))
        return Quiet.record(folder, *options, stages=["criticality"])


@contextmanager
def serve(**habits: object) -> Iterator[str]:
    """The address of a judge in a process of its own, as forks of one with threads could hang."""
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe()
    server = context.Process(target=_serve, args=(its, habits), daemon=True)
    server.start()
    try:
        yield mine.recv()
    finally:
        server.kill()
        server.join()


def _serve(pipe, habits: dict[str, Sequence]) -> None:
    with JudgeServer(**habits) as server:
        pipe.send(server.url)
        signal.pause()
