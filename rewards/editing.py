"""Copies of the reports of a group in which one finding is made right; they are scored and join the group."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from radflow.rewards.hierarchy import HierarchicalReward
from radflow.rewards.rules.edits import Edit, ReportEditor
from radflow.rewards.types import Copy, Score, Scored


@dataclass(frozen=True)
class Editing:
    """How many copies are made, of what."""

    share: float  # copies per group, as a share of its reports, rounded up
    missed_by_all: bool  # only for a finding that no report of the group has
    render: Callable[[str, str], str]  # Findings and Impression -> report; a function that can be imported by name


class GroupScorer:
    """Scores the reports of a group and, if asked to, copies of some of them."""

    def __init__(self, reward: HierarchicalReward, editing: Editing | None) -> None:
        self.reward, self.editing = reward, editing
        if editing is not None:
            self.edit = ReportEditor(reward.metrics.parse, editing.render, reward.errors)

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> Scored:
        """Scores of the reports of one study, which are compared with one another."""
        scored = self.reward.scored(candidates, references, groups=[0] * len(candidates))
        if self.editing is None:
            return scored
        began = time.perf_counter()
        copies = self._make_copies(candidates, references[0], scored.scores)
        seconds = {**scored.seconds, "edits": time.perf_counter() - began}
        again = self.reward.scored([edit.report for _, edit in copies], [references[0]] * len(copies))
        rows = zip(copies, again.scores, strict=True)
        made = tuple(Copy(edit.report, edit.about, of, score) for (of, edit), score in rows)
        faults = (replace(fault, report=fault.report + len(candidates)) for fault in again.faults)
        return replace(scored, seconds=seconds, copies=made, faults=(*scored.faults, *faults))

    def _make_copies(self, texts: Sequence[str], reference: str, scores: Sequence[Score]) -> list[tuple[int, Edit]]:
        """The best reports first: their copies are the nearest to what the policy writes and to what is right."""
        assert self.editing is not None
        most = math.ceil(self.editing.share * len(texts))
        made: list[tuple[int, Edit]] = []
        for i in sorted(range(len(texts)), key=lambda i: _total(scores[i]), reverse=True):
            if len(made) == most:
                break
            others = [text for j, text in enumerate(texts) if j != i]
            edit = self.edit(texts[i], reference, others, missed_by_all=self.editing.missed_by_all)
            if edit is not None and edit.report not in {*texts, *(one.report for _, one in made)}:
                made.append((i, edit))
        return made


def _total(score: Score) -> float:
    return -math.inf if score.total is None else score.total
