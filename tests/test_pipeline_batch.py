"""The reports of a step and their scores: cases and metrics, the exchange between ranks, the file."""

import dataclasses
import json
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from toy_batch import (
    LABELS,
    CopyingWorkers,
    LackingWorkers,
    ToyPrompt,
    ToyWorkers,
    collect,
    decode,
    report,
    reports_of,
    train_on,
)

from capo.clipping import critical_clip
from capo.config import EditsConfig, RlConfig
from capo.ranks import Ranks
from capo.stopping import StopRequested
from capo.types import Rollout
from radflow.dashboard.archive import Archive
from radflow.pipeline.batch import all_gather_batch, write_rollouts
from radflow.pipeline.credit import advantages_of
from radflow.rewards.config import RewardConfig
from radflow.rewards.faults import RewardError
from radflow.rewards.types import Fault, Score


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


def test_missing_parts_are_counted_and_their_seconds_summed():
    batch = collect([report(study, i, 1) for study in "ab" for i in (0, 1)], LackingWorkers())
    _, row = train_on(batch)
    assert row["reward_missing_judge"] == 2 and "reward_missing_part" not in row
    assert row["reward_judge"] == 1.0 and row["reward_part"] == 1.0  # means over the reports that have one
    assert row["seconds_judge"] == 4.0 and row["seconds_part"] == 0.5


def test_advantages_are_those_of_equation_1():
    written = [report("a", 0, 1), report("a", 1, 4), report("b", 0, 2), report("b", 1, 2)]
    cases, row = train_on(collect(written, ToyWorkers()), rl=RlConfig(advantage="group", advantage_eps=1.0))
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


class FailingWorkers(ToyWorkers):
    """A part failed for the first report of each group."""

    def submit(self, candidates, references):
        scored = super().submit(candidates, references).result()
        future = Future()
        future.set_result(dataclasses.replace(scored, faults=(Fault("mine", 0, f"no {references[0]}"),)))
        return future


def test_every_rank_counts_what_failed_on_any(capsys):
    _, there = exchanged(collect([report(study, i, 1) for study in "ab" for i in (0, 1)], FailingWorkers()))
    there.warn_of_faults(RewardConfig(max_failed=1.0), shown=False)
    assert capsys.readouterr().out == ""
    there.warn_of_faults(RewardConfig(max_failed=1.0), shown=True)  # both ranks sent the faults of this one
    assert "mine failed for 4 of 4 reports and is missing there (studies a, b)" in capsys.readouterr().out
    with pytest.raises(RewardError, match="first for study a: no ref a"):
        there.warn_of_faults(RewardConfig(max_failed=0.9), shown=False)


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
    mine = dataclasses.replace(batch, studies=batch.studies[:1], prompts=(ToyPrompt("a", num_tokens=5),))

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
    with pytest.raises(StopRequested, match="stopped in stage rl"):
        all_gather_batch(batch, batch.studies, StoppedElsewhere(), build=None)


def test_the_rollout_file_tells_missing_from_skipped(tmp_path):
    batch = collect([report(study, i, 1) for study in "ab" for i in (0, 1)], LackingWorkers())
    write(tmp_path, batch)
    first = rows_of(tmp_path)[0]["reports"][0]
    assert first["parts"]["judge"] is None and first["missing"] == first["left_out"] == ["judge"]


def write(folder, batch, labels=LABELS, *, rl=None, **clip):
    critical = batch.select(labels)
    advantages = advantages_of(batch, rl or RlConfig(advantage="group"), {}, decode).advantages
    write_rollouts(Archive(folder), 0, batch, advantages, critical, critical_clip(critical, **clip))


def rows_of(folder):
    return Archive(folder).members()[0].read()


def test_the_rollout_file_holds_what_the_loss_used(tmp_path):
    written = [report("a", 0, 1), report("a", 1, 4), report("b", 0, 0), report("b", 1, 3)]
    batch = collect(written, ToyWorkers())
    labels, clip = {"a": False, "b": True}, {"eps_normal": 0.3, "tightening": 3.0}
    cases, _ = train_on(batch, labels, **clip)
    write(tmp_path, batch, labels, **clip)
    normal, critical = rows_of(tmp_path)
    assert (normal["id"], normal["critical"], normal["eps"]) == ("a", False, pytest.approx(0.3))
    assert (critical["id"], critical["critical"], critical["eps"]) == ("b", True, pytest.approx(0.1))
    assert (normal["reference"], critical["reference"]) == ("ref a", "ref b")
    for row, case, lengths, totals in (
        (normal, cases[0], [1, 4], [1.0, 4.0]),
        (critical, cases[1], [0, 3], [None, 3.0]),
    ):
        reports = row["reports"]
        assert (row["critical"], row["eps"]) == (case.critical, case.clip)
        assert [r["advantage"] for r in reports] == pytest.approx(case.advantages.tolist())
        assert [r["tokens"] for r in reports] == [len(r["report"]) for r in reports] == lengths
        assert [r["total"] for r in reports] == totals and not any(r["truncated"] for r in reports)


# edited copies


def with_copies():
    """Rewards 1, 4 and, of the copy of the first, 3; then 2, 3 and 4."""
    return collect(reports_of({"a": [1, 4], "b": [2, 3]}), CopyingWorkers(more=2))


def test_metrics_of_a_step_are_of_its_sampled_reports():
    plain, copied = (
        train_on(collect(reports_of({"a": [1, 4], "b": [2, 3]}), workers), rl=RlConfig(edits=edits))[1]
        for workers, edits in ((ToyWorkers(), EditsConfig()), (CopyingWorkers(), EditsConfig(counted=False)))
    )
    timed = {"seconds_rollout", "seconds_reward"}
    changed = {name for name in plain.keys() - timed if plain[name] != copied[name]}
    assert changed == {"edited_reports"} and copied.keys() - plain.keys() == {"edit_gain"}
    assert (plain["edited_reports"], copied["edited_reports"]) == (0, 2)
    assert copied["edit_gain"] == 2.0  # each copy is two characters longer than its report


def test_the_gain_of_copies_by_hand():
    batch = with_copies()
    scores = [list(group) for group in batch.scores]
    scores[0][2] = dataclasses.replace(scores[0][2], total=6.5)  # of a report with 1
    gain = train_on(dataclasses.replace(batch, scores=tuple(map(tuple, scores))))[1]["edit_gain"]
    assert gain == pytest.approx((5.5 + 2) / 2)
    # of the second report instead: 6.5 - 4
    first, second, copy = batch.groups[0]
    groups = ((first, second, dataclasses.replace(copy, sample=1)), batch.groups[1])
    moved = dataclasses.replace(batch, groups=groups, scores=tuple(map(tuple, scores)))
    assert train_on(moved)[1]["edit_gain"] == pytest.approx((2.5 + 2) / 2)
    scores[0][0] = Score(None, {"part": None})  # a missing reward has no gain
    moved = dataclasses.replace(batch, scores=tuple(map(tuple, scores)))
    assert train_on(moved)[1]["edit_gain"] == 2.0


def test_copies_enter_the_mean_of_their_group_only_if_they_count():
    batch = with_copies()
    counted, apart = (
        train_on(batch, rl=RlConfig(advantage="group", edits=EditsConfig(counted=c)))[0][0] for c in (True, False)
    )
    # 1, 4 and 3: mean 8/3, std sqrt(7/3)
    expected = [(r - 8 / 3) / ((7 / 3) ** 0.5 + 1e-4) for r in (1, 4, 3)]
    assert counted.advantages.tolist() == pytest.approx(expected)
    # 1 and 4: mean 2.5, std 3 / sqrt(2); the copy has what it has if it joins
    assert apart.advantages.tolist() == pytest.approx([*(d / (3 / 2**0.5 + 1e-4) for d in (-1.5, 1.5)), expected[2]])


def test_copies_survive_the_exchange_between_ranks():
    batch, there = exchanged(with_copies())
    assert there.scores == batch.scores and there.texts == batch.texts
    assert [[r.edited for r in group] for group in there.groups] == [[None, None, "missed: effusion"]] * 2
    assert [[r.sample for r in group] for group in there.groups] == [[0, 1, 0]] * 2
    assert torch.equal(there.terms, batch.terms) and torch.equal(there.sampled, batch.sampled)


def test_the_rollout_file_marks_copies(tmp_path):
    write(tmp_path, with_copies())
    for row in rows_of(tmp_path):
        assert [report["edited"] for report in row["reports"]] == [None, None, "missed: effusion"]


def test_the_rollout_file_has_the_mean_of_the_advantages_of_a_reports_tokens(tmp_path):
    batch = collect(reports_of({"a": [1, 4], "b": [2, 3]}))
    rows = torch.tensor([[1.0, 9, 9, 9], [1, 2, 3, 6], [4, 0, 9, 9], [0, 0, 3, 9]])
    critical = batch.select(LABELS)
    write_rollouts(Archive(tmp_path), 0, batch, rows, critical, critical_clip(critical))
    assert [[r["advantage"] for r in row["reports"]] for row in rows_of(tmp_path)] == [[1, 3], [2, 1]]
    cases = batch.cases(rows, critical, critical_clip(critical))
    assert torch.equal(torch.cat([case.advantages for case in cases]), rows)


# parts


def test_parts_of_a_step_are_columns_with_nan_where_one_is_missing():
    batch = collect(reports_of({"a": [1, 1], "b": [1, 1]}), LackingWorkers())
    assert batch.part_names == ["part", "judge"]
    assert batch.terms.nan_to_num(-9.0).tolist() == [[1, -9], [2, 1], [1, -9], [2, 1]]


def test_the_share_of_a_part_in_the_variance_is_that_within_groups():
    class Parts(CopyingWorkers):  # copies, which count in no share
        def score(self, text):
            judge = 1.0 if len(text) > 2 else -1.0
            terms = {"judge": judge, "small": len(text) / 10}
            return Score(sum(terms.values()), terms, terms=terms)

    _, row = train_on(collect(reports_of({"a": [1, 4], "b": [2, 5]}), Parts()))
    # deviations of 1 and 0.15 in both groups: 1 x 1.15 and 0.15 x 1.15 over 1.15 squared
    assert row["variance_share_judge"] == pytest.approx(1 / 1.15)
    assert row["variance_share_small"] == pytest.approx(0.15 / 1.15)
    assert row["resampled_groups"] == 0
