"""Held-out studies in the course of the RL stage: what the reward does not see, so that gaming it shows."""

import statistics
import time

from capo.journal import write_lines
from capo.stopping import StopRequested
from models.qwen_vl import QwenVL
from reporting.run_files import evenly
from reports_by_policy import generating
from run_scores import scored_rows
from stages import Run, report_writer


def held_out_row(policy: QwenVL, run: Run, step: int) -> dict[str, float | None]:
    """Means of every metric over a few held-out studies, `held_out_<metric>`; nothing in most steps.

    What was measured of each study goes to rl/held_out/step_*.jsonl, where `step` is in the name: which studies got
    worse shows there. A step that is done again writes the same.

    Of the policy as it is before the step's first update, so that a step that is stopped here is done again from the
    same weights. Reports are greedy: no random number is drawn that training would miss.

    Raises:
        StopRequested: some rank was stopped.
    """
    tracking, ranks = run.config.tracking, run.ranks
    if not tracking.evaluate_every or step % tracking.evaluate_every:
        return {}
    began = time.perf_counter()
    studies = evenly(run.corpus.test, tracking.evaluate_studies)
    parts = ranks.gather(_own(policy, run, [studies[i] for i in ranks.share([1] * len(studies))], step))
    if any(part is None for part in parts):
        raise StopRequested(f"stopped in stage {ranks.stage}, as asked")
    by_id = {row["id"]: row for part in parts for row in part}
    rows = [by_id[study.id] for study in studies]  # in one order, whatever the number of ranks: sums round alike
    if ranks.first:
        write_lines(run.folder / "rl" / "held_out" / f"step_{step:06d}.jsonl", rows)
    means: dict[str, float | None] = {}
    for name in (name for name in rows[0] if name not in ("id", "report")):
        known = [row[name] for row in rows if row[name] is not None]
        means[f"held_out_{name}"] = statistics.fmean(known) if known else None
    return {**means, "seconds_held_out": time.perf_counter() - began}


def _own(policy: QwenVL, run: Run, studies: list, step: int) -> list[dict[str, object]] | None:
    """Report and metrics of each of this rank's studies; None when it was stopped."""
    try:
        with generating(policy):
            if not studies:
                return []
            written = report_writer(policy, run, most=len(studies)).write(
                studies, title=f"held-out before step {step + 1}"
            )
    except StopRequested:
        return None
    return scored_rows(run.reward, [report for report, _ in written], studies)
