"""The loop of a stage that trains: steps from the last checkpoint on, metrics, checkpoints, a stop at any time."""

from collections.abc import Callable, Mapping

from tqdm import tqdm

from capo.checkpoint import Checkpoints
from capo.journal import Journal, read_lines
from capo.stopping import StopRequested
from capo.trainer import Trainer
from radflow.pipeline.run import Run
from radflow.pipeline.run_config import config_hash


class StageLoop:
    """The steps of a stage that trains: from its last checkpoint on, written down as they come, saved on the way and
    when the run is asked to stop. An update that has begun is finished first.

    Args:
        every: steps between checkpoints.
        identity: what a checkpoint must share with this run, besides the config.
    """

    def __init__(
        self, run: Run, name: str, trainer: Trainer, *, every: int, identity: Mapping[str, str] | None = None
    ) -> None:
        self.trainer, self.every, self.live = trainer, every, run.live
        self.ranks, self.stop = run.ranks, run.stop
        self.folder = run.folder / name
        known = {"config": config_hash(run.config), "studies": run.corpus.fingerprint, **(identity or {})}
        self.checkpoints = Checkpoints(self.folder / "checkpoints", run.ranks, identity=known)
        facts = self.checkpoints.load(trainer.state()[0])
        self.first = int(facts["step"]) if facts else 0
        if facts:
            trainer.restore(facts)
        run.ranks.barrier()  # nobody writes before all have read

    def run(self, last: int, do: Callable[[int], Mapping[str, float | None]], *, title: str, shown: str) -> None:
        """`do` each step below `last`; its metrics go to metrics.jsonl, the one named `shown` to the bar."""
        journal = Journal(self.folder / "metrics.jsonl", resume_at=self.first) if self.ranks.is_main else None
        if self.live is not None:
            self.live.resume(read_lines(self.folder / "metrics.jsonl"), last)
        step, self.bar = self.first, progress(title, self.first, last, shown=self.ranks.is_main)
        try:
            for step in self.bar:
                self._check_stop()
                row = {"step": step, **do(step)}
                self.bar.set_postfix({shown: row[shown]})
                if journal is not None:
                    journal.append(row)
                if self.live is not None:
                    self.live.step(row)
                if (step + 1) % self.every == 0:
                    self.checkpoints.save(step + 1, *self.trainer.state())
                    if self.live is not None:
                        self.live.write_dashboard()
        except StopRequested:
            self.checkpoints.save(step, *self.trainer.state())
            raise
        finally:
            self.checkpoints.finish()

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
