"""A batch of rollouts: when its groups are scored, and what it makes of the scores."""

import dataclasses
import json
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch

from capo.advantages import group_advantages
from capo.clipping import critical_clip
from capo.ranks import Ranks
from capo.stopping import StopRequested
from capo.types import Rollout
from radflow.pipeline.generation import with_progress
from radflow.pipeline.rollouts import all_gather_batch, score_groups, write_rollouts
from radflow.rewards.types import Score, Scored


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
    prompts = [ToyPrompt(study.id) for study in studies]
    return score_groups(written, studies, prompts, 2, lambda ids: "x" * len(ids), workers)


LABELS = {"a": True, "b": False}


def train_on(batch, labels=LABELS, eps=1e-4, **clip):
    """The cases that train.py makes of a batch, and the metrics of the step."""
    advantages, critical = group_advantages(batch.rewards, batch.group_index, eps=eps), batch.select(labels)
    cases = batch.cases(advantages.advantages, critical, critical_clip(critical, **clip))
    return cases, batch.metrics(advantages, critical)


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
    _, row = train_on(batch)
    assert row["reward"] == 2.5 and row["length"] == 2.5


def test_a_missing_reward_leaves_its_group_and_is_counted():
    written = [report("a", 0, 1), report("a", 1, 4), report("b", 0, 0), report("b", 1, 3)]
    batch = collect(written, ToyWorkers())
    cases, row = train_on(batch)
    assert row["missing_rewards"] == 1 and row["critical_studies"] == 1
    assert cases[1].advantages.tolist() == [0.0, 0.0] and cases[0].advantages[1] > 0 > cases[0].advantages[0]
    assert row["reward"] == pytest.approx(8 / 3)  # 1, 4 and 3


def test_a_step_without_any_reward_teaches_nothing_and_says_so():
    batch = collect([report(study, i, 0) for study in "ab" for i in (0, 1)], ToyWorkers())
    cases, row = train_on(batch)
    assert row["reward"] is None and row["missing_rewards"] == 4
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
    _, row = train_on(batch)
    assert row["reward_missing_judge"] == 2 and "reward_missing_part" not in row
    assert row["reward_judge"] == 1.0 and row["reward_part"] == 1.0  # means over the reports that have one
    assert row["seconds_judge"] == 4.0 and row["seconds_part"] == 0.5


class TwoRanks(Ranks):
    """What the second of two ranks would see: JSON makes lists of tuples, as the real exchange does."""

    def __init__(self):
        super().__init__(1, 2)
        self.stage = "rl"

    def all_gather(self, mine):
        half = {**mine, "rows": mine["rows"][:1]}, {**mine, "rows": mine["rows"][1:], "seconds": [7.0, 8.0]}
        return json.loads(json.dumps(half))


def exchanged(batch, build=None):
    """The batch as the rank knows it that sampled all of it, and as the other rank gets it."""
    batch = dataclasses.replace(batch, prompts=tuple(CountedPrompt(p.study_id) for p in batch.prompts))
    return batch, all_gather_batch(batch, batch.studies, TwoRanks(), build)


def test_scores_survive_the_exchange_between_ranks_whole():
    batch, there = exchanged(collect([report(study, i, 1) for study in "ab" for i in (0, 1)], LackingWorkers()))
    assert there.scores == batch.scores and there.texts == batch.texts
    assert there.seconds_parts == {"part": 1.0, "judge": 8.0}  # both ranks sent the sums of this one
    assert (there.seconds_rollout, there.seconds_reward) == (7.0, 8.0)  # of the slower rank


def test_a_failed_reward_is_missing_on_every_rank():
    # Sent as 0.0 it would be the best report of a group with negative rewards, and the worst of any other.
    written = [report("a", 0, 1), report("a", 1, 4), report("b", 0, 0), report("b", 1, 3)]
    batch, there = exchanged(collect(written, ToyWorkers()))
    assert [[score.total for score in group] for group in there.scores] == [[1.0, 4.0], [None, 3.0]]
    cases, row = train_on(there)
    assert row["missing_rewards"] == 1 and cases[1].advantages.tolist() == [0.0, 0.0]
    assert row["reward"] == train_on(batch)[1]["reward"]


def test_reports_survive_the_exchange_between_ranks_token_by_token():
    written = [
        Rollout(study, i, torch.tensor([5, 6 + i]), torch.tensor([-0.5, -0.25 - i]), truncated=i == 1)
        for study in "ab"
        for i in (0, 1)
    ]
    batch, there = exchanged(collect(written, ToyWorkers()))
    for mine, other in zip(sum(batch.groups, ()), sum(there.groups, ()), strict=True):
        for field in ("study_id", "sample", "truncated"):
            assert getattr(mine, field) == getattr(other, field)
        assert torch.equal(mine.response_ids, other.response_ids)
        assert torch.equal(mine.behaviour_logps, other.behaviour_logps)


