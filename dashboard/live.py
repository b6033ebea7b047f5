"""A run while it goes on, step by step: as it shows itself (`Live`), and from its files (`train.py watch`)."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from capo.journal import parse_line, write_lines
from capo.stopping import StopRequested
from radflow.dashboard.build import build_dashboard
from radflow.dashboard.charts import TABLES
from radflow.dashboard.checks import CLIP_METRICS, Monitor
from radflow.dashboard.course import Course, Row
from radflow.dashboard.render import DASH
from radflow.dashboard.run_files import TRAINED, RunFiles, State, read_end, read_object, read_rows, write_status
from radflow.dashboard.studies import StudySource
from radflow.dashboard.trackers import Trackers, TrackingConfig

TIME_SHARE = 0.02  # of the run's time that its dashboard may take; a checkpoint that comes earlier writes none
LINE_S = 1.0
HIDDEN_AT_ZERO = {"truncated", "missing_rewards"}
SHOWN_FIRST = 5  # of the steps that were there already, the last few of each stage
SILENCE_S = 600


class Live:
    """What a run shows of itself: lines, warnings, trackers, its dashboard. The first rank has one.

    Args:
        config: of the whole run, as written to config.yaml.

    Raises:
        ValueError: a tracker was asked for whose package is not installed.
    """

    def __init__(self, folder: Path, tracking: TrackingConfig, config: Mapping[str, Any]) -> None:
        self.folder, self.tracking, self.config = folder, tracking, config
        self.source: StudySource | None = None  # None: the dashboard finds the studies by the config
        self.say: Callable[[str], None] = tqdm.write  # above the progress bars
        self.trackers = Trackers.of(folder, tracking, config, self.say)
        self.stage, self.last, self.next_line = "start", 0, 0.0
        self.monitor = Monitor("start", config)
        self.courses: dict[str, Course] = {}  # of the stages that this start has trained
        self.dashboard_due = 0.0

    @contextmanager
    def follow(self, source: StudySource) -> Iterator[None]:
        """Wrap the whole run; how it ended goes to status.json, if a stage was begun at all."""
        self.source = source
        try:
            yield
        except BaseException as error:
            if self.stage != "start":
                state: State = "stopped" if isinstance(error, StopRequested | KeyboardInterrupt) else "failed"
                with suppress(OSError):  # a full disk may be what ended the run; that error is the one to be seen
                    write_status(self.folder, state, stage=self.stage, detail=str(error)[:2000])
                self.write_dashboard(now=True)
            raise
        else:
            if self.stage != "start":
                write_status(self.folder, "complete", stage=self.stage)
            self.write_dashboard(now=True)
        finally:
            self.trackers.close()

    def begin(self, stage: str) -> None:
        """A stage starts."""
        self.stage = stage
        write_status(self.folder, "running", stage=stage)

    def resume(self, kept: Iterable[Row], last: int) -> None:
        """A stage that trains is about to take its steps, `last` in all; `kept` are the rows before its checkpoint."""
        self.last, self.next_line, self.monitor = last, 0.0, Monitor(self.stage, self.config)
        self.courses[self.stage] = Course()
        for row in kept:
            self.monitor.add(row)
            self.courses[self.stage].add(row)
        self._keep_warnings()

    def step(self, row: Row) -> None:
        """One step is done and in the journal."""
        self.trackers.log(self.stage, int(row["step"]), row)
        now = time.monotonic()
        # SFT takes many steps per second, whose lines would only scroll by.
        if "reward" in row or now >= self.next_line or row["step"] + 1 == self.last:
            self.say(format_step(self.stage, row, self.last))
            self.next_line = now + LINE_S
        self.courses[self.stage].add(row)
        lasting = self.monitor.count_lasting()
        begun = self.monitor.add(row)
        for warning in begun:
            self.say(str(warning))
        if begun or self.monitor.count_lasting() != lasting:
            self._keep_warnings()

    def write_dashboard(self, *, now: bool = False) -> None:
        """Write dashboard.html, unless it is not due yet: writing it must not slow the run down. `now`: in any case."""
        if not self.tracking.dashboard or (not now and time.monotonic() < self.dashboard_due):
            return
        began = time.monotonic()
        try:
            found = self.monitor.found if self.monitor.stage == "rl" else None
            build_dashboard(self.folder, self.source, courses=self.courses, found=found)
        except Exception as error:  # a page about the run must not end the run; `train.py dashboard` raises the error
            self.say(f"warning: dashboard.html could not be written ({type(error).__name__}: {error})")
        took = time.monotonic() - began
        self.dashboard_due = began + took / TIME_SHARE

    def _keep_warnings(self) -> None:
        path = self.folder / "warnings.jsonl"
        others = [row for row in read_rows(path) if row["stage"] != self.stage]
        rows = [*others, *(asdict(warning) for warning in self.monitor.found)]
        if rows or path.exists():
            write_lines(path, rows)


class Tail:
    """The complete lines that a growing JSON-lines file got since the last look."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.seen = path, 0, b""

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """(the file was begun anew, its new rows). A line without its end waits for the next look; ValueError names a
        file with a damaged one."""
        if not self.path.is_file():
            return False, []
        with self.path.open("rb") as file:
            # A resumed stage rewrites the file without the steps it does again: the bytes before the offset differ.
            file.seek(max(0, self.offset - len(self.seen)))
            anew = file.read(len(self.seen)) != self.seen
            if anew:
                self.offset, self.seen = 0, b""
            file.seek(self.offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        if not newline:
            return anew, []
        self.offset += len(complete) + 1
        self.seen = (self.seen + complete + b"\n")[-200:]
        return anew, [parse_line(line, str(self.path)) for line in complete.split(b"\n")]


class Watcher:
    """What is new in a run folder since the last look, as lines of text."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, RunFiles.read(folder).config
        self.tails = {stage: Tail(folder / stage / "metrics.jsonl") for stage in TRAINED}
        self.monitors = {stage: Monitor(stage, self.config) for stage in TRAINED}
        self.stages_done = 0
        self.running: str | None = None

    def look(self, *, most: int | None = None) -> list[str]:
        """The lines since the last look; of the steps of a stage at most the latest `most`."""
        lines: list[str] = []
        done: list[dict[str, Any]] = read_rows(self.folder / "timing.jsonl")
        for row in done[self.stages_done :]:
            if row["stage"] in TRAINED:
                lines += self._read_steps(row["stage"], most)
            lines.append(f"== {row['stage']} done in {row['seconds']:.1f} s")
        self.stages_done = len(done)
        status = read_object(self.folder / "status.json")
        if status and status["state"] == "running" and status["stage"] != self.running:
            self.running = status["stage"]
            lines.append(f"== {self.running} (since {status['time']}, on {status['host']})")
        for stage in TRAINED:
            lines += self._read_steps(stage, most)
        return lines

    def _read_steps(self, stage: str, most: int | None) -> list[str]:
        anew, rows = self.tails[stage].read()
        lines = []
        if anew:
            self.monitors[stage] = Monitor(stage, self.config)
            lines.append(f"== {stage} goes on from a checkpoint, at step {int(rows[-1]['step']) + 2 if rows else 1}")
            most = 0
        first = 0 if most is None else len(rows) - most
        for number, row in enumerate(rows):
            begun = self.monitors[stage].add(row)
            if number >= first:
                lines.append(format_step(stage, row, self.config.get(stage, {}).get("steps")))
            lines += map(str, begun)
        return lines


def watch(folder: Path, *, once: bool = False, every_s: float = 2.0, say: Callable[[str], None] = print) -> None:
    """Print what happens in a run folder until the run ends.

    Args:
        once: print what is there, and return.
        every_s: seconds between looks.

    Raises:
        ValueError: the folder holds no run.
    """
    watcher, silence_at = Watcher(folder), time.monotonic() + SILENCE_S
    most: int | None = SHOWN_FIRST
    while True:
        end = read_end(folder)  # before the look, so that what was written until the end is shown
        lines = watcher.look(most=most)
        for line in lines:
            say(line)
        if end is not None:
            say(f"== run {end['state']} in stage {end['stage']}" + (f": {end['detail']}" if end["detail"] else ""))
        if end is not None or once:
            return
        if lines:
            silence_at = time.monotonic() + SILENCE_S
        elif time.monotonic() > silence_at:
            say(f"nothing new for {SILENCE_S // 60} minutes: the run is in a long phase, hangs, or was killed")
            silence_at = math.inf
        most = None
        time.sleep(every_s)


def format_step(stage: str, row: Row, last: int | None) -> str:
    """`rl 12/100 | reward 2.31 ±0.40 | KL 0.012 | ... | 4.1 s`; steps are counted from 1, as the bar counts them."""
    of = "" if last is None else f"/{last}"
    cells = [f"{stage} {int(row['step']) + 1}{of}"]
    for key, name in TABLES["step_line"].items():
        if key not in row or (key == "loss" and "reward" in row) or (key in HIDDEN_AT_ZERO and not row[key]):
            continue
        spread = row.get("reward_std") if key == "reward" else None
        cells.append(f"{name} {format_brief(row[key])}" + ("" if spread is None else f" ±{format_brief(spread)}"))
    if CLIP_METRICS[0] in row:
        low_critical, high_critical, low_normal, high_normal = (row[name] for name in CLIP_METRICS)
        cells.append(f"clipped critical {low_critical + high_critical:.1%} normal {low_normal + high_normal:.1%}")
    seconds = [row[key] for key in ("seconds_rollout", "seconds_reward", "seconds_update") if key in row]
    if seconds:
        cells.append(f"{sum(seconds):.1f} s")
    return " | ".join(cells)


def format_brief(value: Any) -> str:
    """Three significant digits; a missing value as a dash."""
    if value is None:
        return DASH
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e5):
        return f"{value:.2e}"
    magnitude = max(-1, math.floor(math.log10(size))) if size else 0
    return f"{value:.{max(0, 2 - magnitude)}f}"
