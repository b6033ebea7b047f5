"""A batch of rollouts: when its groups are scored, and what it makes of the scores."""

import dataclasses
from concurrent.futures import Future

import pytest
import torch

from capo.rollout import Request
from capo.trainer import RlConfig
from capo.types import Rollout
from rewards.base import Score, Scored
from rollouts import sample_and_score, watched


@dataclasses.dataclass
class ToyPrompt:
    study_id: str


@dataclasses.dataclass
class ToyStudy:
    id: str
    report: str


class ToyWorkers:
    """Gives every report its length as reward, and None to the empty one."""

    def __init__(self):
        self.submitted = []

    def submit(self, candidates, references):
        self.submitted.append((candidates, references))
        future = Future()
        scores = tuple(Score(float(len(c)) if c else None, {"part": None}) for c in candidates)
        future.set_result(Scored(scores, {"part": 0.25}))
        return future


def report(study, sample, length):
    return Rollout(study, sample, torch.zeros(length, dtype=torch.int64), torch.zeros(length), truncated=False)


def collect(written, workers):
    studies = [ToyStudy("a", "ref a"), ToyStudy("b", "ref b")]
    requests = [Request(ToyPrompt(study.id), (1, 2)) for study in studies]
    return sample_and_score(written, requests, studies, lambda ids: "x" * len(ids), workers)


def test_a_group_is_scored_before_the_next_one_has_ended():
    workers = ToyWorkers()

    def written():
        yield report("b", 1, 3)
        yield report("a", 0, 1)
        assert not workers.submitted
        yield report("b", 0, 2)
        # group b is complete: its rewards are under way while a is still being written
        assert workers.submitted == [(("xx", "xxx"), ["ref b", "ref b"])]
        yield report("a", 1, 4)

    batch = collect(written(), workers)
    # in the order of the studies and of the sample index, whatever ended first
    assert [[len(r.response_ids) for r in group] for group in batch.groups] == [[1, 4], [2, 3]]
    assert [[s.total for s in group] for group in batch.scores] == [[1.0, 4.0], [2.0, 3.0]]
    assert batch.metrics()["reward"] == 2.5 and batch.metrics()["length"] == 2.5


def test_a_missing_reward_leaves_its_group_and_is_counted():
    written = [report("a", 0, 1), report("a", 1, 4), report("b", 0, 0), report("b", 1, 3)]
    batch = collect(written, ToyWorkers())
    cases, spread = batch.cases({"a": True, "b": False}, RlConfig())
    assert spread["missing_rewards"] == 1 and spread["critical_studies"] == 1
    assert cases[1].advantages.tolist() == [0.0, 0.0] and cases[0].advantages[1] > 0 > cases[0].advantages[0]
    assert batch.metrics()["reward"] == pytest.approx(8 / 3)  # 1, 4 and 3


def test_a_step_without_any_reward_teaches_nothing_and_says_so():
    batch = collect([report(study, i, 0) for study in "ab" for i in (0, 1)], ToyWorkers())
    cases, spread = batch.cases({"a": True, "b": False}, RlConfig())
    assert batch.metrics()["reward"] is None and spread["missing_rewards"] == 4
    assert all(case.advantages.tolist() == [0.0, 0.0] for case in cases)


def test_the_bar_passes_every_report_on():
    reports = [report("a", i, i + 1) for i in range(3)]
    assert list(watched(iter(reports), "title", 3)) == reports