def test_the_prompt_of_another_ranks_study_is_built_once_and_only_when_it_is_read():
    batch, built = collect([report(study, i, 1) for study in "ab" for i in (0, 1)], ToyWorkers()), []
    mine = dataclasses.replace(batch, studies=batch.studies[:1], prompts=(CountedPrompt("a", num_tokens=5),))

    class OtherHalf(TwoRanks):
        def all_gather(self, rows):
            assert rows["rows"][0]["length"] == 5
            other = {**rows["rows"][0], "id": "b", "length": 9}
            return [rows, {**rows, "rows": [other]}]

    def build(study):
        built.append(study.id)
        return SimpleNamespace(next_position=12)

    groups = {"groups": mine.groups[:1], "texts": mine.texts[:1], "scores": mine.scores[:1]}
    there = all_gather_batch(dataclasses.replace(mine, **groups), batch.studies, OtherHalf(), build)
    assert [(p.study_id, p.num_tokens) for p in there.prompts] == [("a", 5), ("b", 9)] and not built
    assert there.prompts[1].next_position == there.prompts[1].next_position == 12 and built == ["b"]


def test_a_rank_that_was_stopped_stops_all():
    class StoppedElsewhere(TwoRanks):
        def all_gather(self, mine):
            return [mine, None]

    batch = collect([report(study, i, 1) for study in "ab" for i in (0, 1)], ToyWorkers())
    batch = dataclasses.replace(batch, prompts=tuple(CountedPrompt(p.study_id) for p in batch.prompts))
    with pytest.raises(StopRequested, match="stopped in stage rl"):
        all_gather_batch(batch, batch.studies, StoppedElsewhere(), build=None)


def test_the_rollout_file_tells_missing_from_skipped(tmp_path):
    batch = collect([report(study, i, 1) for study in "ab" for i in (0, 1)], LackingWorkers())
    cases, _ = train_on(batch)
    write_rollouts(tmp_path / "step.jsonl", batch, cases)
    first = rows_of(tmp_path / "step.jsonl")[0]["reports"][0]
    assert first["parts"]["judge"] is None and first["missing"] == first["left_out"] == ["judge"]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_rollout_file_holds_what_the_loss_used(tmp_path):
    written = [report("a", 0, 1), report("a", 1, 4), report("b", 0, 0), report("b", 1, 3)]
    batch = collect(written, ToyWorkers())
    cases, _ = train_on(batch, {"a": False, "b": True}, eps_normal=0.3, tightening=3.0)
    write_rollouts(tmp_path / "step.jsonl", batch, cases)
    normal, critical = rows_of(tmp_path / "step.jsonl")
    assert (normal["id"], normal["critical"], normal["eps"]) == ("a", False, pytest.approx(0.3))
    assert (critical["id"], critical["critical"], critical["eps"]) == ("b", True, pytest.approx(0.1))
    assert (normal["reference"], critical["reference"]) == ("ref a", "ref b")
    for row, case, lengths, totals in (
        (normal, cases[0], [1, 4], [1.0, 4.0]),
        (critical, cases[1], [0, 3], [None, 3.0]),
    ):
        reports = row["reports"]
        assert [r["advantage"] for r in reports] == case.advantages.tolist()
        assert [r["tokens"] for r in reports] == [len(r["report"]) for r in reports] == lengths
        assert [r["total"] for r in reports] == totals and not any(r["truncated"] for r in reports)


def test_advantages_are_those_of_equation_1():
    written = [report("a", 0, 1), report("a", 1, 4), report("b", 0, 2), report("b", 1, 2)]
    cases, row = train_on(collect(written, ToyWorkers()), eps=1.0)
    # rewards 1 and 4: mean 2.5, std 3 / sqrt(2)
    size = 1.5 / (3 / 2**0.5 + 1)
    assert cases[0].advantages.tolist() == pytest.approx([-size, size]) and not cases[1].advantages.any()
    assert [(case.prompt.study_id, case.critical) for case in cases] == [("a", True), ("b", False)]
    assert (row["zero_std_groups"], row["missing_rewards"], row["critical_studies"]) == (1, 0, 1)


def test_metrics_are_means_over_the_reports_of_a_step():
    written = [report("a", 0, 1), report("a", 1, 4), report("b", 0, 2), report("b", 1, 5)]
    written[0] = dataclasses.replace(written[0], truncated=True)
    _, row = train_on(collect(written, ToyWorkers()))
    assert (row["reward"], row["length"], row["truncated"]) == (3.0, 3.0, 0.25)
    assert row["reward_std"] == pytest.approx(2.5**0.5) and row["reward_part"] is None


def test_the_bar_passes_every_report_on():
    reports = [report("a", i, i + 1) for i in range(3)]
    assert list(with_progress(iter(reports), "title", 3)) == reports
