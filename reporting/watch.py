"""`train.py watch`: a running job from its files, on any machine that sees the folder."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capo.journal import read_lines
from reporting.lines import step_line, steps_of
from reporting.run_files import TRAINED, RunFiles, read_json
from reporting.status import ended
from reporting.symptoms import Examination, Setting

SHOWN_FIRST = 5  # of the steps that were there already, the last few of each stage
SILENCE_S = 600


class Tail:
    """The complete lines that a growing JSON-lines file got since the last look."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.seen = path, 0, b""

    def new(self) -> tuple[bool, list[dict[str, Any]]]:
        """(the file was begun anew, its new rows). A line without its end waits for the next look."""
        if not self.path.is_file():
            return False, []
        with self.path.open("rb") as file:
            # A resumed stage rewrites the file without the steps it does again: what stood before the offset differs.
            file.seek(max(0, self.offset - len(self.seen)))
            anew = file.read(len(self.seen)) != self.seen
            if anew:
                self.offset, self.seen = 0, b""
            file.seek(self.offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        if not newline:
            return anew, []
        self.offset += len(whole) + 1
        self.seen = (self.seen + whole + b"\n")[-200:]
        return anew, [json.loads(line) for line in whole.split(b"\n")]


class Watcher:
    """What is new in a run folder since the last look, as lines of text."""

    def __init__(self, folder: Path) -> None:
        run = RunFiles.read(folder)
        self.folder, self.config = folder, run.config
        self.tails = {stage: Tail(folder / stage / "metrics.jsonl") for stage in TRAINED}
        self.examined = {stage: Examination(stage, Setting.of(run.config)) for stage in TRAINED}
        self.stages_done = 0
        self.running: str | None = None

    def look(self, *, most: int | None = None) -> list[str]:
        """The news.

        Args:
            most: of the steps of a stage, show only this many, the latest.
        """
        said, done = [], read_lines(self.folder / "timing.jsonl")
        for row in done[self.stages_done :]:
            if row["stage"] in TRAINED:
                said += self._steps(row["stage"], most)
            said.append(f"== {row['stage']} done in {row['seconds']:.1f} s")
        self.stages_done = len(done)
        status = read_json(self.folder / "status.json")
        if status and status["state"] == "running" and status["stage"] != self.running:
            self.running = status["stage"]
            said.append(f"== {self.running} (since {status['time']}, on {status['host']})")
        for stage in TRAINED:
            said += self._steps(stage, most)
        return said

    def _steps(self, stage: str, most: int | None) -> list[str]:
        anew, rows = self.tails[stage].new()
        said = []
        if anew:
            self.examined[stage] = Examination(stage, Setting.of(self.config))
            said.append(f"== {stage} goes on from a checkpoint, at step {int(rows[-1]['step']) + 2 if rows else 1}")
            most = 0
        shown = len(rows) if most is None else most
        for number, row in enumerate(rows):
            begun = self.examined[stage].add(row)
            if number >= len(rows) - shown:
                said.append(step_line(stage, row, steps_of(stage, self.config)))
            said += [f"warning, {stage} step {s.step + 1}: {s.kind}: {s.text}" for s in begun]
        return said


def watch(folder: Path, *, once: bool = False, every_s: float = 2.0, say: Callable[[str], None] = print) -> None:
    """Say what happens in a run folder until the run ends.

    Args:
        once: say what is there, and return.
        every_s: seconds between looks.

    Raises:
        ValueError: the folder holds no run.
    """
    watcher, news_at, silent = Watcher(folder), time.monotonic(), False
    most: int | None = SHOWN_FIRST
    while True:
        end = ended(folder)  # before the look, so that what was written until the end is shown
        lines = watcher.look(most=most)
        for line in lines:
            say(line)
        if end is not None:
            say(f"== run {end['state']} in stage {end['stage']}" + (f": {end['detail']}" if end["detail"] else ""))
            return
        if once:
            return
        if lines:
            news_at, silent = time.monotonic(), False
        elif time.monotonic() - news_at > SILENCE_S and not silent:
            say(f"nothing new for {SILENCE_S // 60} minutes: the run is in a long phase, hangs, or was killed")
            silent = True
        most = None
        time.sleep(every_s)
