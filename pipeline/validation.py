"""Held-out studies in the course of the RL stage: what the reward does not see, so that gaming it shows."""

import statistics
import time
from typing import Any

from capo.stopping import StopRequested
from radflow.dashboard.archive import Archive
from radflow.dashboard.run_files import evenly
from radflow.data.studies import Study
from radflow.models.qwen_vl import QwenVL
from radflow.pipeline.comparison import score_rows
from radflow.pipeline.generation import prepare_generation
from radflow.pipeline.policies import report_writer
from radflow.pipeline.run import Run


def validate(policy: QwenVL, run: Run, step: int, archive: Archive) -> dict[str, float | None]:
    """Means of every metric over a few held-out studies, `held_out_<metric>`; nothing in most steps.

    What was measured of each study goes to the archive: which studies got worse shows there. A step that is done again
    writes the same.

    Of the policy as it is before the step's first update, so that a step that is stopped here is done again from the
    same weights. Reports are greedy: no random number is drawn that training would miss.

    Raises:
        StopRequested: some rank was stopped.
    """
    config, ranks = run.config.evaluate, run.ranks
    if not config.validate_every or step % config.validate_every:
        return {}
    began = time.perf_counter()
    studies = evenly(run.corpus.test, config.validate_studies)
    own = [studies[i] for i in ranks.assign([1] * len(studies))]
    shares = ranks.all_gather_or_stop(_report_and_score(policy, run, own, step))
    by_id = {row["id"]: row for share in shares for row in share}
    rows = [by_id[study.id] for study in studies]  # in one order, whatever the number of ranks: sums round the same
    if ranks.is_main:
        archive.append(step, rows)
    means: dict[str, float | None] = {}
    for name in (name for name in rows[0] if name not in ("id", "report")):
        known = [row[name] for row in rows if row[name] is not None]
        means[f"held_out_{name}"] = statistics.fmean(known) if known else None
    return {**means, "seconds_held_out": time.perf_counter() - began}


def _report_and_score(policy: QwenVL, run: Run, studies: list[Study], step: int) -> list[dict[str, Any]] | None:
    """Report and metrics of each of these studies; None if this rank was stopped."""
    try:
        with prepare_generation(policy):
            if not studies:
                return []
            written = report_writer(policy, run, most=len(studies)).write(
                studies, title=f"held-out before step {step + 1}"
            )
        return score_rows(run.reward, [report for report, _ in written], studies)
    except StopRequested:
        return None
