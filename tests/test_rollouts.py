"""A batch of rollouts: when its groups are scored, and what it makes of the scores."""

import dataclasses
import json
from concurrent.futures import Future

import pytest
import torch

from capo.rollout import Request
from capo.trainer import RlConfig
from capo.types import Rollout
from rewards.base import Score, Scored
from rollouts import exchange, sample_and_score, watched, write_batch


@dataclasses.dataclass
class ToyPrompt:
    study_id: str


@dataclasses.dataclass
class CountedPrompt(ToyPrompt):
    num_tokens: int = 3


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


class LackingWorkers(ToyWorkers):
    """The second part of a group's first report cannot be computed, so that it counts for none of the group."""

    def submit(self, candidates, references):
        future = Future()
        lacking = Score(1.0, {"part": 0.5, "judge": None}, missing=("judge",), left_out=("judge",))
        whole = Score(2.0, {"part": 1.5, "judge": 1.0}, left_out=("judge",))
        future.set_result(Scored((lacking, *[whole] * (len(candidates) - 1)), {"part": 0.25, "judge": 2.0}))
        return future


def test_missing_parts_are_counted_and_their_seconds_summed():
    batch = collect([report(study, i, 1) for study in "ab" for i in (0, 1)], LackingWorkers())
    row = batch.metrics()
    assert row["reward_missing_judge"] == 2 and "reward_missing_part" not in row
    assert row["reward_judge"] == 1.0 and row["reward_part"] == 1.0  # means over the reports that have one
    assert row["seconds_judge"] == 4.0 and row["seconds_part"] == 0.5


class TwoRanks:
    """What the second of two ranks would see: JSON makes lists of tuples, as the real exchange does."""

    size, stage = 2, "rl"

    def gather(self, mine):
        half = {**mine, "rows": mine["rows"][:1]}, {**mine, "rows": mine["rows"][1:]}
        return json.loads(json.dumps(half))


def test_scores_survive_the_exchange_between_ranks_whole():
    batch = collect([report(study, i, 1) for study in "ab" for i in (0, 1)], LackingWorkers())
    batch = dataclasses.replace(batch, prompts=tuple(CountedPrompt(p.study_id) for p in batch.prompts))
    there = exchange(batch, batch.studies, TwoRanks(), build=None)
    assert there.scores == batch.scores and there.texts == batch.texts
    assert there.seconds_parts == {"part": 1.0, "judge": 8.0}  # both ranks sent the sums of this one


def test_the_rollout_file_tells_missing_from_skipped(tmp_path):
    batch = collect([report(study, i, 1) for study in "ab" for i in (0, 1)], LackingWorkers())
    cases, _ = batch.cases({"a": True, "b": False}, RlConfig())
    write_batch(tmp_path / "step.jsonl", batch, cases, RlConfig())
    first = json.loads((tmp_path / "step.jsonl").read_text().splitlines()[0])["reports"][0]
    assert first["parts"]["judge"] is None and first["missing"] == first["left_out"] == ["judge"]


def test_the_bar_passes_every_report_on():
    reports = [report("a", i, i + 1) for i in range(3)]
    assert list(watched(iter(reports), "title", 3)) == reports
