"""Runs of train.py in processes that a campaign of faults can disturb: how they start, how they end, what they leave.

A run that needs no launcher is a fork of this process, which has imported train.py already: it starts in no time.
"""

import atexit
import ctypes
import gc
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from small_run import ROOT

from capo.stopping import expect_ctrl_c
from radflow import train
from radflow.data.phantoms import make_studies
from radflow.data.sections import SectionParser
from radflow.pipeline.comparison import score_reports
from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import build_reward

LIMIT_S = 180.0
GRACE_S = 20.0  # in which processes must be gone after their run
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--monitor-interval", "0.1")
# Of torchrun's agent; of loky, in a worker whose program is killed before it has said what to do.
LOKY = r'loky/backend/popen_loky_\w+\.py", line \d+, in <module>\n.*pickle\.load\(from_parent\)\n(?:[ ^~]+\n)?EOFError'
OTHERS = re.compile(rf"torch/distributed/(run|launcher|elastic)|{LOKY}")


@dataclass(frozen=True)
class Tally:
    """What a case counts for in the table."""

    tried: int = 1
    failed: int = 0
    tracebacks: int = 0
    other_tracebacks: int = 0


class NotSurvived(Exception):
    """Something hung, was lost, or came out differently."""

    def __init__(self, why: str, tally: Tally = Tally(failed=1)) -> None:
        super().__init__(why)
        self.tally = tally


@dataclass(frozen=True)
class Ended:
    """A run that is over."""

    codes: tuple[int, ...]  # of each process that was started
    output: str

    @property
    def tracebacks(self) -> list[str]:
        """Of our own programs; those of the programs that start them are `other_tracebacks`."""
        return [one for one in find_tracebacks(self.output) if not OTHERS.search(one)]

    @property
    def other_tracebacks(self) -> int:
        return len(find_tracebacks(self.output)) - len(self.tracebacks)

    def check_quiet(self) -> "Ended":
        """Refuse tracebacks."""
        if self.tracebacks:
            *frames, error = self.tracebacks[-1].splitlines()
            inner = [line.strip() for line in frames if line.lstrip().startswith("File ")][-1:]
            why = f"a traceback, at {'; '.join(inner)}: {error[:300]}"
            raise NotSurvived(why, Tally(failed=1, tracebacks=len(self.tracebacks)))
        return self

    def check_done(self) -> "Ended":
        self.check_quiet()
        if any(self.codes):
            raise NotSurvived(f"exit codes {self.codes}: {last_line(self.output)}")
        return self

    def check_refused(self, *names: str) -> "Ended":
        """The run ended with one line that names what is at fault, by one of `names`."""
        self.check_quiet()
        errors = [line for line in self.output.splitlines() if line.startswith("error:")]
        if 1 not in self.codes or not errors:
            raise NotSurvived(f"expected exit code 1 and an error, got {self.codes}: {last_line(self.output)}")
        if not any(name in line for line in errors for name in names):
            raise NotSurvived(f"expected an error that names {names[0]}, got {errors[0][:300]}")
        return self


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")[:300]


def find_tracebacks(output: str) -> list[str]:
    """Each from its first line to the line of its exception, which is the first that is not indented."""
    found: list[str] = []
    inside = False
    for line in re.sub(r"(?m)^\[rank\d+\]: ?", "", output).splitlines():  # torch marks lines of several ranks
        if "Traceback (most recent call last)" in line:
            found.append(line)
            inside = True
        elif inside:
            found[-1] += "\n" + line
            inside = not line or line[0].isspace()
    return found


