"""The loop of a stage that trains: steps from the last checkpoint on, metrics, checkpoints, a stop at any time."""

from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from capo.checkpoint import Checkpoints
from capo.journal import Journal, iter_lines
from capo.stopping import StopRequested
from capo.trainer import Trainer
from radflow.dashboard.archive import Archive
from radflow.pipeline.run import Run, built_on
from radflow.pipeline.run_config import config_hash

METRICS = "metrics.jsonl"


class StageLoop:
    """The steps of a stage that trains: from its last checkpoint on, written down as they come, saved on the way and
    when the run is asked to stop. An update that has begun is finished first.

    Args:
        every: steps between checkpoints.
    """

    def __init__(self, run: Run, name: str, trainer: Trainer, *, every: int) -> None:
        self.trainer, self.every, self.live = trainer, every, run.live
        self.ranks, self.stop = run.ranks, run.stop
        self.folder = run.folder / name
        known = {"config": config_hash(run.config), "studies": run.corpus.fingerprint}
        known |= built_on(run.folder, name)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", run.ranks, identity=known)
        self.keep_steps = run.config.tracking.keep_steps
        facts = self.checkpoints.load(trainer.state()[0], check=self._find_change)
        self.first = int(facts["step"]) if facts else 0
        if facts:
            trainer.restore(facts)
        run.ranks.barrier()  # nobody writes before all have read
        self.logs: dict[str, Journal | Archive] = {}  # by the first rank

    def archive(self, name: str) -> Archive:
        """Rows per step in a folder of the stage, for the first rank to append to."""
        archive = Archive(self.folder / name, keep=self.keep_steps)
        self._resume_log(name, archive)
        return archive

    def _resume_log(self, name: str, log: Journal | Archive) -> None:
        if self.ranks.is_main:
            log.drop_from(self.first)
            self.logs[name] = log

    def _find_change(self, facts: Mapping[str, Any]) -> str:
        """Why the stage cannot resume from a checkpoint: metrics or rows of earlier steps are lost; "" if it can."""
        step = facts["step"]
        for name, mark in facts.get("logs", {}).items():  # an older version wrote none
            log = Journal(self.folder / name) if name == METRICS else Archive(self.folder / name)
            if changed := log.find_change(mark, step):
                advice = "" if name == METRICS else "; nothing is trained on it, so it may be removed"
                return f"is of {step} steps, but {changed} has lost or changed some of them{advice}"
        return ""

    def run(self, last: int, do: Callable[[int], Mapping[str, float | None]], *, title: str, shown: str) -> None:
        """`do` each step below `last`; its metrics go to metrics.jsonl, the one named `shown` to the bar."""
        journal = Journal(self.folder / METRICS)
        self._resume_log(METRICS, journal)
        if self.live is not None:
            self.live.resume(iter_lines(journal.path), last)
        step, self.bar = self.first, progress(title, self.first, last, shown=self.ranks.is_main)
        try:
            for step in self.bar:
                self._check_stop()
                row = {"step": step, **do(step)}
                self.bar.set_postfix({shown: row[shown]})
                if self.ranks.is_main:
                    journal.append(row)
                if self.live is not None:
                    self.live.step(row)
                if (step + 1) % self.every == 0:
                    self._save(step + 1)
                    if self.live is not None:
                        self.live.write_dashboard()
        except StopRequested:
            self._save(step)
            raise
        finally:
            self.checkpoints.finish()

    def _save(self, step: int) -> None:
        """A checkpoint after that many steps. What was written about them must outlive a power cut if it does."""
        for log in self.logs.values():
            log.sync()
        tensors, facts = self.trainer.state()
        marks = {name: log.mark(step) for name, log in self.logs.items()}
        self.checkpoints.save(step, tensors, {**facts, "logs": marks})

    def _check_stop(self) -> None:
        """Once per step. All ranks come here before the step's first exchange between devices, which NCCL would wait
        for without a word."""
        self.ranks.all_gather_or_stop(None if self.stop.requested else True)

    def phase(self, name: str) -> None:
        """Say at the bar what the step does now."""
        self.bar.set_postfix_str(name)


def progress(name: str, first: int, last: int, *, shown: bool) -> tqdm:
    hidden = None if shown else True  # None: where there is no terminal
    return tqdm(range(first, last), name, initial=first, total=last, unit="step", disable=hidden, mininterval=1)
