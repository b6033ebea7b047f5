"""What a run shows of itself while it goes on: lines, warnings, trackers, its report. The first rank has one."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from capo.journal import read_lines, write_lines
from capo.stopping import StopRequested
from reporting.build import write_report
from reporting.lines import step_line
from reporting.run_files import Row
from reporting.status import write_status
from reporting.studies import StudySource
from reporting.symptoms import Examination, Setting
from reporting.trackers import Trackers, TrackingConfig

REPORT_SHARE = 0.02  # of the run's time that its report may take; a checkpoint that comes earlier writes none
LINE_S = 1.0


class Live:
    """Follows a run step by step.

    Args:
        config: of the whole run, as written to config.yaml.

    Raises:
        ValueError: a tracker was asked for whose package is not installed.
    """

    def __init__(self, folder: Path, tracking: TrackingConfig, config: Mapping[str, Any]) -> None:
        self.folder, self.tracking = folder, tracking
        self.source: StudySource | None = None  # None: the report finds the studies by the config
        self.setting = Setting.of(config)
        self.trackers = Trackers.of(folder, tracking, config, self.say)
        self.stage, self.last, self.said_at = "start", 0, 0.0
        self.examined: Examination | None = None
        self.report_due = 0.0

    @staticmethod
    def say(line: str) -> None:
        """A line above the progress bars."""
        tqdm.write(line)

    @contextmanager
    def following(self, source: StudySource) -> Iterator[None]:
        """For the time of the whole run; how it ended goes to status.json, if a stage was begun at all.

        Args:
            source: of the run's studies, for the report.
        """
        self.source = source
        try:
            yield
        except BaseException as error:
            if self.stage != "start":
                state = "stopped" if isinstance(error, StopRequested | KeyboardInterrupt) else "failed"
                with suppress(OSError):  # a full disk may be what ended the run; that error is the one to be seen
                    write_status(self.folder, state, stage=self.stage, detail=str(error)[:2000])
                self.report(now=True)
            raise
        else:
            if self.stage != "start":
                write_status(self.folder, "complete", stage=self.stage)
            self.report(now=True)
        finally:
            self.trackers.close()

    def begin(self, stage: str) -> None:
        """A stage starts."""
        self.stage = stage
        write_status(self.folder, "running", stage=stage)

    def resume(self, kept: Sequence[Row], last: int) -> None:
        """A stage that trains is about to take its steps.

        Args:
            kept: rows of the steps before its checkpoint.
            last: number of steps it will have.
        """
        self.last, self.said_at, self.examined = last, 0.0, Examination(self.stage, self.setting)
        for row in kept:
            self.examined.add(row)
        self._keep_warnings()

    def step(self, row: Row) -> None:
        """One step is done and in the journal."""
        self.trackers.log(self.stage, int(row["step"]), row)
        now = time.monotonic()
        # SFT takes many steps a second, whose lines would only scroll by.
        if "reward" in row or now - self.said_at >= LINE_S or row["step"] + 1 == self.last:
            self.say(step_line(self.stage, row, self.last))
            self.said_at = now
        lasting = len([s for s in self.examined.found if s.until is None])
        begun = self.examined.add(row)
        for symptom in begun:
            self.say(f"warning, {self.stage} step {symptom.step + 1}: {symptom.kind}: {symptom.text}")
        if begun or len([s for s in self.examined.found if s.until is None]) != lasting:
            self._keep_warnings()

    def report(self, *, now: bool = False) -> None:
        """Write report.html, unless the last one was so short ago that it would slow the run down.

        Args:
            now: whenever the last one was.
        """
        if not self.tracking.report or (not now and time.monotonic() < self.report_due):
            return
        began = time.monotonic()
        try:
            write_report(self.folder, self.source)
        except Exception as error:  # a page about the run must not end the run; `train.py report` shows the whole error
            self.say(f"warning: report.html could not be written ({type(error).__name__}: {error})")
        took = time.monotonic() - began
        self.report_due = began + took / REPORT_SHARE

    def _keep_warnings(self) -> None:
        path = self.folder / "warnings.jsonl"
        others = [row for row in read_lines(path) if row["stage"] != self.stage]
        rows = [*others, *(asdict(symptom) for symptom in self.examined.found)]
        if rows or path.exists():
            write_lines(path, rows)
