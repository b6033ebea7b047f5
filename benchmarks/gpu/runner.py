"""Runs the sections of the proof, each in a process of its own, before one deadline; a line of JSON after each.

A section's process is a copy (fork) of one that has imported everything and has not touched the card: imports are paid
once. If CUDA was started before (which would make the copy useless), the copy becomes a new process instead.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu.report import Report, Skipped, missed

LOG_KEPT = 4000  # characters of a failed section's output


@dataclass(frozen=True)
class Setting:
    """Where and how large the sections run."""

    small: bool  # tiny sizes on a CPU
    folder: Path  # for what sections write on their way


@dataclass(frozen=True)
class Section:
    """One part of the proof."""

    name: str
    row: str  # of the table that it belongs to
    seconds: float  # its share of the deadline
    work: str  # module:function, which takes a Setting and a Report


def preload(sections: Sequence[Section]) -> None:
    """Import what the sections need, before their processes are forked. Failed imports are printed; the section that
    needs one fails."""
    for section in sections:
        try:
            importlib.import_module(section.work.partition(":")[0])
        except ImportError as error:
            print(f"section {section.name} will fail: {error}", flush=True)


@dataclass
class _Running:
    section: Section
    pid: int
    began: float
    limit: float
    report: Report
    log: Path


class Runner:
    """Takes sections in order.

    Args:
        out: the JSON lines are appended here.
        deadline_s: of all sections together.
        jobs: processes at one time; 1 where something is timed.
        share: what is kept back for later sections, as a factor of their seconds; 0 lets any section use all that is
            left.
        restart: the command that runs a section in a new process, given its name and the file of its figures.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        out: Path,
        deadline_s: float,
        jobs: int = 1,
        share: float = 1.0,
        restart: Callable[[str, Path], Sequence[str]] | None = None,
    ) -> None:
        self.setting, self.out, self.jobs, self.share, self.restart = setting, out, jobs, share, restart
        self.began = time.monotonic()
        self.until = self.began + deadline_s

    def run(self, sections: Sequence[Section]) -> list[dict[str, object]]:
        """The line of each section, in the order in which they ended."""
        waiting, running, lines = list(sections), [], []
        while waiting or running:
            while waiting and len(running) < self.jobs:
                section = waiting.pop(0)
                limit = self._limit(section, waiting)
                if limit < self.share * section.seconds / 2 or limit <= 0:
                    lines.append(self._append(section, {"status": "not run", "error": "no time left"}))
                else:
                    running.append(self._start(section, limit))
            for process in list(running):
                line = self._ended(process)
                if line is not None:
                    running.remove(process)
                    lines.append(line)
            time.sleep(0.02)
        return lines

    def _limit(self, section: Section, later: Sequence[Section]) -> float:
        """Its own share and what sections before it left over, never what is kept for those after it."""
        left = self.until - time.monotonic()
        spare = left - self.share * sum(other.seconds for other in later)
        return min(left, max(self.share * section.seconds, spare))

    def _start(self, section: Section, limit: float) -> _Running:
        figures = self.setting.folder / f"{section.name}.figures"
        log = figures.with_suffix(".log")
        print(f"[{self._now():4.0f} s] {section.name}: at most {limit:.0f} s", flush=True)
        pid = os.fork()
        if pid == 0:
            self._become(section, figures, log)
        return _Running(section, pid, time.monotonic(), limit, Report(figures), log)

    def _become(self, section: Section, figures: Path, log: Path) -> None:
        """The section's process; never returns."""
        code = 1
        try:
            os.setsid()  # what it starts can then be ended with it
            descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            if self.restart is not None and _cuda_was_started():
                command = self.restart(section.name, figures)
                os.execv(command[0], list(command))
            code = work_in_process(section, self.setting, Report(figures))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _ended(self, process: _Running) -> dict[str, object] | None:
        """The line of a section that ended or had to be ended; None while it may go on."""
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        seconds = time.monotonic() - process.began
        late = pid == 0 and seconds > process.limit
        if pid == 0 and not late:
            return None
        _end_group(process.pid)
        if late:
            os.waitpid(process.pid, 0)
        result = {"seconds": round(seconds, 1), **process.report.read()}
        if late:
            error = f"killed: it took longer than {process.limit:.0f} s"
            return self._append(process.section, {"status": "failed", "error": error, **result, **_tail(process.log)})
        return self._append(process.section, {**_verdict(status, result["figures"], process.log), **result})

    def _append(self, section: Section, found: Mapping[str, object]) -> dict[str, object]:
        line = {"section": section.name, "row": section.row, **found}
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        why = f" ({found['error']})" if "error" in found else ""
        print(f"[{self._now():4.0f} s] {section.name}: {found['status']}{why}", flush=True)
        return line

    def _now(self) -> float:
        return time.monotonic() - self.began


SKIPPED = 77  # exit status of a section that cannot run here


def work_in_process(section: Section, setting: Setting, report: Report) -> int:
    """Do the section's work here; the exit status of its process."""
    try:
        module, _, function = section.work.partition(":")
        getattr(importlib.import_module(module), function)(setting, report)
    except Skipped as reason:
        print(reason, file=sys.stderr)
        return SKIPPED
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _verdict(status: int, figures: list[dict[str, object]], log: Path) -> dict[str, object]:
    code = os.waitstatus_to_exitcode(status)
    if code == SKIPPED:
        return {"status": "skipped", "error": _last_line(log)}
    if code:
        ended = f"exit status {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
        return {"status": "failed", "error": f"{ended}: {_last_line(log)}", **_tail(log)}
    if wrong := missed(figures):
        return {"status": "failed", "error": f"outside its bar: {', '.join(wrong)}"}
    return {"status": "passed"}


def _cuda_was_started() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda._is_in_bad_fork()


def _end_group(pid: int) -> None:
    """The section's process and all that it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _tail(log: Path) -> dict[str, str]:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return {"output": text[-LOG_KEPT:]}


def _last_line(log: Path) -> str:
    lines = [line for line in _tail(log)["output"].splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"