@dataclass
class Process:
    """A run that goes on: a fork of this process, or torchrun's agent with its workers."""

    log: Path
    ids: Sequence[int]
    poll: Callable[[], tuple[int | None, ...]]
    others: frozenset[int]  # descendants of this process that are not of the run
    limit_s: float = LIMIT_S
    began: float = field(default_factory=time.monotonic)

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def running(self) -> bool:
        return None in self.poll()

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Whether the moment came before the run ended."""
        while self.running():
            if reached():
                return True
            if time.monotonic() - self.began > self.limit_s:
                self.kill()
                raise NotSurvived(f"still running after {self.limit_s:.0f} s: {last_line(self.output())}")
            time.sleep(0.005)
        return False

    def wait(self) -> Ended:
        """Wait for its end; processes that are left `GRACE_S` later are killed, and are a failure."""
        self.wait_until(lambda: False)
        until = time.monotonic() + GRACE_S
        while (left := self.left()) and time.monotonic() < until:
            reap(left)
            time.sleep(0.02)
        if left:
            orphans = ", ".join(command_of(one) for one in left)
            kill_all(left)
            raise NotSurvived(f"{len(left)} processes left {GRACE_S:.0f} s after the run: {orphans[:300]}")
        return Ended(tuple(code for code in self.poll() if code is not None), self.output())

    def kill(self) -> None:
        """SIGKILL for every process of the run, as when the machine fails."""
        kill_all(self.left())
        while self.running():
            time.sleep(0.01)

    def left(self) -> list[int]:
        """Processes of the run that are there."""
        return [one for one in children_of(os.getpid()) if one not in self.others]


def fork_run(
    words: Sequence[str], log: Path, *, ranks: int = 1, threads: int = 1, env: Mapping[str, str] | None = None
) -> Process:
    """train.py, or some ranks of it, as children of this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log.write_text("")
    others = frozenset(children_of(os.getpid()))
    context, forks = multiprocessing.get_context("fork"), []
    for rank in range(ranks):
        known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **{key: str(value) for key, value in known.items()}}
        given = {**(given if ranks > 1 else {}), **(env or {})}
        forks.append(context.Process(target=_train, args=(list(words), log, threads, given)))
    for fork in forks:
        fork.start()
    return Process(log, [fork.pid for fork in forks], lambda: tuple(fork.exitcode for fork in forks), others)


def _train(words: list[str], log: Path, threads: int, env: Mapping[str, str]) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.update(env)
    sys.argv = ["train.py", *words]
    torch.set_num_threads(threads)
    expect_ctrl_c()  # as the program does before its imports
    try:
        train.main(words)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()  # a fork of multiprocessing leaves them out


def launch_run(words: Sequence[str], log: Path, *, ranks: int) -> Process:
    """train.py under torchrun, in a process group of its own as a shell starts it."""
    program = [sys.executable, *LAUNCHER, "--nproc-per-node", str(ranks), str(ROOT / "train.py"), *words]
    others = frozenset(children_of(os.getpid()))
    with log.open("w") as file:
        agent = subprocess.Popen(program, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    return Process(log, [agent.pid], lambda: (agent.poll(),), others)


def load_late_imports() -> None:
    """Score a few reports: forks of this process then have what runs load when they score."""
    studies = make_studies("chest", num_train=8, num_val=0, num_test=0, seed=0, size=56)
    reports = [study.report for study in studies]
    score_reports(build_reward(RewardConfig(), SectionParser()), reports, studies)


def prepare_to_fork() -> None:
    """Processes whose parent has died become children of this one, so that none is overlooked (Linux); what is loaded
    is left out by the garbage collector, which would copy it to every fork."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    gc.freeze()


def children_of(parent: int) -> list[int]:
    """All descendants that run or wait to be reaped."""
    families: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        families.setdefault(int(after_name[1]), []).append(int(stat.parent.name))
    found, ahead = [], [parent]
    while ahead:
        ahead = [child for one in ahead for child in families.get(one, [])]
        found += ahead
    return found


def command_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")[-120:] or f"process {process}"
    except OSError:
        return f"process {process}"


def reap(processes: Sequence[int]) -> None:
    for one in processes:
        try:
            os.waitpid(one, os.WNOHANG)
        except ChildProcessError:  # a grandchild
            continue


def kill_all(processes: Sequence[int]) -> None:
    for one in processes:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue
