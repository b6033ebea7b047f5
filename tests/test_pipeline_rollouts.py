"""The rollouts of a step: when groups are scored, what becomes of long reports, and which groups are sampled anew."""

from types import SimpleNamespace

import pytest
import torch
from toy_batch import CopyingWorkers, ToyWorkers, collect, decode, encode, report, reports_of, train_on

from capo.config import RlConfig
from capo.ranks import Ranks
from capo.sampling import sample_seed
from capo.stopping import StopRequested, StopSignal
from radflow.pipeline.generation import with_progress
from radflow.pipeline.rollouts import punish, sample_flat_groups_anew
from radflow.rewards.types import Score


def test_a_group_is_scored_before_the_next_one_has_ended():
    workers = ToyWorkers()

    def written():
        yield report("b", 1, 3)
        yield report("a", 0, 1)
        assert not workers.submitted
        yield report("b", 0, 2)
        # group b is complete: its rewards are under way while a is still being written
        assert workers.submitted == [(["xx", "xxx"], ["ref b", "ref b"])]
        yield report("a", 1, 4)

    batch = collect(written(), workers)
    # in the order of the studies and of the sample index, whatever ended first
    assert [[len(r.response_ids) for r in group] for group in batch.groups] == [[1, 4], [2, 3]]
    assert [[s.total for s in group] for group in batch.scores] == [[1.0, 4.0], [2.0, 3.0]]
    _, row = train_on(batch)
    assert row["reward"] == 2.5 and row["length"] == 2.5


@pytest.mark.parametrize(("cores", "threads", "left"), [(4, 4, 2), (4, 3, 2), (8, 3, 3), (2, 2, 1), (1, 1, 1)])
def test_cores_are_left_to_two_workers_from_the_first_group_on(cores, threads, left, monkeypatch):
    # On two cores, a rollout whose two threads waited for a worker took twice as long per token.
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    used, before = [], torch.get_num_threads()

    def written():
        for name in "ab":
            used.append(torch.get_num_threads())
            yield from reports_of({name: [1, 2]})
        used.append(torch.get_num_threads())

    try:
        torch.set_num_threads(threads)
        collect(written())
        assert used == [threads, left, left] and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_bar_passes_every_report_on():
    reports = [report("a", i, i + 1) for i in range(3)]
    assert list(with_progress(iter(reports), "title", 3)) == reports


# reports near the token limit


def penalised(num_tokens, *, limit=40, margin=16):
    return punish(Score(2.0, {"part": 0.5}, terms={"part": 2.0}), num_tokens, limit, margin)


@pytest.mark.parametrize(("num_tokens", "penalty"), [(3, 0.0), (24, 0.0), (25, 1 / 16), (32, 0.5), (40, 1.0)])
def test_a_long_report_is_punished_by_hand(num_tokens, penalty):
    # 0 up to 16 tokens before the limit of 40, half a point in the middle, 1 at the limit
    found = penalised(num_tokens)
    assert found.total == pytest.approx(2.0 - penalty)
    assert found.parts == {"part": 0.5, "overlong": -penalty} and found.terms == {"part": 2.0, "overlong": -penalty}


def test_a_missing_reward_stays_missing_however_long_its_report_is():
    found = punish(Score(None, {"judge": None}, missing=("judge",)), 40, 40, 16)
    assert found.total is None and found.terms == {} and found.parts == {"judge": None, "overlong": -1.0}


def test_only_a_run_that_punishes_long_reports_does_so():
    written = reports_of({"a": [1, 8], "b": [10, 0]})
    plain = collect(written, max_tokens=10)
    assert [[score.total for score in group] for group in plain.scores] == [[1.0, 8.0], [10.0, None]]
    batch = collect(written, max_tokens=10, truncated="punish", truncated_margin=4)
    assert [[score.total for score in group] for group in batch.scores] == [[1.0, 7.5], [9.0, None]]
    cases, row = train_on(batch)
    assert batch.part_names == ["part", "overlong"] and row["reward_overlong"] == pytest.approx(-(0.5 + 1) / 4)
    # the group in which a reward is missing has one left: nothing to compare
    assert cases[1].advantages.tolist() == [0.0, 0.0] and row["missing_rewards"] == 1


def test_a_truncated_report_that_is_masked_leaves_the_loss_and_stays_in_the_mean():
    written = [report("a", 0, 1), report("a", 1, 2), report("a", 2, 6, truncated=True), *reports_of({"b": [3, 4, 5]})]
    batch = collect(written, group_size=3)
    whole, row = train_on(batch)
    masked, same = train_on(batch, masked=True)
    assert [len(case.rollouts) for case in masked] == [2, 3] and row == same
    # rewards 1, 2, 6: mean 3 and std sqrt(7), the report that left included
    assert masked[0].advantages.tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5], rel=1e-3)
    assert torch.equal(masked[0].advantages, whole[0].advantages[:2]) and row["truncated"] == pytest.approx(1 / 6)


def test_a_case_of_truncated_reports_only_is_empty_when_they_are_masked():
    batch = collect([report("a", i, 2 + i, truncated=True) for i in (0, 1)] + reports_of({"b": [1, 3]}))
    cases, _ = train_on(batch, masked=True)
    assert cases[0].rollouts == () and cases[0].advantages.shape == (0,) and len(cases[1].rollouts) == 2


# edited copies


def test_copies_join_the_group_after_its_reports_with_their_own_tokens_and_scores():
    batch = collect(reports_of({"a": [1, 4], "b": [2, 3]}), CopyingWorkers(more=2))
    assert [[len(r.response_ids) for r in group] for group in batch.groups] == [[1, 4, 3], [2, 3, 4]]
    assert [[r.edited for r in group] for group in batch.groups] == [[None, None, "missed: effusion"]] * 2
    assert batch.texts == (("x", "xxxx", "xyy"), ("xx", "xxx", "xxyy"))
    assert [group[2].total for group in batch.scores] == [3.0, 4.0]
    copy = batch.groups[0][2]
    assert (copy.study_id, copy.sample, copy.truncated) == ("a", 0, False) and not copy.behaviour_logps.any()
    assert batch.sampled.tolist() == [True, True, False] * 2


def test_a_copy_longer_than_sampling_allows_is_left_out():
    batch = collect(reports_of({"a": [1, 4], "b": [2, 3]}), CopyingWorkers(more=2), max_tokens=3)
    assert [[r.edited is not None for r in group] for group in batch.groups] == [[False, False, True], [False, False]]
    assert [len(texts) for texts in batch.texts] == [len(scores) for scores in batch.scores] == [3, 2]


def test_a_copy_near_the_limit_is_punished_as_a_report_is():
    batch = collect(
        reports_of({"a": [1, 4], "b": [2, 3]}), CopyingWorkers(4), max_tokens=6, truncated="punish", truncated_margin=2
    )
    assert [group[2].total for group in batch.scores] == [4.5, 5.0]  # 5 - 1/2 and 6 - 1


# groups without spread


class FakeEngine:
    """Writes for each attempt the lengths that a test gives it, last report first, and notes what it was asked."""

    def __init__(self, attempts):
        self.attempts, self.asked = iter(attempts), []
        self.policy = torch.nn.ModuleDict({"model": torch.nn.Linear(1, 1)})

    def rollout(self, requests, *, stop):
        self.asked.append([(request.prompt.study_id, request.seeds) for request in requests])
        lengths = next(self.attempts)
        for request in reversed(requests):
            for sample in reversed(range(len(request.seeds))):
                yield report(request.prompt.study_id, sample, lengths[request.prompt.study_id][sample])


def run_of(ranks=None, *, reward=None, **rl):
    config = SimpleNamespace(
        seed=7, rl=RlConfig(**{"group_size": 2, **rl}), rollout=SimpleNamespace(max_new_tokens=100)
    )
    processor = SimpleNamespace(encode_report=encode, decode=decode)
    return SimpleNamespace(
        config=config, ranks=ranks or Ranks(), stop=StopSignal(), processor=processor, reward=reward or ToyWorkers()
    )


def lengths_of(batch):
    return {
        study.id: [len(r.response_ids) for r in group] for study, group in zip(batch.studies, batch.groups, strict=True)
    }


def seeds(stage, name):
    return tuple(sample_seed(7, stage, 5, name, i) for i in (0, 1))


def test_only_groups_without_spread_are_sampled_anew_from_other_numbers_until_they_have_some():
    batch = collect(reports_of({"a": [2, 2], "b": [1, 5], "c": [4, 4], "d": [0, 3]}), names="abcd")
    engine = FakeEngine([{"a": [3, 4], "c": [5, 5], "d": [0, 0]}, {"c": [1, 2], "d": [6, 6]}])
    workers = ToyWorkers()
    found = sample_flat_groups_anew(batch, lambda: engine, run_of(resample=2, reward=workers), step=5)
    # d has one known reward, with nothing to compare it with; it has two equal ones in the end, and counts so
    assert [name for name, _ in engine.asked[0]] == ["a", "c", "d"]
    assert [name for name, _ in engine.asked[1]] == ["c", "d"]
    assert engine.asked[0][0] == ("a", seeds("rl 1", "a")) and engine.asked[1][0] == ("c", seeds("rl 2", "c"))
    assert seeds("rl 1", "c") != seeds("rl 2", "c") != seeds("rl", "c")
    assert lengths_of(found) == {"a": [3, 4], "b": [1, 5], "c": [1, 2], "d": [6, 6]}
    assert found.groups[1] is batch.groups[1] and found.studies == batch.studies and found.prompts == batch.prompts
    assert found.texts[2] == ("x", "xx") and [s.total for s in found.scores[2]] == [1.0, 2.0]
    assert train_on(found, dict.fromkeys("abcd", False))[1]["resampled_groups"] == 5
    # of each attempt, the group that ended first
    assert [references[0] for _, references in workers.submitted] == ["ref d", "ref c", "ref a", "ref d", "ref c"]
    assert found.seconds_parts == {"part": 4 * 0.25 + 5 * 0.25}  # of all attempts


def test_nothing_is_sampled_anew_unless_asked_and_no_longer_than_needed():
    batch = collect(reports_of({"a": [2, 2], "b": [1, 5]}))
    assert sample_flat_groups_anew(batch, lambda: FakeEngine([]), run_of(), step=5) is batch
    engine = FakeEngine([{"a": [1, 2]}])
    found = sample_flat_groups_anew(batch, lambda: engine, run_of(resample=9), step=5)
    assert lengths_of(found) == {"a": [1, 2], "b": [1, 5]} and found.resampled == len(engine.asked) == 1


def test_a_group_that_only_copies_give_spread_is_flat():
    batch = collect(reports_of({"a": [2, 2], "b": [1, 5]}), CopyingWorkers())
    assert batch.flat_groups() == [0]
    found = sample_flat_groups_anew(
        batch, lambda: FakeEngine([{"a": [1, 3]}]), run_of(resample=1, reward=CopyingWorkers()), step=5
    )
    assert found.texts[0] == ("x", "xxx", "xyy") and found.texts[1] == batch.texts[1]


class TwoRanks(Ranks):
    """The second of two ranks, which is sent what the first has to say."""

    def __init__(self, first):
        super().__init__(1, 2)
        self.first, self.stage = first, "rl"

    def all_gather(self, mine):
        return [next(self.first), mine]


def test_each_rank_samples_its_share_of_the_flat_groups_anew():
    batch = collect(reports_of({"a": [2, 2], "b": [3, 3], "c": [4, 4]}), names="abc")
    other = {"logps": [], "truncated": False, "edited": None, "parts": {}, "missing": [], "left_out": []}
    reports = [
        {**other, "tokens": [0] * n, "sample": i, "text": "x" * n, "total": n, "terms": {"part": n}, "truth": 1.0}
        for i, n in enumerate((1, 2))
    ]
    rows = [{"id": name, "length": 3, "reports": reports} for name in "ac"]
    first = iter([{"rows": rows, "seconds": [0.0, 0.0], "seconds_parts": {}, "faults": []}])
    engine = FakeEngine([{"b": [7, 8]}])
    found = sample_flat_groups_anew(batch, lambda: engine, run_of(TwoRanks(first), resample=1), step=5)
    assert engine.asked == [[("b", seeds("rl 1", "b"))]]
    assert lengths_of(found) == {"a": [1, 2], "b": [7, 8], "c": [1, 2]} and found.resampled == 3


def test_a_stop_while_groups_are_sampled_anew_is_passed_on():
    class Stopped(FakeEngine):
        def rollout(self, requests, *, stop):
            raise StopRequested("stopped")
            yield

    batch = collect(reports_of({"a": [2, 2], "b": [1, 5]}))
    with pytest.raises(StopRequested):
        sample_flat_groups_anew(batch, lambda: Stopped([]), run_of(TwoRanks(iter([None])), resample=1), step=5)
